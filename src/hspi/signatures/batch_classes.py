"""Batch classes: the batch sizes between which a platform's bits do not change, because the same kernels run.

They are found by serving the same few probes at many batch sizes in changing company, and comparing bits (DESIGN.md
§1). Kernels change at thresholds, and may change back: torch in bf16 on an AMX Xeon answers alike at 1, 2 and from 16
on, and otherwise between. So a class is a set of ranges, named after its smallest size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hspi.platforms.record import Nuisance

MOST = 64  # batch sizes above are not looked at
# Where kernels were seen to change, or would: powers of two, their neighbours, and what lies between.
GRID = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64)
MANY = 8  # classes; a platform with more is not described by ranges
# Of a platform whose answers depend on what shares the batch: alone, and in three kinds of company.
UNSTEADY = (1, 4, 7, 16)

Digests = Sequence[bytes]
Ask = Callable[[int, int | None], Digests]
"""(batch size, seed of the company, or None for neighbours) → what each probe was answered, hashed, probe by probe."""


@dataclass(frozen=True, slots=True)
class BatchClasses:
    """sizes: by class name (`b1`, `b3`), its batch sizes as text, "1-2 16-64". An unsteady platform's answers depend on
    what shares the batch, or on the place in it; its classes are then no more than the settings it was collected under,
    and `spread` is the share of probes whose bits changed in another company.
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

    Sizes of GRID are tried, and between two that differ the threshold is sought by halving. Each size is served in a
    company of its own; where bits differ, another company at the same size tells whether the size or the company did
    it. At least one size of several is always tried in two kinds of company.
    """
    label: dict[int, int] = {}
    known: list[Digests] = []

    def classify(size: int) -> int:
        if size not in label:
            found = ask(size, size)
            same = next((i for i, other in enumerate(known) if other == found), None)
            if same is None:
                known.append(found)
            label[size] = len(known) - 1 if same is None else same
        return label[size]

    grid = [size for size in GRID if size <= most]
    for size in grid:
        fresh = len(known)
        if classify(size) == fresh or size in (2, grid[-1]):
            spread = _spread(ask, size, known[label[size]])
            if spread or len(known) > MANY:
                return BatchClasses({f"b{n}": str(n) for n in UNSTEADY if n <= most}, False, spread)
    for low, high in pairwise(grid):
        _halve(classify, low, high)
    return BatchClasses(_ranges(label))


def _spread(ask: Ask, size: int, seen: Digests) -> float:
    """The share of probes that another company changes; nobody is in company alone."""
    if size == 1:
        return 0.0
    other = ask(size, None)
    return sum(a != b for a, b in zip(seen, other, strict=True)) / len(seen)


def _halve(classify: Callable[[int], int], low: int, high: int) -> None:
    """Look at sizes between two that differ until neighbours do."""
    if high - low > 1 and classify(low) != classify(high):
        middle = (low + high) // 2
        _halve(classify, low, middle)
        _halve(classify, middle, high)


def _ranges(label: dict[int, int]) -> dict[str, str]:
    """Each class's sizes, those between two sizes of one class among them."""
    order = sorted(label)
    runs: list[list[int]] = []  # class, first, last
    for size in order:
        if runs and runs[-1][0] == label[size]:
            runs[-1][2] = size
        else:
            runs.append([label[size], size, size])
    return {
        f"b{min(first for c, first, _ in runs if c == name)}": " ".join(_range(a, b) for c, a, b in runs if c == name)
        for name in dict.fromkeys(c for c, _, _ in runs)
    }


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
