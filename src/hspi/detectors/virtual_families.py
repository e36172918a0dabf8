"""Scores of platforms → scores of families: a virtual GPU counts by the best of its kernel plans, and says which.

The families are arithmetic classes: GPUs whose records compute alike are one family, so none is claimed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.evidence.equivalence import Classes
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import ENGINE, arithmetic_class

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FamilyScores:
    """names (F,); score (n, F): that of the best member; best int (n, F): its column among the candidates."""

    names: tuple[str, ...]
    score: Floats
    best: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Families:
    """What a verdict tells apart: equivalence classes, those of one virtual family together.

    of_class[c]: the family of class c; names and members (platform ids) by family. Without virtual GPUs families are
    classes, by the same names. plans: by class, the kernel plans of its virtual GPUs, "" without any. label: the family
    of each platform, in the order of the classes' own; open_ended: by family, whether it is of virtual GPUs, of which
    no library holds every kernel plan.
    """

    of_class: tuple[int, ...]
    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    plans: tuple[str, ...]
    platform_ids: tuple[str, ...]
    label: tuple[int, ...]
    open_ended: tuple[bool, ...]

    @classmethod
    def of(cls, classes: Classes, platforms: Sequence[Platform]) -> Families:
        """platforms: at least those of the classes. A class that measurement found to span families joins them."""
        by_id = {p.id: p for p in platforms}
        inside = [[by_id[m] for m in classes.members(c)] for c in range(classes.count)]
        keys = [{family_name(p) for p in some} for some in inside]
        first = _joined(keys)
        heads = tuple(dict.fromkeys(first))
        parts = [[c for c, head in enumerate(first) if head == h] for h in heads]
        names = []
        for h, part in zip(heads, parts, strict=True):
            spanned = set().union(*(keys[c] for c in part))
            is_family = len(spanned) == 1 and all(p.engine == ENGINE for p in inside[h])
            names.append(spanned.pop() if is_family else classes.name(h))
        of_class = tuple(heads.index(h) for h in first)
        return cls(
            of_class,
            tuple(names),
            tuple(tuple(m for c in part for m in classes.members(c)) for part in parts),
            tuple(" or ".join(dict.fromkeys(_plan(p) for p in some if p.engine == ENGINE)) for some in inside),
            tuple(classes.platform_ids),
            tuple(of_class[c] for c in classes.label),
            tuple(any(p.engine == ENGINE for c in part for p in inside[c]) for part in parts),
        )

    @property
    def count(self) -> int:
        return len(self.names)

    def index(self, claim: str) -> int:
        """The class that a claim means, by a member's id or by its own name. Raises DataError if there is none."""
        for c, name in enumerate(self.names):
            if claim == name or claim in self.members[c]:
                return c
        known = ", ".join(m for some in self.members for m in some)
        raise DataError(f"claim must be among the candidates {known}, but got {claim!r}")

    def members_of(self, name: str) -> list[str]:
        """The platforms of the class of that name, or with that member; the name alone where there is none."""
        return next((list(m) for n, m in zip(self.names, self.members, strict=True) if name == n or name in m), [name])

    def best(self, scores: Floats) -> FamilyScores:
        """(n, classes) → scores of families, and which class each one has from."""
        return best_of(scores, [self.names[f] for f in self.of_class])


def _joined(keys: Sequence[set[str]]) -> list[int]:
    """Sets that share a key, also by way of others, get the number of the first of them."""
    head = list(range(len(keys)))
    for c, some in enumerate(keys):
        for near in [d for d in range(c) if keys[d] & some]:
            low, high = sorted((head[c], head[near]))
            head = [low if h == high else h for h in head]
    return head


def _plan(platform: Platform) -> str:
    plan = platform.options.get("plan", "")
    return plan if isinstance(plan, str) else " ".join(f"{product}:{name}" for product, name in sorted(plan.items()))


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
