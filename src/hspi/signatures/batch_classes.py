"""Batch classes: the batch sizes between which a platform's bits do not change, because the same kernels run.

They are found by serving the same few probes at many batch sizes in changing company, and comparing bits (DESIGN.md
§1). Kernels change at thresholds, and may change back: torch in bf16 on an AMX Xeon answers alike at 1, 2 and from 16
on, and otherwise between. So a class is a set of ranges, named after its smallest size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hspi.platforms.record import Nuisance

MOST = 64  # batch sizes above are not looked at
# Where kernels were seen to change, or would: powers of two, their neighbours, and what lies between.
GRID = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64)
FIRST = (16, 64)  # where company is tried first: who answers otherwise in another one at both is unsteady
MANY = 8  # classes; a platform with more is not described by ranges
# Of a platform whose answers depend on what shares the batch: alone, and in company as varied as a server's.
UNSTEADY = (1, 2, 3, 4, 7, 10, 16, 24, 32)

Digests = Sequence[bytes]
Ask = Callable[[int, int | None], Digests]
"""(batch size, seed of the company, or None for neighbours) → what each probe was answered, hashed, probe by probe."""


@dataclass(frozen=True, slots=True)
class BatchClasses:
    """sizes: by class name (`b1`, `b3`), its batch sizes as text, "1-2 16-64". A size at which the place in the batch
    decides between classes stands in each of them.

    An unsteady platform's answers depend on what shares the batch; its classes are then no more than the settings it
    was collected under, and `spread` is the share of probes whose bits changed in another company.
    """

    sizes: dict[str, str] = field(default_factory=dict)
    steady: bool = True
    spread: float = 0.0

    def settings(self) -> list[Nuisance]:
        """One for each class: at its smallest size, in company drawn by that size."""
        return [setting(int(name[1:])) for name in self.sizes]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BatchClasses:
        return cls(dict(data["sizes"]), bool(data["steady"]), float(data["spread"]))


def setting(size: int) -> Nuisance:
    return Nuisance(f"b{size}", size, "shuffled", size) if size > 1 else Nuisance("b1")


def find(ask: Ask, most: int = MOST) -> BatchClasses:
    """The classes of one platform on one model, from its answers to the same probes at batch sizes up to `most`.

    Sizes of GRID and `most` are tried, each in a company of its own, and between two that differ the threshold is
    sought by halving. Where a class begins, another company at the same size tells whether the size or the company
    decides.
    """
    served = _Served(ask)
    spreads = [served.spread(size) for size in FIRST if size <= most]
    if spreads and all(spreads):
        return unsteady(max(spreads), most)
    grid = sorted({most, *(size for size in GRID if size <= most)})
    served.at(1)
    for low, high in pairwise(grid):
        served.halve(low, high)
    begins = {min(sizes) for sizes in served.classes().values()} - {1}
    mixed = {size: spread for size in sorted(begins | {2} & set(grid)) if (spread := served.spread(size))}
    classes = {c: own for c, sizes in served.classes().items() if (own := [s for s in sizes if s not in mixed])}
    if len(classes) > MANY or not served.explain(mixed, classes.values()):
        return unsteady(max([0.0, *spreads, *mixed.values()]), most)
    order = sorted(served.label)
    sizes = {f"b{min(own)}": _ranges(order, {*own, *mixed}) for own in classes.values()}
    return BatchClasses(sizes)


def unsteady(spread: float, most: int = MOST) -> BatchClasses:
    return BatchClasses({f"b{n}": str(n) for n in UNSTEADY if n <= most}, False, spread)


class _Served:
    """What was served at each size so far. label: by size, sizes of equal bits have equal ones."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answers: dict[int, Digests] = {}
        self._others: dict[int, Digests] = {}
        self.label: dict[int, int] = {}

    def at(self, size: int) -> Digests:
        if size not in self._answers:
            found = self._answers[size] = self._ask(size, size)
            same = (s for s, other in self._answers.items() if s != size and other == found)
            self.label[size] = next((self.label[s] for s in same), len(set(self.label.values())))
        return self._answers[size]

    def spread(self, size: int) -> float:
        """The share of probes that another company of this size changes."""
        first = self.at(size)
        if size not in self._others:
            self._others[size] = self._ask(size, None)
        other = self._others[size]
        return sum(a != b for a, b in zip(first, other, strict=True)) / len(first)

    def halve(self, low: int, high: int) -> None:
        """Look at sizes between two that differ until neighbours do."""
        if self.at(low) != self.at(high) and high - low > 1:
            middle = (low + high) // 2
            self.halve(low, middle)
            self.halve(middle, high)

    def classes(self) -> dict[int, list[int]]:
        """Sizes of equal bits, by label, in the order of the smallest."""
        out: dict[int, list[int]] = {}
        for size in sorted(self.label):
            out.setdefault(self.label[size], []).append(size)
        return out

    def explain(self, mixed: Iterable[int], classes: Iterable[list[int]]) -> bool:
        """Whether each answer at these sizes, in either company, is that of one of the classes."""
        pure = [self._answers[sizes[0]] for sizes in classes]
        known = [set(one) for one in zip(*pure, strict=True)]
        found = [some for size in mixed for some in (self._answers[size], self._others[size])]
        return all(one in known[i] for some in found for i, one in enumerate(some))


def _ranges(order: Sequence[int], own: set[int]) -> str:
    """Sizes as ranges, those between two neighbours of `order` that are both in it among them."""
    runs: list[list[int]] = []
    for i, size in enumerate(order):
        if size not in own:
            continue
        if runs and runs[-1][1] == order[i - 1]:
            runs[-1][1] = size
        else:
            runs.append([size, size])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
