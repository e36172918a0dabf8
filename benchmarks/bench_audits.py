"""Audits over HTTP, platform by platform: right class, tokens to the verdict, false alarms, power.

Every platform really serves every model on loopback, through `hspi serve` (batching on) or the engine's own server.
Each server is audited with its true claim, in another order of probes each time, then with claims of other number
formats, which are false. `--impostors` serves weights that are not the claimed ones but near them: a merged LoRA, a
fine-tuned copy, a copy rounded to int8.

Answers and verdicts are kept in --out, one line an audit; started again, it goes on. Run it where `dvc repro` has run:

    python benchmarks/bench_audits.py --out /tmp/audits --store data/signatures --audits 10
    python benchmarks/bench_audits.py --out /tmp/audits --table
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np

from hspi import judging, params, zoo
from hspi.audits import candidates, material
from hspi.audits.levels import residual
from hspi.audits.material import Material
from hspi.audits.run import Project, Request, silent, start
from hspi.detectors.detector import Detector
from hspi.detectors.virtual_families import Families
from hspi.evaluation.measures import wilson
from hspi.platforms import catalogue, machine
from hspi.platforms.record import Platform
from hspi.signatures.store import STORE

CANDIDATES = "store,emulated"
Row = dict[str, Any]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of the results")
    p.add_argument("--store", type=Path, default=STORE)
    p.add_argument("--platforms", nargs="+", help="default: those of the store that run here")
    p.add_argument("--models", nargs="+", default=["llama", "qwen3"])
    p.add_argument("--audits", type=int, default=10, help="honest ones, for each platform and model")
    p.add_argument("--false-claims", type=int, default=3, help="for each platform and model")
    p.add_argument("--max-tokens", type=int, default=2000)
    p.add_argument("--impostors", action="store_true", help="audit changed weights instead")
    p.add_argument("--table", action="store_true", help="print what is there, audit nothing")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "audits.jsonl")
    if not args.table:
        for model in args.models:
            world = World(model, args.store, args.out)
            for platform in args.platforms or world.servable():
                (impostors if args.impostors else platform_audits)(world, platform, results, args)
    print(table(results.rows))


class Results:
    """A line for each finished audit, by its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def has(self, name: str) -> bool:
        return any(r["name"] == name for r in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")
        print(f"{row['name']:60} {row['outcome']:13} {row['answer']:28} {row['tokens']:5} tokens", flush=True)


class World:
    """The candidates for one model."""

    def __init__(self, model: str, store: Path, out: Path) -> None:
        self.model, self.store, self.cache = model, store, out / "cache"
        self.params = params.load()
        self.ref = zoo.resolve(model)

    @cached_property
    def detector(self) -> Detector:
        """The detector, with the store's signatures and no others as candidates."""
        bare, kinds = judging.load_detector().without_libraries(), candidates.parse_kinds(CANDIDATES)
        return candidates.gather(bare, self.ref, kinds, self.params, self.store, self.cache, silent)[0]

    @property
    def told(self) -> Families:
        """What verdicts tell apart."""
        return self.detector.told(self.model)

    @property
    def platforms(self) -> list[Platform]:
        return self.detector.library(self.model).data.platforms

    def servable(self) -> list[str]:
        """Software that runs here, of which there are signatures of this machine."""
        ids = {p.id for p in self.platforms}
        names = sorted({p.software for p in self.platforms} & set(catalogue.CATALOGUE))
        return [n for n in names if machine.availability(catalogue.get(n)).runnable and here(n) in ids]

    def class_of(self, software: str) -> str:
        """The name of the class that a platform of this machine is in; empty where it is no candidate."""
        members = zip(self.told.names, self.told.members, strict=True)
        return next((name for name, some in members if here(software) in some), "")


def here(software: str) -> str:
    """The full id of software on this machine."""
    return f"{machine.hardware_here(catalogue.get(software)).id}/{software}"


class Gathered(Project):
    """The project as `hspi audit` finds it, but its candidates are those of the world, gathered once for all audits."""

    def __init__(self, world: World, request: Request) -> None:
        super().__init__(request)
        self.world, self.scores = world, world.cache / "scores"
        self.refer = partial(residual.refer, self.ref, cache=world.cache / "references")

    def material(self) -> Material:
        specs = [self.params.probes.spec(name) for name in self.params.probes.sets]
        return material.prepare(self.settings, self.world.detector, specs, self.ref)


def platform_audits(world: World, platform: str, results: Results, args: argparse.Namespace) -> None:
    honest = [(f"{world.model}/{platform}/honest-{i}", platform, i) for i in range(args.audits)]
    false = [
        (f"{world.model}/{platform}/claims-{c}", c, i) for i, c in enumerate(_other_formats(world, platform, args))
    ]
    todo = [job for job in [*honest, *false] if not results.has(job[0])]
    if not todo:
        return
    with server(platform, world.model) as url:
        for name, claim, order in todo:
            results.add(one_audit(world, name, platform, claim, order, url, args.max_tokens))


def _other_formats(world: World, platform: str, args: argparse.Namespace) -> list[str]:
    """Claims of other number formats than the platform's, another draw for each platform and model."""
    own = catalogue.get(platform).number_format
    ids = sorted({p.software for p in world.platforms if p.number_format != own})
    rng = np.random.default_rng([len(platform), *platform.encode(), *world.model.encode()])
    return [str(i) for i in rng.permutation(ids)[: args.false_claims]]


def impostors(world: World, platform: str, results: Results, args: argparse.Namespace) -> None:
    """The claimed platform serves, but not the claimed weights."""
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in changed_weights(world.ref, Path(folder)):
            name = f"{world.model}/{platform}/weights-{kind}"
            if not results.has(name):
                with server(platform, str(path), world.model) as url:
                    results.add(one_audit(world, name, f"{platform}+{kind}", platform, 0, url, args.max_tokens))


def changed_weights(ref: zoo.ModelRef, root: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a model with other weights, in bf16 as the original: (what was done, folder)."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    def lora(name: str, w: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        if w.ndim != 2 or not any(part in name for part in ("q_proj", "query_key_value")):
            return w
        a, b = (torch.randn(s, generator=g) for s in ((w.shape[0], 2), (2, w.shape[1])))
        return w + 0.01 * w.float().std() * (a @ b)

    def tuned(name: str, w: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        return w + 0.002 * w.float().std() * torch.randn(w.shape, generator=g)

    def rounded(name: str, w: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        step = w.float().abs().max() / 127
        return torch.round(w.float() / step) * step if w.ndim == 2 else w

    for kind, change in (("lora", lora), ("tuned", tuned), ("rounded-to-int8", rounded)):
        path = root / kind
        shutil.copytree(ref.path, path)
        g = torch.Generator().manual_seed(0)
        for file in path.glob("*.safetensors"):
            weights = load_file(file)
            new = {n: change(n, w.float(), g).to(w.dtype).contiguous() for n, w in weights.items()}
            save_file(new, file, metadata={"format": "pt"})
        yield kind, path


def one_audit(world: World, name: str, served: str, claim: str | None, order: int, url: str, max_tokens: int) -> Row:
    began = time.perf_counter()
    request = Request(
        base_url=url, served=world.model, weights=world.model, claim=claim, order=order, max_tokens=max_tokens,
        candidates=CANDIDATES,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = start(request, Path(folder), supply=Gathered(world, request)).verdict
    assert found is not None, "not a dry run"
    truth = world.class_of(served) if served in catalogue.CATALOGUE else ""
    return {
        "name": name, "model": world.model, "served": served, "engine": catalogue.get(served.partition("+")[0]).engine,
        "claim": claim, "honest": served == claim, "outcome": found.outcome, "answer": found.answer, "truth": truth,
        "p": found.claim_p_value, "tokens": found.output_tokens, "seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip


@contextmanager
def server(platform: str, model: str, name: str | None = None) -> Iterator[str]:
    """`hspi serve` until the block ends; its base URL."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "hspi", "serve", "--platform", platform, "--model", model, "--port", str(port)]
    command += ["--served-name", name or model]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while not _answers(f"http://127.0.0.1:{port}/v1/models"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{platform} must serve {model}, but: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# ---------------------------------------------------------------- the table


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each engine and one for all."""
    engines = sorted({r["engine"] for r in rows})
    lines = [
        "| engine | platforms | audits with the true claim | right class | named at all | tokens (median, 95 %) "
        "| true claims rejected | false claims (another format) contradicted | other weights contradicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for engine in [*engines, "all"]:
        lines.append(_line(engine, [r for r in rows if engine in ("all", r["engine"])]))
    return "\n".join(lines)


def _line(engine: str, rows: Sequence[Row]) -> str:
    changed = [r for r in rows if "+" in r["served"]]
    honest = [r for r in rows if r["honest"]]
    false = [r for r in rows if not r["honest"] and "+" not in r["served"]]
    groups: dict[tuple[str, str], list[bool]] = {}
    for r in honest:
        groups.setdefault((r["model"], r["truth"]), []).append(r["answer"] == r["truth"])
    macro = np.mean([np.mean(g) for g in groups.values()]) if groups else float("nan")
    tokens = sorted(r["tokens"] for r in honest)
    named = sum(r["answer"] != "unknown" for r in honest)
    rejected = sum(r["outcome"] == "contradicted" for r in honest)
    high = wilson(rejected, len(honest))[1] if honest else float("nan")
    span = f"{median(tokens):.0f}, {tokens[int(0.95 * (len(tokens) - 1))]}" if tokens else "–"
    return (
        f"| {engine} | {len({r['served'] for r in honest})} | {len(honest)} | {macro:.4f} | {named}/{len(honest)} "
        f"| {span} | {rejected}/{len(honest)} (≤ {high:.3f}) | {_share(false)} | {_share(changed)} |"
    )


def _share(rows: Sequence[Row]) -> str:
    return f"{sum(r['outcome'] == 'contradicted' for r in rows)}/{len(rows)}"


if __name__ == "__main__":
    main()
