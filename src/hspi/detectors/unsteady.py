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
SETTINGS = 4  # that a twin has, from those of its platform in turn
FACTORS = (0.5, 1.0, 2.0)  # size of the noise beside that of the platform's own residual


def with_twins(library: Library, seed: int) -> Library:
    """Each fourth platform and its unsteady twin, every one a class of its own. A twin's id is `<id>~<factor>`."""
    data, rng = library.data, np.random.default_rng(seed)
    base = range(0, len(data.platforms), EVERY)
    twins = data.only(list(base))
    turns = np.stack([np.resize(np.flatnonzero(present), SETTINGS) for present in twins.present])
    origins = np.arange(len(base))[:, None]
    logprobs = twins.logprobs[origins, turns]
    residual = logprobs - data.reference
    residual = residual - np.nanmedian(residual, axis=-1, keepdims=True)
    size = np.sqrt(np.nanmean(residual**2, axis=-1, keepdims=True))
    factors = np.resize(FACTORS, len(base))
    noise = rng.normal(size=residual.shape) * size * factors[:, None, None, None]
    logprobs = (logprobs + noise).astype(np.float32)
    order = np.argsort(np.argsort(-np.nan_to_num(logprobs, nan=-np.inf), axis=-1, kind="stable"), axis=-1)
    rank = np.where(np.isfinite(logprobs), np.minimum(order, ABSENT), ABSENT).astype(np.uint8)
    named = [replace(p, id=f"{p.id}~{f}") for p, f in zip(twins.platforms, factors, strict=True)]
    restless = replace(
        twins,
        platforms=named,
        settings=[{f"made-{i}": "" for i in range(SETTINGS)} for _ in named],
        steady=[False] * len(named),
        complete=[False] * len(named),
        logprobs=logprobs,
        rank=rank,
        raw=twins.raw[origins, turns],
    )
    both = twins.joined(restless)
    n = len(both.platforms)
    blank = np.full((n, n), np.nan)
    return Library(both, Classes(data.model, both.platform_ids(), list(range(n)), blank, blank, blank))


def origin(platform_id: str) -> str:
    """The real platform that an unsteady one was made from."""
    return platform_id.partition("~")[0]
