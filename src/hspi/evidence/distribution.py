"""Distribution: what the log-probabilities alone show, without weights.

Two extractors. `hspi_ld` is the paper's (arXiv 2411.05197, figure 2): each float32 is split into sign, exponent and
fraction, each read as an integer, all flattened. `grid_statistics` are ours: differences of log-probabilities are
differences of logits, and logits stored in 16 bits stand on a coarse grid, tie often, and leave low bits alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

GRID_BITS = tuple(range(1, 19))  # spacings 2^-1 … 2^-18; below that the log-softmax's own rounding hides the grid
MANTISSA_BITS = 23
DISTRIBUTION_FEATURES = (
    *(f"grid_{j}" for j in GRID_BITS),
    *(f"bit_{j}" for j in range(MANTISSA_BITS)),
    "ties",
    "top",
    "gap",
    "spread",
)


def split_float32(values: F32) -> npt.NDArray[np.int32]:
    """Sign, biased exponent and fraction of each float32 as integers: (…) → (…, 3)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    parts = np.empty((*values.shape, 3), np.int32)
    parts[..., 0] = bits >> 31
    parts[..., 1] = (bits >> 23) & 0xFF
    parts[..., 2] = bits & 0x7FFFFF
    return parts


def hspi_ld(logprobs: F32, batch: int = 4) -> F32:
    """The paper's samples: (prompts, tokens, values) → (prompts // batch, batch · tokens · values · 3).

    The published protocol joins 4 prompts of 8 tokens with 256 values each.
    """
    n = len(logprobs) // batch
    joined = logprobs[: n * batch].reshape(n, batch, *logprobs.shape[1:])
    return split_float32(joined).reshape(n, -1).astype(np.float32)


def grid_statistics(logprobs: F32) -> F32:
    """Per-probe statistics whose mean over a sample of probes is the feature: (…, k) → (…, len(DISTRIBUTION_FEATURES)).

    logprobs: the k largest, in falling order, NaN where fewer came.
    """
    x = logprobs.astype(np.float64)
    differences = x[..., 1:] - x[..., :1]
    valid = np.isfinite(differences)
    count = np.maximum(valid.sum(axis=-1), 1)
    out = np.empty((*logprobs.shape[:-1], len(DISTRIBUTION_FEATURES)), np.float32)
    for i, j in enumerate(GRID_BITS):
        scaled = differences * 2.0**j
        out[..., i] = np.where(valid, np.abs(scaled - np.rint(scaled)), 0).sum(axis=-1) / count
    bits = np.ascontiguousarray(logprobs, np.float32).view(np.uint32)
    came = np.isfinite(logprobs)
    for j in range(MANTISSA_BITS):
        out[..., len(GRID_BITS) + j] = np.where(came, (bits >> j) & 1, 0).sum(axis=-1) / np.maximum(
            came.sum(axis=-1), 1
        )
    steps = np.diff(x, axis=-1)
    out[..., -4] = np.where(np.isfinite(steps), np.abs(steps) < 2e-6, False).sum(axis=-1) / count
    out[..., -3] = x[..., 0]
    out[..., -2] = np.where(valid[..., 0], differences[..., 0], 0)
    out[..., -1] = np.where(valid, differences, 0).sum(axis=-1) / count
    return out
