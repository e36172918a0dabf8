"""Plan inference: which kernel plan for each product of a virtual GPU explains an observation best?

Coordinate-wise: from an architecture's best uniform plan, one product after another takes the plan that brings the
model's answers nearest to the observation; architectures that fall behind are dropped. A run of the model costs far
more than anything else here, so answers are kept by what their plans come to, for all later observations too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hspi.evidence.replay import F32, STATISTICS, pair_statistics
from hspi.platforms.virtual_catalogue import walk
from hspi.platforms.virtual_plans import PLANS, PlanBook

Run = Callable[[str, PlanBook], tuple[F32, npt.NDArray[np.uint8]]]
_LOG_DISTANCE, _EQUAL, _SHARED = (STATISTICS.index(n) for n in ("log_distance", "equal", "shared"))


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation in the slots of its reference: logprobs and rank (P, K), reference float64 (P, K); the k best
    tokens of each probe count."""

    logprobs: F32
    rank: npt.NDArray[np.uint8]
    reference: npt.NDArray[np.float64]
    k: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """score: minus the mean log10 distance, higher is nearer; equal: share of tokens with the same bits."""

    architecture: str
    book: PlanBook
    score: float
    equal: float


@dataclass(slots=True)
class Workbench:
    """Runs of one model in one number type, kept.

    run(architecture, book) → logprobs and rank, both (P, K) in the slots of the observations; products: lengths of K
    of each product, in the order in which they are searched; instruction_k: of each architecture.
    """

    run: Run
    products: Mapping[str, int]
    instruction_k: Mapping[str, int]
    runs: int = 0
    _kept: dict[tuple[str, ...], tuple[F32, npt.NDArray[np.uint8]]] = field(default_factory=dict)
    _walks: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def same_as(self, architecture: str, product: str, name: str) -> str:
        """The first plan that comes to the same as `name` on this product."""
        k, width = self.products[product], self.instruction_k[architecture]
        if (architecture, name, k) not in self._walks:
            own = walk(PLANS[name], k, width)
            self._walks[architecture, name, k] = next(n for n in PLANS if walk(PLANS[n], k, width) == own)
        return self._walks[architecture, name, k]

    def distinct(self, architecture: str, product: str, plans: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self.same_as(architecture, product, n) for n in plans))

    def answers(self, architecture: str, book: PlanBook) -> tuple[F32, npt.NDArray[np.uint8]]:
        key = (architecture, *(self.same_as(architecture, p, book.name_of(p)) for p in self.products))
        if key not in self._kept:
            self.runs += 1
            self._kept[key] = self.run(architecture, book)
        return self._kept[key]

    def explain(self, seen: Seen, architecture: str, book: PlanBook) -> Explanation:
        logprobs, rank = self.answers(architecture, book)
        found = pair_statistics(seen.logprobs, seen.rank, logprobs[None], rank[None], seen.reference, seen.k)[0]
        equal = found[:, _EQUAL].sum() / max(float(found[:, _SHARED].sum()), 1.0)
        return Explanation(architecture, book, -float(found[:, _LOG_DISTANCE].mean()), float(equal))


def uniform(bench: Workbench, seen: Seen, architectures: Sequence[str], plans: Sequence[str]) -> list[Explanation]:
    """The best uniform plan of each architecture, in the order given."""
    return [
        max((bench.explain(seen, a, PlanBook(n)) for n in plans), key=lambda e: e.score)  # the first of equals
        for a in architectures
    ]


def search(
    bench: Workbench,
    seen: Seen,
    architectures: Sequence[str],
    plans: Sequence[str] = tuple(PLANS),
    *,
    sweeps: int = 2,
    keep: float = 0.5,
) -> list[Explanation]:
    """The best explanation of each architecture, nearest first.

    sweeps: passes over the products; after each but the last, the nearest `keep` of the architectures go on. The
    search ends once one explains every bit and the others have had the same number of products.
    """
    found = uniform(bench, seen, architectures, plans)
    dropped: list[Explanation] = []
    for sweep in range(sweeps):
        for product in bench.products:
            if any(e.equal == 1.0 for e in found):
                return _nearest_first([*found, *dropped])
            found = [_improve(bench, seen, e, product, plans) for e in found]
        if sweep < sweeps - 1:
            ordered = _nearest_first(found)
            going_on = max(2, round(keep * len(ordered)))
            found, dropped = ordered[:going_on], [*dropped, *ordered[going_on:]]
    return _nearest_first([*found, *dropped])


def _improve(bench: Workbench, seen: Seen, best: Explanation, product: str, plans: Sequence[str]) -> Explanation:
    """One coordinate: the plan of one product."""
    names = bench.distinct(best.architecture, product, plans)
    tried = [bench.explain(seen, best.architecture, best.book.with_plan(product, n)) for n in names]
    return max([best, *tried], key=lambda e: e.score)


def _nearest_first(found: Sequence[Explanation]) -> list[Explanation]:
    return sorted(found, key=lambda e: -e.score)
