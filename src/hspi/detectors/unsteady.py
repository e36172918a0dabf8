"""Unsteady platforms, made in software to train with and for nothing else.

Few real platforms differ from themselves from batch to batch (dynamic quantization by tensor does, since the company
in a batch sets the scale). A verifier that met none would call each new one unknown. So some platforms get twins that
answer with fresh noise in every setting; the verifier learns to weigh distance against a candidate's own unsteadiness.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hspi.evidence.aligned import ABSENT
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library

EVERY = 4  # each fourth platform gets a twin
FACTORS = (0.5, 1.0, 2.0)  # size of the noise beside that of the platform's own residual


def with_twins(library: Library, seed: int) -> Library:
    """Each fourth platform and its unsteady twin, every one a class of its own. A twin's id is `<id>~<factor>`."""
    data, rng = library.data, np.random.default_rng(seed)
    base = list(range(0, len(data.platforms), EVERY))
    platforms, logprobs = [], []
    for i, c in enumerate(base):
        factor = FACTORS[i % len(FACTORS)]
        residual = data.logprobs[c] - data.reference
        residual = residual - np.nanmedian(residual, axis=-1, keepdims=True)
        size = np.sqrt(np.nanmean(residual**2, axis=-1, keepdims=True))
        noise = rng.normal(size=residual.shape) * size * factor
        platforms += [data.platforms[c], replace(data.platforms[c], id=f"{data.platforms[c].id}~{factor}")]
        logprobs += [data.logprobs[c], (data.logprobs[c] + noise).astype(np.float32)]
    stacked = np.stack(logprobs)
    order = np.argsort(np.argsort(-np.nan_to_num(stacked, nan=-np.inf), axis=-1, kind="stable"), axis=-1)
    rank = np.where(np.isfinite(stacked), np.minimum(order, ABSENT), ABSENT).astype(np.uint8)
    keep = np.repeat(base, 2)
    rank[::2] = data.rank[base]
    twins = replace(data, platforms=platforms, logprobs=stacked, rank=rank, raw=data.raw[keep])
    n = len(platforms)
    blank = np.full((n, n), np.nan)
    return Library(twins, Classes(data.model, twins.platform_ids(), list(range(n)), blank, blank))


def origin(platform_id: str) -> str:
    """The real platform that an unsteady one was made from."""
    return platform_id.partition("~")[0]
