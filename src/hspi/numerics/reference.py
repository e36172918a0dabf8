"""The scalar reference: one dot product at a time in exact rational arithmetic, written to be read beside the sources.

Slow by design (about 10^5 products a second); `matmul.matmul` is its fast twin and is held to it bit for bit.
Follows MMA-Sim (arXiv 2511.10909). Where its statements leave a choice, the choice and its reason stand in a comment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from hspi.numerics.architectures import Unit
from hspi.numerics.plans import KernelPlan, combine, schedule

Vector = Sequence[float] | npt.NDArray[np.float64]
FP32_MIN_EXPONENT, FP32_MANTISSA = -126, 23
NVIDIA_NAN, AMD_NAN = 0x7FFFFFFF, 0x7FC00000


def matmul(
    a: npt.ArrayLike, b: npt.ArrayLike, unit: Unit, c: npt.ArrayLike | None = None, plan: KernelPlan | None = None
) -> npt.NDArray[np.float32]:
    """(M, K)·(K, N) + (M, N) → float32 (M, N), element by element. Inputs hold values exact in the unit's type."""
    plan = plan or KernelPlan()
    with np.errstate(invalid="ignore"):  # signalling NaNs
        left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
        start = np.zeros((len(left), right.shape[1])) if c is None else np.asarray(c, np.float64)
    chains = schedule(plan, left.shape[1], unit.instruction_k)
    partials = [np.empty(start.shape, np.float32) for _ in chains]
    for i, j in np.ndindex(*start.shape):
        for s, segments in enumerate(chains):
            acc = float(start[i, j]) if s == 0 else 0.0
            x, y = _padded(left[i]), _padded(right[:, j])
            if plan.promote:
                for columns in segments:
                    acc = _add_fp32(acc, dot(x[columns], y[columns], 0.0, unit, plan.instruction_k))
            else:
                acc = dot(x[segments[0]], y[segments[0]], acc, unit, plan.instruction_k)
            partials[s][i, j] = acc
    return _canonical(combine(partials, plan), unit)


def dot(a: Vector, b: Vector, c: float, unit: Unit, instruction_k: int = 0) -> float:
    """Σ a·b + c as a chain of instructions in order; the length is a multiple of the instruction's."""
    width = instruction_k or unit.instruction_k
    for i in range(0, len(a), width):
        c = instruction([float(x) for x in a[i : i + width]], [float(x) for x in b[i : i + width]], c, unit)
    return c


def instruction(a: Vector, b: Vector, c: float, unit: Unit) -> float:
    """One instruction: its steps in sequence, each from the accumulator that the one before it left."""
    if unit.flush:  # CDNA2: at the instruction's start, subnormal inputs and a subnormal (or negative zero) c become +0
        a, b = [_flush(x, unit.format.min_exponent) for x in a], [_flush(x, unit.format.min_exponent) for x in b]
        c = _flush(c, FP32_MIN_EXPONENT)
    step = {"truncating": truncating_step, "tree": tree_step, "two_stage": two_stage_step}[unit.kind]
    for i in range(0, len(a), unit.step):
        c = step(a[i : i + unit.step], b[i : i + unit.step], c, unit)
    return c


def truncating_step(a: Vector, b: Vector, c: float, unit: Unit) -> float:
    """NVIDIA: align to the largest exponent, truncate every term, add exactly, round toward zero."""
    special = _special_sum([x * y for x, y in zip(a, b, strict=True)], c)
    if special is not None:
        return special
    exponents = _product_exponents(a, b, unit)
    e = max(*exponents, _exponent(c, FP32_MIN_EXPONENT, unit))
    quantum = _pow2(e - unit.fraction)
    terms = [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)] + [Fraction(c)]
    total = sum(math.trunc(t / quantum) for t in terms)
    return _round_fp32(total * quantum, "zero", unit.result_bits)


def tree_step(a: Vector, b: Vector, c: float, unit: Unit) -> float:
    """CDNA1/2: products fma(a, b, +0), a balanced tree of fp32 additions, then c + tree; nearest even throughout."""

    def node(value: float) -> float:
        # Flushing looks at the rounded value: what reaches 2^-126 by rounding is normal and stays.
        return math.copysign(0.0, value) if unit.flush and abs(value) < 2.0**FP32_MIN_EXPONENT else value

    nodes = [node(_multiply_fp32(x, y)) for x, y in zip(a, b, strict=True)]
    while len(nodes) > 1:
        nodes = [node(_add_fp32(p, q)) for p, q in zip(nodes[::2], nodes[1::2], strict=True)]
    return node(_add_fp32(c, nodes[0]))


