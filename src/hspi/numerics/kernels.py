"""Compiled loops behind `matmul`: packing, a general kernel for any input, and fast kernels generated for one unit.

All share one layout, made for the L1 cache. B is panels (P, K·64): 64 adjacent columns of B, K-major, the last panel
padded with zeros; A is blocks (R, K·32) of 32 adjacent rows in the same way; the accumulators are (P, M, 64). Beside
each operand stand its exponents, int16. Importing this needs numba (`matmul` turns its absence into MissingExtra).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hspi.numerics.architectures import Unit

WIDTH = 64  # columns of a panel: four vectors of sixteen fp32
ROWS = 32  # rows of a block, which reuse a group of B while it is in the L1 cache
ZERO, NEAR_ZERO = -126, -100  # exponent field 27 stands for −100, see `fast_source`
NOTHING = 1 << 14  # exponent bounds of an operand without non-zero elements


def compiled(function: Any) -> Any:
    """njit without the GIL, kept on disk where some cache folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return njit(nogil=True)(function)


# ---- packing: exact decode, exponents, and one scan for exactness and for the guard ----


@compiled
def pack_row(source, values, exponents, mantissa_bits, min_exponent, max_value, flush):
    """One run of elements, in int32 lanes: (any inexact, any above the largest value, all finite, lowest, highest)."""
    extra, least = np.int32(23 - mantissa_bits), np.int32(min_exponent)
    inexact, large, special, low, high = np.int32(0), np.int32(0), np.int32(0), np.int32(NOTHING), np.int32(-NOTHING)
    for j in range(source.size):
        x = source[j]
        bits = np.int32(np.float32(x).view(np.int32) & np.int32(0x7FFFFFFF))
        field = np.int32(bits >> np.int32(23))
        significand = np.int32(bits & np.int32(0x7FFFFF))
        significand = np.int32(significand | np.int32(0x800000)) if field > 0 else significand
        exponent = np.int32(max(field, np.int32(1)) - np.int32(127))
        below = max(np.int32(least - exponent), np.int32(0))
        drop = min(np.int32(extra + below), np.int32(24))
        lost = np.int32(significand & np.int32(np.int32(np.int32(1) << drop) - np.int32(1)))
        beyond = np.int32(1) if field == 255 else np.int32(0)
        inexact = np.int32(inexact | (np.int32(0) if field == 255 else lost))
        large = np.int32(large | (np.int32(1) if abs(x) > max_value else np.int32(0)))
        special = np.int32(special | beyond)
        small = flush and (below > 0 or field == 0)
        nothing = small or bits == 0
        e = np.int32(ZERO) if nothing else max(exponent, least)
        values[j] = np.float32(0) if small else x
        exponents[j] = np.int16(e)
        low = min(low, np.int32(NOTHING) if nothing else e)
        high = max(high, np.int32(-NOTHING) if nothing else e)
    return inexact, large, special, low, high


@compiled
def pack(source, columns, width, mantissa_bits, min_exponent, max_value, flush):
    """(K, N) → panels (⌈N/width⌉, K·width) in the schedule's order: values, exponents, and what the scans found."""
    count, total = columns.size, source.shape[1]
    panels = (total + width - 1) // width
    values, exponents = np.zeros((panels, count * width), np.float32), np.full((panels, count * width), ZERO, np.int16)
    inexact, large, special, low, high = False, False, False, NOTHING, -NOTHING
    for q in range(count):
        if columns[q] >= 0:
            row = source[columns[q]]
            for p in range(panels):
                size = min(width, total - p * width)
                at = slice(q * width, q * width + size)
                found = pack_row(
                    row[p * width : p * width + size], values[p][at], exponents[p][at],
                    mantissa_bits, min_exponent, max_value, flush,
                )  # fmt: skip
                inexact, large, special = inexact or found[0] != 0, large or found[1] != 0, special or found[2] != 0
                low, high = min(low, found[3]), max(high, found[4])
    return values, exponents, inexact, large, special, low, high


# ---- the general kernel: float64 holds every product, truncated term and sum exactly ----


@compiled
def pow2(exponent):
    return np.int64((np.int64(exponent) + 1023) << 52).view(np.float64)


@compiled
def exponent_of(c, zero):
    """Exponent of an accumulator, clamped at fp32's smallest normal one; `zero` for zero."""
    field = (np.int64(np.float32(c).view(np.int32)) >> 23) & 255
    return zero if c == 0 else (field if field > 0 else 1) - 127


@compiled
def toward_zero(x, mantissa_bits):
    """float64 → fp32 with `mantissa_bits` kept, never −0."""
    if abs(x) >= 2.0**128:
        return np.float32(np.copysign(np.inf, x))
    if abs(x) < 2.0**-126:
        unit = pow2(-126 - mantissa_bits)
        return np.float32(np.trunc(x / unit) * unit + 0.0)
    mask = ~np.int64((np.int64(1) << (52 - mantissa_bits)) - 1)
    return np.float32(np.int64(np.float64(x).view(np.int64) & mask).view(np.float64))


