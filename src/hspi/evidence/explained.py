"""Which number format explains an observation, whatever its size: evidence that holds on models never trained on.

Two questions, both free of scale. Do the logits stand on a 16-bit type's own grid? And does the residual lie along
what a hypothesis foretells (`hspi.reference.hypotheses`), and how large is it beside that? Statistics of probes add
up; the ratios are formed by `format_features` and `class_features` of their means. The statistics of `residual` follow
as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
from hspi.evidence.replay import top_slots
from hspi.evidence.residual import RESIDUAL_FEATURES, statistics_of
from hspi.reference.hypotheses import HYPOTHESES, NAMES

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

GRIDS = {"bf16": (7, -126), "fp16": (10, -14)}  # fraction bits and the lowest normal exponent (IEEE 754; bfloat16)
H = len(NAMES)
EXPLAINED_STATISTICS = (
    *(f"grid_{t}" for t in GRIDS),
    "rr",  # sum of squared residuals
    *(f"rx_{h}" for h in NAMES),  # residual times prediction
    *(f"xx_{h}" for h in NAMES),  # squared prediction
)
STATISTICS = (*EXPLAINED_STATISTICS, *RESIDUAL_FEATURES)
FORMATS = tuple(dict.fromkeys(h.format for h in HYPOTHESES))
FORMAT_FEATURES = (*(f"grid_{t}" for t in GRIDS), *(f"explained_{f}" for f in FORMATS), "size")
CLASS_FEATURES = (
    *FORMAT_FEATURES,
    *(f"share_{h}" for h in NAMES),
    *(f"size_{h}" for h in NAMES),
    *RESIDUAL_FEATURES,
)
# Share of a residual's square. On the zoo's signatures, right weight-only formats gave 0.95 or more and wrong formats
# up to 0.46, so the best must win as well; any level from 0.15 to 0.8 told formats of a model left out alike.
EXPLAINS = 0.25
OFF_GRID = 0.2  # a value off a grid is 1/4 of a step away on average
TINY = 1e-30  # far below float32's rounding, squared


def grid_distance(logprobs: F32, lse: F64, fraction_bits: int, lowest_exponent: int) -> F64:
    """Mean distance of logit differences from whole steps of a 16-bit type: about 0 on its grid, 1/4 off it.

    logprobs (P, k), most likely first, NaN where fewer came; lse (P,). A step is the finer spacing of the two logits
    that a difference is of: that token's and the first one's. Returns (P,): 1/4 without a pair, NaN without lse.
    """
    logits = logprobs.astype(np.float64) + lse[:, None]
    exponent = np.frexp(np.where(np.isfinite(logits), logits, 1.0))[1] - 1
    exponent = np.maximum(exponent, lowest_exponent)
    steps = (logits[:, 1:] - logits[:, :1]) * np.exp2(fraction_bits - np.minimum(exponent[:, 1:], exponent[:, :1]))
    valid = np.isfinite(steps)
    steps = np.where(valid, steps, 0.0)
    count = valid.sum(axis=1)
    mean = np.abs(steps - np.rint(steps)).sum(axis=1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.where(np.isnan(lse), np.nan, 0.25))


def explained_statistics(data: Aligned, c: int, s: int, k: int) -> F32:
    """Of the k best tokens of one setting: (P, len(EXPLAINED_STATISTICS)).

    The normaliser's shift is removed as a mean, for sums of products want what is left to be free of any constant.
    """
    raw = data.raw[c, s, :, :k]
    slots = top_slots(data.rank[c, s], k).astype(np.int64)
    at = np.maximum(slots, 0)
    residual = np.take_along_axis(data.logprobs[c, s] - data.reference, at, axis=1)
    valid = (slots >= 0) & np.isfinite(residual)
    r = _centred(residual, valid)
    x = _centred(np.take_along_axis(data.predicted, at[None], axis=2).astype(np.float64), valid)
    columns = [
        *(grid_distance(raw, data.lse, *grid) for grid in GRIDS.values()),
        (r * r).sum(axis=1),
        *np.einsum("pk,hpk->hp", r, x),
        *np.einsum("hpk,hpk->hp", x, x),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _centred(values: F64, valid: npt.NDArray[np.bool_]) -> F64:
    """Less the mean of the valid, 0 elsewhere; NaN stays where a valid value is NaN."""
    some = np.where(valid, values, 0.0)
    mean = some.sum(axis=-1, keepdims=True) / np.maximum(valid.sum(axis=-1, keepdims=True), 1)
    return np.asarray(np.where(valid, some - mean, 0.0))


def all_statistics(data: Aligned, k: int) -> F32:
    """For every collected setting: float32 (C, S, P, len(STATISTICS)), NaN where not collected."""
    c, s, p, _ = data.logprobs.shape
    own = np.full((c, s, p, len(EXPLAINED_STATISTICS)), np.nan, np.float32)
    for i, j in zip(*np.nonzero(data.present), strict=True):
        own[i, j] = explained_statistics(data, i, j, k)
    return np.concatenate([own, statistics_of(data, k)], axis=-1)


def format_features(mean: F32) -> F32:
    """What tells a format on any model, from the mean of a sample's probes: (..., F) → (..., len(FORMAT_FEATURES)).

    mean begins with EXPLAINED_STATISTICS. One format at most explains, the best; size is log2 of the residual's over
    that of bf16's rounding, in whole steps. All are saturated or stepped: trees cut at values that they saw, and a
    model never seen gives others.
    """
    share, size = _shares(mean)
    best = np.stack([share[..., [h.format == f for h in HYPOTHESES]].max(axis=-1) for f in FORMATS], axis=-1)
    wins = (best == best.max(axis=-1, keepdims=True)) & (best >= EXPLAINS)
    grids = np.minimum(mean[..., : len(GRIDS)], OFF_GRID)
    steps = np.rint(np.clip(size[..., NAMES.index("bf16")], -4, 4))
    explained = np.where(np.isfinite(best), wins, np.nan)
    return np.concatenate([grids, explained, steps[..., None]], axis=-1).astype(np.float32)


def class_features(mean: F32) -> F32:
    """All that a model seen in training can be told by: (..., len(STATISTICS)) → (..., len(CLASS_FEATURES))."""
    rest = mean[..., len(EXPLAINED_STATISTICS) :]
    return np.concatenate([format_features(mean), *_shares(mean), rest], axis=-1).astype(np.float32)


def _shares(mean: F32) -> tuple[F64, F64]:
    """Of each hypothesis, (..., H): the signed part of the residual's square along it, and log2 of the sizes' ratio."""
    own = mean[..., : len(EXPLAINED_STATISTICS)].astype(np.float64)
    g = len(GRIDS)
    rr, rx, xx = own[..., g : g + 1] + TINY, own[..., g + 1 : g + 1 + H], own[..., g + 1 + H :] + TINY
    return np.sign(rx) * rx * rx / (rr * xx), 0.5 * np.log2(rr / xx)