def two_stage_step(a: Vector, b: Vector, c: float, unit: Unit) -> float:
    """CDNA3: products aligned among themselves, then their sum against c with two different floors; nearest even."""
    # A product that overflows fp32 acts as an infinity of its sign, so it meets others by IEEE rules (∞ − ∞ is NaN).
    products = [_overflow_to_inf(x * y) for x, y in zip(a, b, strict=True)]
    special = _special_sum(products, c)
    if special is not None:
        return special
    total, em = _stage_one(a, b, unit)
    ec = _exponent(c, FP32_MIN_EXPONENT, unit)
    me = max(em, ec)
    total = _floor_to(total, me - unit.sum_fraction)
    dropped = unit.parity and ec < me - unit.fraction - 1
    addend = Fraction(0) if dropped else _floor_to(Fraction(c), me - unit.fraction)
    return _round_fp32(total + addend, "nearest", FP32_MANTISSA)


def _stage_one(a: Vector, b: Vector, unit: Unit) -> tuple[Fraction, int]:
    """The products' truncated sum and its exponent; with `parity`, even and odd sums apart, then floored together."""
    if not unit.parity:
        return _truncated_sum(a, b, unit)
    halves = [_truncated_sum(a[i::2], b[i::2], unit) for i in (0, 1)]
    em = max(e for _, e in halves)
    return sum((_floor_to(t, em - unit.fraction) for t, _ in halves), Fraction(0)), em


def _truncated_sum(a: Vector, b: Vector, unit: Unit) -> tuple[Fraction, int]:
    em = max(_product_exponents(a, b, unit))
    quantum = _pow2(em - unit.fraction)
    return sum(math.trunc(Fraction(x) * Fraction(y) / quantum) for x, y in zip(a, b, strict=True)) * quantum, em


def _product_exponents(a: Vector, b: Vector, unit: Unit) -> list[int]:
    """Sums of operand exponents, not the exponents of the products: 1.5·1.5 counts as 0 although it is above 2."""
    low = unit.format.min_exponent
    return [_exponent(x, low, unit) + _exponent(y, low, unit) for x, y in zip(a, b, strict=True)]


def _exponent(x: float, low: int, unit: Unit) -> int:
    # Each zero operand counts alone, so 0·2^100 weighs −26 and 0·0 weighs −252. (Later revisions of the published
    # model give a zero *product* one fixed exponent instead; both agree wherever a sum has a normal-sized term.)
    return unit.zero_exponent if x == 0 else max(math.frexp(x)[1] - 1, low)


def _special_sum(products: Vector, c: float) -> float | None:
    """∞ or NaN if a product or c is not finite (no product of finite inputs overflows float64), else None."""
    values = [*products, c]
    if all(math.isfinite(v) for v in values):
        return None
    return math.fsum(v for v in values if not math.isfinite(v)) if not _opposed(values) else math.nan


def _opposed(values: Vector) -> bool:
    return math.inf in values and -math.inf in values


def _overflow_to_inf(product: float) -> float:
    return math.copysign(math.inf, product) if abs(product) >= 2.0**128 else product


def _multiply_fp32(x: float, y: float) -> float:
    if not (math.isfinite(x) and math.isfinite(y)):
        return x * y + 0.0
    exact = Fraction(x) * Fraction(y)
    return _round_fp32(exact, "nearest", FP32_MANTISSA) if exact else 0.0  # −0 + +0 is +0


def _add_fp32(x: float, y: float) -> float:
    exact = Fraction(x) + Fraction(y) if math.isfinite(x) and math.isfinite(y) else None
    # float64 addition gives the right zero, ∞ or NaN where there is nothing to round
    return _round_fp32(exact, "nearest", FP32_MANTISSA) if exact else x + y


def _flush(x: float, low: int) -> float:
    return 0.0 if abs(x) < 2.0**low else x


def _floor_to(x: Fraction, exponent: int) -> Fraction:
    quantum = _pow2(exponent)
    return math.floor(x / quantum) * quantum


def _round_fp32(x: Fraction, rounding: str, mantissa: int) -> float:
    """x as fp32 with `mantissa` bits kept: `zero` never gives −0; `nearest` keeps the sign."""
    if x == 0:
        return 0.0
    exponent = abs(x).numerator.bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < _pow2(exponent)
    quantum = _pow2(max(exponent, FP32_MIN_EXPONENT) - mantissa)
    units = math.trunc(x / quantum) if rounding == "zero" else round(x / quantum)  # round() takes even on a tie
    if abs(units * quantum) >= 2**128:
        return math.copysign(math.inf, x)
    return float(units * quantum) if units or rounding == "zero" else math.copysign(0.0, x)


def _pow2(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _padded(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.append(row, 0.0)  # index −1, PADDING, reads this zero


def _canonical(result: npt.NDArray[np.float32], unit: Unit) -> npt.NDArray[np.float32]:
    """One NaN for each vendor: 0x7FFFFFFF on NVIDIA, the quiet 0x7FC00000 on AMD (payloads are not modelled)."""
    nan = NVIDIA_NAN if unit.kind == "truncating" else AMD_NAN
    bits = np.where(np.isnan(result), np.uint32(nan), result.view(np.uint32))
    return bits.astype(np.uint32).view(np.float32)
