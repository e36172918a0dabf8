"""The chip's bits beside those of `hspi.numerics`: tiles, GEMMs with an unknown plan, and golden vectors."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chip.cases import F32, tiles
from hspi.errors import ConfigError, DataError
from hspi.files import whole
from hspi.numerics.architectures import unit
from hspi.numerics.batched import matmul_batched
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import matmul
from hspi.numerics.plans import KernelPlan

M, N, K = 64, 64, 64  # of a tile: 4096 dot products, each a chain of several instructions
SHAPES = {  # (rows, out features, in features) of language models' layers
    "qkv 4096": (64, 6144, 4096),
    "mlp up 4096": (64, 14336, 4096),
    "mlp down 4096": (64, 4096, 14336),
    "head 4096": (16, 32000, 4096),
    "o 2048": (128, 2048, 2048),
    "prefill 1024": (512, 1024, 1024),
}


class Chip(Protocol):
    """What runs the products. `facts`: GPU, driver and versions, for provenance; `types`: input types it has."""

    @property
    def architecture(self) -> str: ...

    @property
    def types(self) -> tuple[str, ...]: ...

    def facts(self) -> dict[str, str]: ...

    def tile(self, a: F32, b: F32, input_type: str) -> F32:
        """(T, M, K)·(T, K, N) → fp32 (T, M, N): one accumulator, instructions in order."""
        ...

    def gemm(self, a: F32, b: F32, input_type: str) -> tuple[F32, str]:
        """(M, K)·(K, N) by the vendor's library: values, and the format that they were rounded to."""
        ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """Dot products compared, and those whose bits differ; `first` is one that does: (tile, row, column)."""

    input_type: str
    family: str
    seed: int
    count: int
    mismatches: int
    first: tuple[int, ...] = ()


def differing(x: F32, y: F32) -> npt.NDArray[np.bool_]:
    """Where bits differ; a NaN equals any NaN."""
    return (x.view(np.uint32) != y.view(np.uint32)) & ~(np.isnan(x) & np.isnan(y))


def compare_tiles(chip: Chip, input_type: str, family: str, seed: int, count: int) -> tuple[Agreement, F32]:
    """One family of inputs, `count` tiles; also returns the chip's output."""
    a, b = tiles(input_type, family, seed, count, M, K, N)
    found = chip.tile(a, b, input_type)
    wrong = np.argwhere(differing(found, matmul_batched(a, b, chip.architecture, input_type)))
    first = tuple(int(i) for i in wrong[0]) if len(wrong) else ()
    return Agreement(input_type, family, seed, found.size, len(wrong), first), found


def plan_library(architecture: str, input_type: str) -> Iterator[KernelPlan]:
    """Plans to try on a vendor's GEMM, the plainest first; those that do not fit the unit are left out."""
    width = unit(architecture, input_type).instruction_k
    splits = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
    workspaces = ("fp32", *(w for w in ("bf16", "fp16") if w == input_type))
    promotions = (0, 128) if input_type.startswith("e4m3") else (0,)
    for promote, order, chunk in itertools.product(promotions, ("forward", "rotated", "reverse"), (0, 2, 4, 8)):
        for count, tile in itertools.product(splits, (0, 32, 64, 128)):
            for split, combine, workspace in itertools.product(
                ("blocked", "interleaved"), ("ordered", "tree"), workspaces
            ):
                plain = count == 1 and (split, combine, workspace) != ("blocked", "ordered", "fp32")
                plain = plain or (combine == "tree" and count < 4) or (split == "interleaved" and not tile)
                fits = tile % width == 0 and not (chunk and (width % chunk or chunk == width or not tile))
                fits = fits and not (promote and tile and promote % tile) and (order == "forward" or bool(tile))
                if fits and not plain:
                    yield KernelPlan(count, split, combine, workspace, tile, order, chunk, 0, promote)  # type: ignore[arg-type]


def find_plan(
    chip_output: F32, rounded_to: str, a: F32, b: F32, architecture: str, input_type: str
) -> KernelPlan | None:
    """The first plan of the library that gives every bit of a GEMM's output, or None. Screens on a corner of it."""
    fmt = format_of(rounded_to)

    def same(plan: KernelPlan, r: int, c: int) -> bool:
        try:
            own = matmul(a[:r], np.ascontiguousarray(b[:, :c]), architecture, input_type, plan=plan)
        except ConfigError:  # the plan does not divide this K
            return False
        own = own if rounded_to == "fp32" else round_to(own, fmt)
        return not differing(np.ascontiguousarray(own), np.ascontiguousarray(chip_output[:r, :c])).any()

    corner = (4, min(256, b.shape[1]))
    plans = plan_library(architecture, input_type)
    return next((p for p in plans if same(p, *corner) and same(p, a.shape[0], b.shape[1])), None)


def compare_gemms(chip: Chip, input_type: str, seed: int, shapes: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    """The plan that reproduces each shape exactly, and the share of shapes that have one."""
    found: dict[str, str | None] = {}
    for name, (m, n, k) in shapes.items():
        a, b = (x[0] for x in tiles(input_type, "normal", seed, 1, m, k, n))
        output, rounded_to = chip.gemm(a, b, input_type)
        plan = find_plan(output, rounded_to, a, b, chip.architecture, input_type)
        found[name] = None if plan is None else plan.name
    return {"plans": found, "reproduced": sum(p is not None for p in found.values()) / max(len(found), 1)}


# ------------------------------------------------------------ golden vectors


def write_golden(folder: Path, chip: Chip, agreement: Agreement, output: F32) -> Path:
    """The first two tiles' output bits and the hash of all, with provenance; the inputs follow from the seed."""
    from safetensors.numpy import save_file

    path = folder / f"{chip.architecture}-{agreement.input_type}-{agreement.family}-{agreement.seed}.safetensors"
    facts = {
        **asdict(agreement),
        "architecture": chip.architecture,
        "tiles": len(output),
        "sha256": _digest(output),
        "provenance": chip.facts(),
    }
    bits = {"bits": np.ascontiguousarray(output[:2]).view(np.uint32)}
    with whole(path) as temporary:
        save_file(bits, temporary, {"hspi": json.dumps(facts)})
    return path


def check_golden(path: Path) -> int:
    """How many of a golden file's dot products `hspi.numerics` gives other bits for. Raises DataError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            facts, bits = json.loads(f.metadata()["hspi"]), f.get_tensor("bits")
        a, b = tiles(facts["input_type"], facts["family"], facts["seed"], facts["tiles"], M, K, N)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} must be a golden vector written by scripts/silicon.py, but: {error}") from error
    own = matmul_batched(a[: len(bits)], b[: len(bits)], facts["architecture"], facts["input_type"])
    return int(differing(own, bits.view(np.float32)).sum())


def _digest(output: F32) -> str:
    canonical = np.where(np.isnan(output), np.float32(np.nan), output)
    return hashlib.sha256(canonical.astype("<f4").tobytes()).hexdigest()
