"""`residual_statistics` and `grid_statistics` in one compiled pass; `residual.py` is its specification.

A test holds both together. Lanes are padded to whole vectors, so that LLVM leaves no scalar remainder.
"""

from __future__ import annotations

import numba
import numpy as np

from hspi.evidence.distribution import GRID_BITS, MANTISSA_BITS
from hspi.evidence.median import median

OCTAVES = tuple(range(-24, 3))  # log2 of |residual|: from float32's rounding to a wrong model
_GRID, _BITS, _OCTAVES = len(GRID_BITS), MANTISSA_BITS, len(OCTAVES)
_LANES = 24  # not below any of the first two
_LOWEST, _HIGHEST = OCTAVES[0], OCTAVES[-1]
_POWERS = 2.0 ** np.arange(GRID_BITS[0], GRID_BITS[0] + _LANES)
_SHIFTS = np.arange(_LANES, dtype=np.int32)
_ROUND = 1.5 * 2.0**52  # added and taken away again, rounds a float64 below 2^51 to the nearest even integer
_FRACTION, _ONE = (1 << 52) - 1, 1023 << 52


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grid_row(raw, grid, ones, out):  # type: ignore[no-untyped-def]
    """raw float32 (k,); grid float64 and ones int32 (_LANES,) are scratch; out float32 (DISTRIBUTION_FEATURES,)."""
    grid[:] = 0.0
    ones[:] = 0
    k = len(raw)
    first = np.float64(raw[0])
    codes = raw.view(np.int32)
    came = count = ties = 0
    spread = 0.0
    for i in range(k):
        value = np.float64(raw[i])
        if not np.isfinite(value):
            continue
        came += 1
        for b in range(_LANES):
            ones[b] += (codes[i] >> _SHIFTS[b]) & np.int32(1)
        d = value - first
        if i == 0 or not np.isfinite(d):
            continue
        count += 1
        spread += d
        for j in range(_LANES):
            x = d * _POWERS[j]
            grid[j] += abs(x - ((x + _ROUND) - _ROUND))
        if abs(value - np.float64(raw[i - 1])) < 2e-6:
            ties += 1
    n = max(count, 1)
    for j in range(_GRID):
        out[j] = grid[j] / n
    for b in range(_BITS):
        out[_GRID + b] = ones[b] / max(came, 1)
    gap = np.float64(raw[1]) - first if k > 1 else 0.0
    out[_GRID + _BITS] = ties / n
    out[_GRID + _BITS + 1] = first
    out[_GRID + _BITS + 2] = gap if np.isfinite(gap) else 0.0
    out[_GRID + _BITS + 3] = spread / n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def residual_rows(logprobs, rank, reference, raw, out):  # type: ignore[no-untyped-def]
    """logprobs float32, rank uint8 and reference float64 (P, K); raw float32 (P, k); out float32 (P, features)."""
    k = raw.shape[1]
    grid, ones = np.empty(_LANES), np.empty(_LANES, np.int32)
    residual, origin, work = np.empty(k), np.empty(k), np.empty(k)
    codes = work.view(np.int64)
    for p in range(len(logprobs)):
        m = 0
        mean = 0.0
        for s in range(logprobs.shape[1]):
            if rank[p, s] >= k:
                continue
            x = np.float64(logprobs[p, s]) - reference[p, s]
            if not np.isfinite(x):
                continue
            residual[m], origin[m] = x, reference[p, s]
            mean += reference[p, s]
            m += 1
        n = max(m, 1)
        mean /= n
        shift = median(residual, m) if m else 0.0
        row = out[p]
        row[:_OCTAVES] = 0.0
        logs = square = fourth = along = spread = largest = 0.0
        product = 1.0
        positive = 0
        for j in range(m):
            x = residual[j] - shift
            c = origin[j] - mean
            q = x * x
            largest = max(largest, abs(x))
            positive += x > 0
            square += q
            fourth += q * q
            along += x * c
            spread += c * c
            work[j] = max(abs(x), 2.0**-26)
            exponent = (codes[j] >> 52) - 1023
            codes[j] = (codes[j] & _FRACTION) | _ONE  # work[j] is its significand now, in [1, 2)
            logs += exponent
            product *= work[j]
            row[min(max(exponent, _LOWEST), _HIGHEST) - _LOWEST] += 1.0
        for j in range(_OCTAVES):
            row[j] /= n
        square /= n
        rms = np.sqrt(square) + 2.0**-30
        row[_OCTAVES] = (logs + np.log2(product)) / n
        row[_OCTAVES + 1] = np.log2(rms)
        row[_OCTAVES + 2] = np.log2(largest + 2.0**-30)
        row[_OCTAVES + 3] = fourth / n / (rms * rms * rms * rms)
        row[_OCTAVES + 4] = along / (np.sqrt(spread * n) * rms + 2.0**-60)
        row[_OCTAVES + 5] = positive / n
        row[_OCTAVES + 6] = 1.0 - m / k
        _grid_row(raw[p], grid, ones, row[_OCTAVES + 7 :])
