"""Residual: observed less float64 log-probabilities of the same weights, less each position's median (DESIGN.md §1).

How large it is, and how its sizes are spread, tells the number format and the accumulation, on models never seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
from hspi.evidence.distribution import DISTRIBUTION_FEATURES, grid_statistics
from hspi.evidence.replay import top_slots
from hspi.evidence.residual_kernel import OCTAVES, residual_rows

F32 = npt.NDArray[np.float32]

RESIDUAL_FEATURES = (
    *(f"octave_{j}" for j in OCTAVES),
    "log2_size",
    "log2_rms",
    "log2_max",
    "peakedness",
    "slope",
    "positive",
    "missing",
    *DISTRIBUTION_FEATURES,
)


def gather(data: Aligned, c: int, s: int, k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Residual (median removed) and reference of the k best tokens: float64 (P, k) each, NaN where no slot."""
    slots = top_slots(data.rank[c, s], k).astype(np.int64)
    values = np.take_along_axis(data.logprobs[c, s], np.maximum(slots, 0), axis=1).astype(np.float64)
    reference = np.take_along_axis(data.reference, np.maximum(slots, 0), axis=1)
    residual = np.where(slots >= 0, values - reference, np.nan)
    empty = ~np.isfinite(residual).any(axis=1, keepdims=True)
    shift = np.nanmedian(np.where(empty, 0.0, residual), axis=1, keepdims=True)
    return residual - shift, np.where(slots >= 0, reference, np.nan)


def residual_statistics(residual: npt.NDArray[np.float64], reference: npt.NDArray[np.float64], raw: F32) -> F32:
    """Per-probe statistics whose mean over a sample is the feature: (P, k) → (P, len(RESIDUAL_FEATURES))."""
    valid = np.isfinite(residual)
    r = np.where(valid, residual, 0.0)
    count = np.maximum(valid.sum(axis=1), 1)
    size = np.log2(np.maximum(np.abs(r), 2.0**-26))
    octave = np.clip(np.floor(size), OCTAVES[0], OCTAVES[-1])
    columns = [((octave == j) & valid).sum(axis=1) / count for j in OCTAVES]
    square = (r * r).sum(axis=1) / count
    rms = np.sqrt(square) + 2.0**-30
    middle = np.where(valid, reference, 0.0).sum(axis=1) / count
    centred = np.where(valid, reference - middle[:, None], 0.0)
    columns += [
        np.where(valid, size, 0).sum(axis=1) / count,
        np.log2(rms),
        np.log2(np.abs(r).max(axis=1) + 2.0**-30),
        (r**4).sum(axis=1) / count / rms**4,
        (r * centred).sum(axis=1) / (np.sqrt((centred**2).sum(axis=1) * count) * rms + 2.0**-60),
        ((r > 0) & valid).sum(axis=1) / count,
        1.0 - valid.mean(axis=1),
    ]
    return np.concatenate([np.stack(columns, axis=1), grid_statistics(raw)], axis=1).astype(np.float32)


def statistics_of(data: Aligned, k: int) -> F32:
    """For every collected setting: float32 (C, S, P, len(RESIDUAL_FEATURES)), NaN where not collected.

    `residual_statistics` of what `gather` gives, by the kernel that does both in one pass.
    """
    c, s, p, _ = data.logprobs.shape
    out = np.full((c, s, p, len(RESIDUAL_FEATURES)), np.nan, np.float32)
    for i, j in zip(*np.nonzero(data.present), strict=True):
        raw = np.ascontiguousarray(data.raw[i, j, :, :k])
        residual_rows(data.logprobs[i, j], data.rank[i, j], data.reference, raw, out[i, j])
    return out
