"""Matrix products with the bits of a GPU's matrix unit: `matmul(a, b, "hopper", "bf16")`.

The twin of `reference`: a general kernel for any input and a fast one behind a guard, both exact (the formulation:
decode to fp32 and exponents, scale each step by a power of two, let the float → int conversion truncate).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError, DataError, MissingExtra
from hspi.numerics.architectures import Unit, unit
from hspi.numerics.formats import is_exact
from hspi.numerics.plans import KernelPlan, combine, schedule
from hspi.numerics.reference import AMD_NAN, NVIDIA_NAN

Matrix = npt.NDArray[np.float32]
Path = Literal["auto", "general", "fast"]
DEFAULT_PLAN = KernelPlan()
NOTHING = 1 << 14


@dataclass(frozen=True, slots=True)
class Packed:
    """An operand in a schedule's order: values and exponents in the kernels' layout, and what one scan found.

    lowest, highest: exponents over the non-zero elements (clamped at the type's smallest normal one).
    """

    unit: Unit
    plan: KernelPlan
    shape: tuple[int, int]
    values: Matrix
    exponents: npt.NDArray[np.int16]
    finite: bool
    lowest: int
    highest: int


def matmul(
    a: Any,
    b: Any,
    architecture: str,
    input_type: str,
    c: Any = None,
    plan: KernelPlan = DEFAULT_PLAN,
    *,
    threads: int = 1,
    path: Path = "auto",
) -> Matrix:
    """(M, K)·(K, N) [+ c (M, N)] → float32 (M, N) with the bits of `architecture`'s unit for `input_type`.

    a, b: NumPy arrays or torch tensors, any real dtype, whose values are exact in the input type; b may come from
    `pack_b`, which saves packing a weight again. c: exact in fp32; it enters the first accumulator (with
    `plan.promote`, the fp32 register). path: `auto` takes the fast kernel where its guard allows, for the same bits.
    Raises UnknownName or ConfigError (no such unit, plan or path), DataError (shapes, inexact values),
    MissingExtra (numba). Source: arXiv 2511.10909; emulated, not compared with silicon.
    """
    return multiply(a, b, unit(architecture, input_type), c, plan, threads=threads, path=path)


def pack_b(b: Any, architecture: str, input_type: str, plan: KernelPlan = DEFAULT_PLAN) -> Packed:
    """(K, N) packed once for many products under one unit and plan."""
    return _pack(_matrix("b", b), unit(architecture, input_type), plan, rows=False)


def multiply(
    a: Any,
    b: Any,
    record: Unit,
    c: Any = None,
    plan: KernelPlan = DEFAULT_PLAN,
    *,
    threads: int = 1,
    path: Path = "auto",
) -> Matrix:
    """`matmul` for an explicit record, such as one with a constant changed."""
    left = _matrix("a", a)
    right = b if isinstance(b, Packed) else _pack(_matrix("b", b), record, plan, rows=False)
    if isinstance(b, Packed) and (right.unit, right.plan) != (record, plan):
        raise ConfigError("a packed operand must be used with the unit and plan that it was packed for")
    if left.shape[1] != right.shape[0]:
        raise DataError(f"a (M, K) and b (K, N) must share K, but got {left.shape} and {right.shape}")
    first = _pack(left, record, plan, rows=True)
    start = _start(c, left.shape[0], right.shape[1])
    fast = path != "general" and guarded(first, right, start if c is not None else None)
    if path == "fast" and not fast:
        raise ConfigError("operands of the fast path must pass its guard, but these do not: use path='auto'")
    if fast:
        start += np.float32(0)  # −0 + −0 would keep a sign that the units drop
    run = _kernel(record, plan, fast)
    partials, at = [], 0
    for s, segments in enumerate(schedule(plan, left.shape[1], record.instruction_k)):
        total = start if s == 0 else np.zeros_like(start)
        for columns in segments:
            into = np.zeros_like(start) if plan.promote else total
            _run(run, first, right, into, at, at + len(columns), threads)
            at += len(columns)
            if plan.promote:
                with np.errstate(all="ignore"):
                    total = total + into
        partials.append(_rows(total, right.shape[1]))
    result = combine(partials, plan)
    result.view(np.uint32)[np.isnan(result)] = NVIDIA_NAN if record.kind == "truncating" else AMD_NAN
    return result


def guarded(a: Packed, b: Packed, c: Matrix | None = None) -> bool:
    """Whether the fast kernel is exact for these operands.

    All finite, with non-zero elements; the smallest product or c is at least 2^-90, so nothing that follows from them
    is below fp32's normal range; the largest leaves room for K terms below 2^120; a zero operand's exponent is at
    least 32 below the smallest term, so below any multiple of it that a step can leave (CDNA3 keeps 31 bits); and the
    two ends are near enough for fp32 to hold c against the largest sum (CDNA3's floor).
    """
    if not (a.finite and b.finite) or NOTHING in (a.lowest, b.lowest):
        return False
    low, high = a.lowest + b.lowest, a.highest + b.highest
    if c is not None and c.any():
        if not np.isfinite(c).all():
            return False
        exponents = np.frexp(c[c != 0])[1] - 1
        low, high = min(low, int(exponents.min())), max(high, int(exponents.max()))
    top = high + 3 + max(a.shape[1] - 1, 0).bit_length()
    zeros_below = a.unit.zero_exponent + max(a.highest, b.highest) <= low - 32
    return low >= -90 and top <= 120 and top - low <= 140 and zeros_below


def _kernel(record: Unit, plan: KernelPlan, fast: bool) -> Callable[..., Any]:
    """`(a, xa, b, xb, out, p0, p1, r0, r1, k0, k1)` for this unit, plan and path."""
    width = plan.instruction_k or record.instruction_k
    step = min(record.step, width)
    if width % step:
        raise ConfigError(f"instruction_k must be a multiple of the unit's step {step}, but got {width}")
    kernels = _compiled()
    if fast:
        from hspi.numerics.generated import fast_kernel

        return fast_kernel(record, step)
    tail = kernels.general_arguments(record, step, width)
    return lambda *arguments: kernels.general(*arguments, *tail)


def _run(run: Callable[..., Any], a: Packed, b: Packed, out: Matrix, k0: int, k1: int, threads: int) -> None:
    """One segment over all rows and panels; threads share out the panels, or the row blocks if panels are too few."""
    if k0 == k1 or not out.size:
        return
    panels, blocks = len(b.values), len(a.values)
    by_panel = panels >= threads
    edges = np.linspace(0, panels if by_panel else blocks, threads + 1).astype(int).tolist()
    parts = [(lo, hi, 0, blocks) if by_panel else (0, panels, lo, hi) for lo, hi in pairwise(edges)]
    operands = (a.values, a.exponents, b.values, b.exponents, out)
    if threads == 1:
        run(*operands, *parts[0], k0, k1)
        return
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(run, *operands, *part, k0, k1) for part in parts]:
            job.result()


def _pack(matrix: Matrix, record: Unit, plan: KernelPlan, *, rows: bool) -> Packed:
    """a (rows, K) in blocks of rows, or b (K, columns) in panels, in the plan's order."""
    fmt = record.format
    chains = schedule(plan, matrix.shape[1 if rows else 0], record.instruction_k)
    columns = np.concatenate([c for segments in chains for c in segments]).astype(np.int64)
    kernels = _compiled()
    source, width = (np.ascontiguousarray(matrix.T), kernels.ROWS) if rows else (matrix, kernels.WIDTH)
    facts = (fmt.mantissa_bits, fmt.min_exponent, fmt.max_value, record.flush)
    values, exponents, inexact, large, special, lowest, highest = kernels.pack(source, columns, width, *facts)
    # An ∞ is among the large ones and a NaN is not, so a format with ∞ asks again where something is not finite.
    if inexact or (large and not (special and is_exact(matrix, fmt).all())):
        raise DataError(
            f"elements of {'a' if rows else 'b'} must be exact in {fmt.name}, but some are not: round first"
        )
    return Packed(record, plan, matrix.shape, values, exponents, not special, lowest, highest)  # type: ignore[arg-type]


def _matrix(name: str, x: Any) -> Matrix:
    """Any array or tensor as C-contiguous float32 (rows, columns) with the same values."""
    if hasattr(x, "detach"):  # a torch tensor; float32 holds every floating dtype here exactly but float64
        x = x.detach().cpu()
        x = x.double().numpy() if x.element_size() > 4 else x.float().numpy()
    try:
        array = np.asarray(x)
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(array, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be an array of real numbers, but got {type(x).__name__}") from None
    if matrix.ndim != 2:
        raise DataError(f"{name} must have two axes, but got shape {matrix.shape}")
    if array.dtype.itemsize > 2 and array.dtype != np.float32 and not np.array_equal(array, matrix, equal_nan=True):
        raise DataError(f"elements of {name} must be exact in float32, but some are not")
    return matrix


def _start(c: Any, rows: int, columns: int) -> Matrix:
    """The first accumulators, (P, M, 64): c, or zeros."""
    width = _compiled().WIDTH
    panels = -(-columns // width)
    if c is None:
        return np.zeros((panels, rows, width), np.float32)
    given = _matrix("c", c)
    if given.shape != (rows, columns):
        raise DataError(f"c must have shape {(rows, columns)}, but got {given.shape}")
    padded = np.pad(given, ((0, 0), (0, panels * width - columns)))
    return np.ascontiguousarray(padded.reshape(rows, panels, width).transpose(1, 0, 2))


def _rows(accumulators: Matrix, columns: int) -> Matrix:
    """(P, M, 64) → (M, columns)."""
    panels, rows, width = accumulators.shape
    return np.ascontiguousarray(accumulators.transpose(1, 0, 2).reshape(rows, panels * width)[:, :columns])


def _compiled() -> Any:
    try:
        from hspi.numerics import kernels
    except ImportError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise MissingExtra("numba", "numerics") from None
    return kernels
