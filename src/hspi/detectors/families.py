"""Scores of platforms → scores of families: a virtual GPU counts by the best of its kernel plans, and says which.

The families are arithmetic classes: GPUs whose records compute alike are one family, so none is claimed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.platforms.record import Platform
from hspi.platforms.virtual_catalogue import ENGINE, arithmetic_class

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FamilyScores:
    """names (F,); score (n, F): that of the best member; best int (n, F): its column among the candidates."""

    names: tuple[str, ...]
    score: Floats
    best: npt.NDArray[np.int64]


def family_name(platform: Platform) -> str:
    """`vgpu:ampere+ada:bf16` (or `…:fp8`) for a virtual GPU, the id for any other platform."""
    if platform.engine != ENGINE:
        return platform.id
    scale = platform.options.get("weight_scale")
    kind = platform.number_format + (f"-{scale}" if scale else "")
    return f"vgpu:{arithmetic_class(platform)}:{kind}"


def best_of(scores: Floats, families: Sequence[str]) -> FamilyScores:
    """(n, C) scores of candidates, higher is nearer, and each candidate's family → scores of families.

    Families keep the order of their first member; the first of tied members counts.
    """
    names = tuple(dict.fromkeys(families))
    columns = [np.flatnonzero([f == name for f in families]) for name in names]
    best = np.stack([c[np.argmax(scores[:, c], axis=1)] for c in columns], axis=1)
    return FamilyScores(names, np.take_along_axis(scores, best, axis=1), best)


def credit(scores: Floats, truth: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(n, F), (n,) → (n,): 1 where the true family alone scores best, 1/m where m families tie, 0 elsewhere."""
    winners = scores == scores.max(axis=1, keepdims=True)
    return np.asarray(winners[np.arange(len(truth)), truth] / winners.sum(axis=1))
