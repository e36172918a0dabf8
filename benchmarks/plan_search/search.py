"""Plan inference: which kernel plan for each product of a virtual GPU explains an observation best?

A wrong plan for one product hides most of what a right plan for another would show, so that searching product by
product goes astray. The books are searched jointly instead: some are run for every architecture, once for all
observations; from these a surrogate foretells every other book's logits; those that the observation makes likeliest
are run in truth, and teach the surrogate. Bits decide: an observation whose every bit is explained ends the search.
Runs of the model cost far more than anything else here, so they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hspi.evidence.replay import F32, STATISTICS, pair_statistics
from hspi.platforms.virtual.catalogue import walk
from hspi.platforms.virtual.plans import PLANS, PlanBook
from plan_search.surrogate import Codes, Surrogate
from plan_search.target import Target

_EQUAL, _SHARED = (STATISTICS.index(n) for n in ("equal", "shared"))
STARTS = 6  # random ones of each descent over books, which costs next to nothing beside a run
ROUNDS, TRIES = 10, 6  # of guessing, and books that are run of each architecture in a round


@dataclass(frozen=True, slots=True)
class Answers:
    """One run, in the slots of the reference: logprobs and rank (P, K), and logits (P, K), float32, as they are before
    the storage type rounds them."""

    logprobs: F32
    rank: npt.NDArray[np.uint8]
    logits: F32


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
    """equal: share of tokens with the same bits, normaliser and all; score: that, less the mean log10 distance of the
    logits beyond what rounding hides (`Target.distance`): 1 at most."""

    architecture: str
    book: PlanBook
    score: float
    equal: float


@dataclass(slots=True)
class Workbench:
    """Runs of one model in one number type, kept.

    run(architecture, book) → its answers; products: lengths of K of each product; instruction_k: of each architecture;
    mantissa: bits of the storage type, and of the number type of the products.
    """

    run: Callable[[str, PlanBook], Answers]
    products: Mapping[str, int]
    instruction_k: Mapping[str, int]
    mantissa: tuple[int, int] = (10, 10)
    runs: int = 0
    _kept: dict[str, dict[tuple[str, ...], Answers]] = field(default_factory=dict)
    _walks: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _surrogates: dict[str, Surrogate] = field(default_factory=dict)

    def same_as(self, architecture: str, product: str, name: str) -> str:
        """The first plan that comes to the same as `name` on this product."""
        k, width = self.products[product], self.instruction_k[architecture]
        if (architecture, name, k) not in self._walks:
            own = walk(PLANS[name], k, width)
            self._walks[architecture, name, k] = next(n for n in PLANS if walk(PLANS[n], k, width) == own)
        return self._walks[architecture, name, k]

    def distinct(self, architecture: str, product: str, plans: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(self.same_as(architecture, product, n) for n in plans))

    def key(self, architecture: str, book: PlanBook) -> tuple[str, ...]:
        return tuple(self.same_as(architecture, p, book.name_of(p)) for p in self.products)

    def answers(self, architecture: str, book: PlanBook) -> Answers:
        kept, key = self._kept.setdefault(architecture, {}), self.key(architecture, book)
        if key not in kept:
            self.runs += 1
            kept[key] = self.run(architecture, book)
            self._surrogates.pop(architecture, None)
        return kept[key]

    def is_kept(self, architecture: str, book: PlanBook) -> bool:
        return self.key(architecture, book) in self._kept.get(architecture, {})

    def surrogate(self, architecture: str) -> Surrogate:
        """Of every run of this architecture; plans are numbered as in PLANS."""
        if architecture not in self._surrogates:
            kept = self._kept[architecture]
            logits = np.stack([a.logits.ravel() for a in kept.values()]).astype(float)
            self._surrogates[architecture] = Surrogate.fit(np.stack([encode(k) for k in kept]), logits)
        return self._surrogates[architecture]

    def explain(self, seen: Seen, architecture: str, book: PlanBook) -> Explanation:
        found = self.answers(architecture, book)
        pairs = pair_statistics(
            seen.logprobs, seen.rank, found.logprobs[None], found.rank[None], seen.reference, seen.k
        )[0]
        equal = pairs[:, _EQUAL].sum() / max(float(pairs[:, _SHARED].sum()), 1.0)
        target = Target.of(seen.logprobs, seen.rank, seen.k, found.logits.astype(float), self.mantissa)
        score = float(equal) - target.distance(found.logits.ravel().astype(float))
        return Explanation(architecture, book, score, float(equal))


def encode(names: Sequence[str]) -> Codes:
    order = list(PLANS)
    return np.array([order.index(n) for n in names])


def uniform(bench: Workbench, seen: Seen, architectures: Sequence[str], plans: Sequence[str]) -> list[Explanation]:
    """The best uniform plan of each architecture, in the order given."""
    return [
        max((bench.explain(seen, a, PlanBook(n)) for n in plans), key=lambda e: e.score)  # the first of equals
        for a in architectures
    ]


def design(bench: Workbench, architecture: str, plans: Sequence[str], count: int) -> list[PlanBook]:
    """Books that a surrogate learns from: every product has each of its plans equally often, in an order of its own."""
    rng = np.random.default_rng(0)
    columns = []
    for p in bench.products:
        names = bench.distinct(architecture, p, plans)
        rounds = [rng.permutation(names) for _ in range(-(-count // len(names)))]
        columns.append(np.concatenate(rounds)[:count].tolist())
    return [PlanBook(plans[0], dict(zip(bench.products, row, strict=True))) for row in zip(*columns, strict=True)]


def search(
    bench: Workbench,
    seen: Seen,
    architectures: Sequence[str],
    plans: Sequence[str] = tuple(PLANS),
    *,
    learn: int = 256,
) -> list[Explanation]:
    """The best explanation of each architecture, nearest first.

    learn: books run for each architecture before the first guess, the same ones for every observation. In each round
    TRIES books of each architecture are run; half of the architectures, the nearest, and two at least, go on to the
    next round. The search ends once every bit is explained, and then says so of any architecture that shares them.
    """
    found = _nearest_first(uniform(bench, seen, architectures, plans))
    if found[0].equal < 1.0:
        found = _nearest_first([_best(bench, seen, e, design(bench, e.architecture, plans, learn)) for e in found])
    for turn in range(ROUNDS):
        for i in range(min(len(found), max(2, -(-len(found) // 2**turn)))):
            if max(e.equal for e in found) == 1.0:
                return _with_twins(bench, seen, _nearest_first(found))
            books = likeliest_books(bench, seen, found[i], plans, TRIES, seed=turn)
            found[i] = _best(bench, seen, found[i], books)
        found = _nearest_first(found)
    return found


def likeliest_books(
    bench: Workbench, seen: Seen, start: Explanation, plans: Sequence[str], count: int, seed: int
) -> list[PlanBook]:
    """Books not run yet that the observation makes likeliest under the surrogate: local optima over one product's
    plan, from the best explanation so far and from random books."""
    architecture = start.architecture
    surrogate = bench.surrogate(architecture)
    shape = seen.logprobs.shape
    target = Target.of(seen.logprobs, seen.rank, seen.k, surrogate.mean.reshape(shape), bench.mantissa)
    local = surrogate.at(target.columns)
    choices = [encode(bench.distinct(architecture, p, plans)) for p in bench.products]
    rng = np.random.default_rng(seed)
    starts = [encode(bench.key(architecture, start.book)), *(_random(choices, rng) for _ in range(STARTS))]
    likely: dict[tuple[int, ...], float] = {}
    for code in starts:
        _climb(local, target, choices, code, rng, likely)
    names = list(PLANS)
    chosen: list[PlanBook] = []
    for best in sorted(likely, key=lambda c: -likely[c]):
        book = PlanBook(plans[0], {p: names[i] for p, i in zip(bench.products, best, strict=True)})
        if not bench.is_kept(architecture, book) and len(chosen) < count:
            chosen.append(book)
    return chosen


def _climb(
    local: Surrogate, target: Target, choices: list[Codes], code: Codes, rng: np.random.Generator,
    likely: dict[tuple[int, ...], float],
) -> None:  # fmt: skip
    """Coordinate ascent of the likelihood; every book on the way is noted."""
    best = -np.inf
    while True:
        before = best
        for at in rng.permutation(len(choices)):
            tried = np.repeat(code[None], len(choices[at]), axis=0)
            tried[:, at] = choices[at]
            values = target.log_likelihood(*local.predict(tried), local.variance)
            likely.update(zip(map(tuple, tried.tolist()), values.tolist(), strict=True))
            code, best = tried[int(np.argmax(values))], float(values.max())
        if best <= before:
            return


def _random(choices: Sequence[Codes], rng: np.random.Generator) -> Codes:
    return np.array([rng.choice(c) for c in choices])


def _best(bench: Workbench, seen: Seen, best: Explanation, books: Sequence[PlanBook]) -> Explanation:
    return max([best, *(bench.explain(seen, best.architecture, b) for b in books)], key=lambda e: e.score)


def _with_twins(bench: Workbench, seen: Seen, found: list[Explanation]) -> list[Explanation]:
    """Whether the book that explains every bit does so on another architecture too."""
    return _nearest_first([found[0], *(_best(bench, seen, e, [found[0].book]) for e in found[1:])])


def _nearest_first(found: Sequence[Explanation]) -> list[Explanation]:
    return sorted(found, key=lambda e: -e.score)
