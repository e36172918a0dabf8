"""Holds hspi's emulated GPU arithmetic to the GPU of this machine, bit for bit, and keeps what the chip answered.

    python scripts/silicon.py --out golden/            # torch with Triton or nvcc, numba; nothing is downloaded
    python scripts/silicon.py --simulate hopper --dots 40000 --shapes "o 2048" --no-model   # tries it without a GPU

Writes golden vectors (inputs by seed, output bits, provenance) and report.json into the folder; ends with 1 where a
tile differs. Until this has been run on a chip, its arithmetic here is unverified.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chip.cases import FAMILIES
from chip.chip import NvidiaChip, SimulatedChip, backends
from chip.compare import SHAPES, Chip, K, M, N, compare_gemms, compare_tiles, write_golden

from hspi.errors import HspiError
from hspi.files import write_json
from hspi.numerics.plans import KernelPlan

BATCH = 128  # tiles at a time


def check_tiles(chip: Chip, dots: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """At least `dots` dot products of each type, shared out among the families."""
    per_family = -(-dots // (M * N * len(FAMILIES)))
    rows = []
    for input_type in chip.types:
        for family in FAMILIES:
            done, at = 0, 0
            row: dict[str, Any] = {"input_type": input_type, "family": family, "k": K, "count": 0, "mismatches": 0}
            while done < per_family:
                size = min(BATCH, per_family - done)
                agreement, output = compare_tiles(chip, input_type, family, seed + at, size)
                if at == 0 or (agreement.mismatches and not row["mismatches"]):
                    write_golden(out, chip, agreement, output)
                row["count"] += agreement.count
                row["mismatches"] += agreement.mismatches
                done, at = done + size, at + 1
            print(f"{input_type:5s} {family:10s} {row['count']:>10d} dot products, {row['mismatches']} differ")
            rows.append(row)
    return rows


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("golden"))
    p.add_argument("--dots", type=int, default=10_000_000, help="dot products for each type (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    p.add_argument("--model", default="llama", help="a zoo model to run whole")
    p.add_argument("--no-model", action="store_true")
    p.add_argument("--simulate", metavar="ARCHITECTURE", help="numerics in the place of a chip, to try the harness")
    args = p.parse_args()
    simulated: list[Chip] = [SimulatedChip(args.simulate, KernelPlan(split_k=3))] if args.simulate else []
    chips: list[Chip] = simulated or [NvidiaChip(b) for b in backends()] or [NvidiaChip()]
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "chips": []}
    for chip in chips:
        tiles = check_tiles(chip, args.dots, args.seed, args.out / chip.facts().get("backend", "simulated"))
        report["chips"].append({"facts": chip.facts(), "tiles": tiles})
    shapes = {n: SHAPES[n] for n in args.shapes}
    report["gemms"] = {t: compare_gemms(chips[0], t, args.seed, shapes) for t in chips[-1].types}
    if not (args.no_model or args.simulate):
        from chip.whole_model import compare_model

        types = [t for t in chips[0].types if t in ("fp16", "bf16")]
        report["model"] = [compare_model(chips[0].architecture, args.model, t) for t in types]
    write_json(args.out / "report.json", report, sort_keys=False)
    print(json.dumps({k: v for k, v in report.items() if k != "chips"}, indent=1))
    return int(any(row["mismatches"] for c in report["chips"] for row in c["tiles"]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HspiError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
