"""Grouped splits: by probe, by nuisance setting, by model, by platform. Nothing that shares a group crosses over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProbeSplit:
    """Indices into the probes of a model. `fit` trains, `calibrate` sets levels, `test` is touched by scores alone."""

    fit: Index
    calibrate: Index
    test: Index


def split_probes(probes: Sequence[tuple[str, int]], seed: int) -> ProbeSplit:
    """A quarter to fit, a quarter to calibrate, half to test, alike in each probe set.

    The same for every model, and for a set whatever others stand beside it.
    """
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for name in sorted({s for s, _ in probes}):
        own = np.asarray([i for i, (s, _) in enumerate(probes) if s == name])
        order = np.random.default_rng([seed, *name.encode()]).permutation(own)
        a, b = len(own) // 4, len(own) // 2
        for part, some in zip(parts, (order[:a], order[a:b], order[b:]), strict=True):
            part.extend(some.tolist())
    fit, calibrate, test = (np.sort(np.asarray(p, dtype=np.int64)) for p in parts)
    return ProbeSplit(fit, calibrate, test)


def draw(pool: Index, probes: int, samples: int, rng: np.random.Generator) -> Index:
    """Random samples of distinct probes: (samples, probes)."""
    if probes > len(pool):
        raise ValueError(f"a sample must fit in its pool of {len(pool)} probes, but got {probes}")
    return np.stack([rng.choice(pool, probes, replace=False) for _ in range(samples)])


def partitions(pool: Index, probes: int, repeats: int, rng: np.random.Generator) -> Index:
    """Random partitions of the pool into disjoint samples: (repeats, len(pool) // probes, probes)."""
    blocks = len(pool) // probes
    if blocks < 1:
        raise ValueError(f"a sample must fit in its pool of {len(pool)} probes, but got {probes}")
    return np.stack([rng.permutation(pool)[: blocks * probes].reshape(blocks, probes) for _ in range(repeats)])


def group_folds(groups: Sequence[object], folds: int, seed: int) -> list[list[int]]:
    """Members of each fold; all members of a group share a fold; folds are as even as can be."""
    names = sorted({str(g) for g in groups})
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[j]: i % folds for i, j in enumerate(order)}
    return [[i for i, g in enumerate(groups) if fold_of[str(g)] == f] for f in range(min(folds, len(names)))]
