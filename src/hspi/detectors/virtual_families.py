"""Scores of platforms → scores of families: a virtual GPU counts by the best of its kernel plans, and says which.

The families are arithmetic classes: GPUs whose records compute alike are one family, so none is claimed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.detectors.number_format import format_of
from hspi.errors import DataError
from hspi.evidence.equivalence import Classes
from hspi.platforms.claim import Claim
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import ENGINE, arithmetic_class

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FamilyScores:
    """names (F,); score (n, F): that of the best member; best int (n, F): its column among the candidates."""

    names: tuple[str, ...]
    score: Floats
    best: npt.NDArray[np.int64]


FACTORS = ("hardware", "engine", "dtype", "quantization", "isa_cap", "attention", "compile", "kv_cache")


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim comes to among candidates: their places, the classes that they are in, and the number format.

    Without any, no candidate is what is claimed, and only the format can be tested; without a format not even that.
    """

    claim: Claim
    platforms: tuple[int, ...]
    classes: tuple[int, ...]
    format: str | None

    @property
    def hardware(self) -> bool:
        """Whether the claim names hardware, which may then speak against it."""
        return bool(self.claim.hardware)


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

    def claimed(self, claim: Claim, platforms: Sequence[Platform]) -> Claimed:
        """What a claim comes to among the candidates `platforms`, in the order of the classes' own.

        Raises DataError where it names software that neither a candidate is nor the catalogue has.
        """
        if claim.software in self.names and not claim.hardware:  # a family of virtual GPUs, by its own name
            c = self.names.index(claim.software)
            at = [i for i, label in enumerate(self.label) if label == c]
        else:
            at = claim.covers(platforms)
        record = platforms[at[0]] if at else claim.record(platforms)
        if record is None and claim.software:
            known = ", ".join(sorted({p.software for p in platforms}))
            raise DataError(f"a claim must name software that is known, such as {known}, but got {claim.software!r}")
        format = format_of(record) if record is not None and claim.software else None
        return Claimed(claim, tuple(at), tuple(sorted({self.label[i] for i in at})), format)

    def factors(self, claimed: Claimed, members: Sequence[str], platforms: Sequence[Platform]) -> dict[str, list[str]]:
        """What the claimed platforms and every member of the class found differ in: {factor: [claimed, found]}."""
        by_id = {p.id: p for p in platforms}
        out = {}
        for factor in FACTORS if claimed.platforms and members else ():
            said = {str(getattr(platforms[i], factor)) for i in claimed.platforms}
            theirs = sorted({str(getattr(by_id[m], factor)) for m in members})
            if not said & set(theirs):
                out[factor] = [" or ".join(sorted(said)), " or ".join(theirs)]
        return out

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