@compiled
def aligned_sum(a, b, xa, xb, start, stop, stride, row, column, zero, fraction, floor_exponent):
    """Products truncated to 2^(e − fraction), as an integer in float64, and e (at least `floor_exponent`)."""
    e = floor_exponent
    for q in range(start, stop, stride):
        ea = zero if a[q * ROWS + row] == 0 else np.int64(xa[q * ROWS + row])
        eb = zero if b[q * WIDTH + column] == 0 else np.int64(xb[q * WIDTH + column])
        e = max(e, ea + eb)
    total = 0.0
    for q in range(start, stop, stride):
        total += np.trunc(np.float64(a[q * ROWS + row]) * np.float64(b[q * WIDTH + column]) * pow2(fraction - e))
    return total, e


@compiled
def special_sum(a, b, start, stop, row, column, c, overflow):
    """Plain float64 sum: not finite exactly where an input, or a product that reaches `overflow`, is not."""
    total = np.float64(c)
    for q in range(start, stop):
        p = np.float64(a[q * ROWS + row]) * np.float64(b[q * WIDTH + column])
        total += np.copysign(np.inf, p) if abs(p) >= overflow else p
    return total


@compiled
def general_truncating(a, xa, b, xb, c, start, stop, row, column, fraction, sum_fraction, result_bits, zero, parity):
    special = special_sum(a, b, start, stop, row, column, c, np.inf)
    if not np.isfinite(special):
        return np.float32(special)
    total, e = aligned_sum(a, b, xa, xb, start, stop, 1, row, column, zero, fraction, exponent_of(c, zero))
    total += np.trunc(np.float64(c) * pow2(fraction - e))
    return toward_zero(total * pow2(e - fraction), result_bits)


@compiled
def general_two_stage(a, xa, b, xb, c, start, stop, row, column, fraction, sum_fraction, result_bits, zero, parity):
    special = special_sum(a, b, start, stop, row, column, c, 2.0**128)
    if not np.isfinite(special):
        return np.float32(special)
    if parity:
        even, e0 = aligned_sum(a, b, xa, xb, start, stop, 2, row, column, zero, fraction, -1000)
        odd, e1 = aligned_sum(a, b, xa, xb, start + 1, stop, 2, row, column, zero, fraction, -1000)
        e = max(e0, e1)
        total = np.floor(even * pow2(e0 - e)) + np.floor(odd * pow2(e1 - e))
    else:
        total, e = aligned_sum(a, b, xa, xb, start, stop, 1, row, column, zero, fraction, -1000)
    ec = exponent_of(c, zero)
    top = max(e, ec)
    total = np.floor(total * pow2(sum_fraction - fraction + e - top))
    if not (parity and ec < top - fraction - 1):
        total += np.floor(np.float64(c) * pow2(fraction - top)) * pow2(sum_fraction - fraction)
    return np.float32(total * pow2(top - sum_fraction))


@compiled
def node(x, flush):
    return np.float32(np.copysign(np.float32(0), x)) if flush and abs(x) < 2.0**-126 else np.float32(x)


@compiled
def tree_product(x, y, flush):
    exact = np.float64(x) * np.float64(y)
    return np.float32(0) if exact == 0 else node(np.float32(exact), flush)


@compiled
def general_tree(a, b, c, start, stop, row, column, flush, nodes):
    for q in range(start, stop):
        nodes[q - start] = tree_product(a[q * ROWS + row], b[q * WIDTH + column], flush)
    count = stop - start
    while count > 1:
        count //= 2
        for q in range(count):
            nodes[q] = node(np.float32(nodes[2 * q] + nodes[2 * q + 1]), flush)
    return node(np.float32(c + nodes[0]), flush)


@compiled
def general(
    a, xa, b, xb, out, p0, p1, r0, r1, k0, k1,
    kind, step, width, fraction, sum_fraction, result_bits, zero, flush, parity,
):  # fmt: skip
    """Any input: columns [k0, k1) of panels [p0, p1) and row blocks [r0, r1), added into `out`."""
    nodes = np.empty(step, np.float32)
    for p in range(p0, p1):
        for r in range(r0, r1):
            for row in range(min(ROWS, out.shape[1] - r * ROWS)):
                for column in range(WIDTH):
                    c = out[p, r * ROWS + row, column]
                    for start in range(k0, k1, step):
                        if flush and (start - k0) % width == 0 and abs(c) < 2.0**-126:
                            c = np.float32(0)
                        if kind == 1:
                            c = general_tree(a[r], b[p], c, start, start + step, row, column, flush, nodes)
                        elif kind == 0:
                            c = general_truncating(
                                a[r], xa[r], b[p], xb[p], c, start, start + step, row, column,
                                fraction, sum_fraction, result_bits, zero, parity,
                            )  # fmt: skip
                        else:
                            c = general_two_stage(
                                a[r], xa[r], b[p], xb[p], c, start, start + step, row, column,
                                fraction, sum_fraction, result_bits, zero, parity,
                            )  # fmt: skip
                    out[p, r * ROWS + row, column] = c


KINDS = {"truncating": 0, "tree": 1, "two_stage": 2}


def general_arguments(unit: Unit, step: int, width: int) -> tuple[Any, ...]:
    """The tail of `general`'s arguments for one unit."""
    constants = (unit.fraction, unit.sum_fraction, unit.result_bits, unit.zero_exponent)
    return (KINDS[unit.kind], step, width, *constants, unit.flush, unit.parity)
