"""The K schedule of a GEMM kernel: which products go into which accumulator, in which order, and how partials meet.

A plan becomes a `Schedule`: for each accumulator (chain) the order in which it consumes the columns of A. Everything
downstream runs plain in-order loops over that order, so the arithmetic knows nothing of plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError
from hspi.numerics.formats import format_of, round_to

Order = Literal["forward", "reverse", "rotated"]
Split = Literal["blocked", "interleaved"]
Combine = Literal["ordered", "tree"]
Workspace = Literal["fp32", "bf16", "fp16"]
Schedule = tuple[npt.NDArray[np.int64], ...]
Partials = npt.NDArray[np.float32]
PADDING = -1  # a column of zeros


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """How a kernel walks K. The default is one loop of instructions in order.

    instruction_k: products of one instruction; 0 is the unit's own. A shorter one also shortens its steps.
    k_tile:    products of one main-loop iteration; 0 is an accumulator's whole share of K. `order` and `chunk` act
               inside a tile.
    order:     instructions of a tile `forward`, `reverse`, or `rotated` (starting at the middle one).
    chunk:     0: an instruction takes adjacent columns. Else it takes runs of `chunk` columns, dealt in turn to the
               tile's instructions, as kernels do whose loads are wider than an instruction's fragment.
    split_k:   accumulators over K. `blocked` gives each an adjacent range of tiles, `interleaved` deals tiles in turn.
    combine:   partials are added in fp32, rounded to nearest even, `ordered` from the first or as a binary `tree`.
    workspace: the format in which partials wait to be added.
    promote:   0, or the products after which the accumulator is added to an fp32 register (nearest even) and restarts
               from zero, as fp8 kernels do around a narrow accumulator. A multiple of the tile where there is one.
    """

    split_k: int = 1
    split: Split = "blocked"
    combine: Combine = "ordered"
    workspace: Workspace = "fp32"
    k_tile: int = 0
    order: Order = "forward"
    chunk: int = 0
    instruction_k: int = 0
    promote: int = 0

    def __post_init__(self) -> None:
        numbers = (self.k_tile, self.chunk, self.instruction_k, self.promote)
        if self.split_k < 1 or min(numbers) < 0:
            raise ConfigError(f"`split_k >= 1` and no negative number must hold, but got {self}")
        for value, allowed in (
            (self.split, ("blocked", "interleaved")),
            (self.combine, ("ordered", "tree")),
            (self.workspace, ("fp32", "bf16", "fp16")),
            (self.order, ("forward", "reverse", "rotated")),
        ):
            if value not in allowed:
                raise ConfigError(f"a kernel plan's choice must be one of {', '.join(allowed)}, but got {value!r}")

    @property
    def name(self) -> str:
        """Short and unique, for reports: `k-loop` is the default plan."""
        parts = [f"split{self.split_k}{'' if self.split == 'blocked' else '-interleaved'}"] if self.split_k > 1 else []
        if self.split_k > 1:
            parts += [w for w in (self.combine, self.workspace) if w not in ("ordered", "fp32")]
        parts += [self.order] if self.order != "forward" else []
        for label in ("k_tile", "chunk", "instruction_k", "promote"):
            parts += [f"{label.removesuffix('_k')}{getattr(self, label)}"] if getattr(self, label) else []
        return "+".join(parts) or "k-loop"


def schedule(plan: KernelPlan, k: int, instruction_k: int) -> list[Schedule]:
    """Columns in the order in which each accumulator takes them.

    Returns `split_k` chains; a chain is a tuple of segments, int64, each a multiple of the instruction's length
    (PADDING fills the last tile) and run from a fresh accumulator: one segment unless the plan promotes.
    Raises ConfigError where tile, chunk and instruction do not divide.
    """
    width = plan.instruction_k or instruction_k
    tile = plan.k_tile or max(_round_up(-(-k // plan.split_k), width), width)
    _must_divide("k_tile", tile, "instruction_k", width)
    if plan.chunk:
        _must_divide("instruction_k", width, "chunk", plan.chunk)
    count = _round_up(k, tile) // tile
    columns = np.arange(count * tile).reshape(count, tile)[:, _within_tile(plan, tile, width)]
    columns = np.where(columns < k, columns, PADDING)
    return [_segments(columns[part].ravel(), plan.promote, width) for part in _split(plan, count)]


def combine(partials: list[Partials], plan: KernelPlan) -> Partials:
    """Add the accumulators' results, float32 arrays of one shape, as the plan says."""
    if len(partials) == 1:
        return partials[0]
    if plan.workspace != "fp32":
        partials = [round_to(p, format_of(plan.workspace)) for p in partials]
    with np.errstate(all="ignore"):
        while len(partials) > 1:
            head = partials[0] + partials[1]
            if plan.combine == "ordered":
                partials = [head, *partials[2:]]
            else:
                pairs = [p + q for p, q in zip(partials[2::2], partials[3::2], strict=False)]
                partials = [head, *pairs, *(partials[-1:] if len(partials) % 2 else [])]
    return partials[0]


def _within_tile(plan: KernelPlan, tile: int, width: int) -> npt.NDArray[np.int64]:
    count, chunk = tile // width, plan.chunk or width
    # (runs of an instruction, instructions, chunk) → an instruction's columns side by side
    order = np.arange(tile).reshape(width // chunk, count, chunk).transpose(1, 0, 2).reshape(count, width)
    if plan.order == "reverse":
        order = order[::-1]
    elif plan.order == "rotated":
        order = np.roll(order, -(count // 2), axis=0)
    return order.ravel()


def _split(plan: KernelPlan, tiles: int) -> list[npt.NDArray[np.int64]]:
    index = np.arange(tiles)
    if plan.split == "interleaved":
        return [index[s :: plan.split_k] for s in range(plan.split_k)]
    size = -(-tiles // plan.split_k)
    return [index[s * size : (s + 1) * size] for s in range(plan.split_k)]


def _segments(columns: npt.NDArray[np.int64], promote: int, width: int) -> Schedule:
    if not promote:
        return (columns,)
    _must_divide("promote", promote, "instruction_k", width)
    return tuple(columns[i : i + promote] for i in range(0, max(len(columns), 1), promote))


def _must_divide(what: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise ConfigError(f"{what} must be a multiple of {by}, but got {value} and {divisor}")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
