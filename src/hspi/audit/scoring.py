"""Scores of one audit: each probe's answer beside every candidate, and what the candidates score on themselves.

Hypotheses are (platform, setting): the library is read without that setting, for the endpoint's answers and for the
platform's own alike, so that both are exchangeable when the hypothesis is true (`sequential`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hspi.audit.sequential import Martingales, log_mean
from hspi.bundle import Bundle, Observation
from hspi.evidence.aligned import Aligned, place
from hspi.evidence.equivalence import Classes
from hspi.evidence.replay import F32, candidate_features, pair_features, pair_statistics, self_features
from hspi.splits import ProbeSplit, split_probes

RIVALS = 6  # platforms of other classes, the nearest, that a platform's score is held against
VIEWS = 2  # the score itself, and its lead over the best rival


@dataclass(slots=True)
class Scorer:
    """One model's candidates at one top-k. C platforms, S settings; `split` parts the probes as training did."""

    bundle: Bundle
    model: str
    k: int
    split: ProbeSplit
    present: npt.NDArray[np.bool_] = field(init=False)
    _own: F32 = field(init=False)
    rivals: npt.NDArray[np.int64] = field(init=False)
    _calibration: F32 = field(init=False)

    def __post_init__(self) -> None:
        self.present = self.data.present  # counted anew at each reading, over the whole library
        self.rivals = nearest_rivals(self.classes)
        self._own = own_without(self.data, self.split.fit, self.k)
        self._calibration = self._calibrate()

    @classmethod
    def of(cls, bundle: Bundle, model: str, k: int, seed: int) -> Scorer:
        return cls(bundle, model, k, split_probes(bundle.library[model].probes, seed))

    @property
    def data(self) -> Aligned:
        return self.bundle.library[self.model]

    @property
    def classes(self) -> Classes:
        return self.bundle.classes[self.model]

    # ------------------------------------------------------------ scores

    def scores(self, seen: Observation, of: npt.NDArray[np.int64] | None = None) -> F32:
        """Views of every hypothesis on every probe, one at a time: float32 (VIEWS, C, S, n), NaN where there is no
        such hypothesis. `of`: score these platforms alone.
        """
        index = {p: i for i, p in enumerate(self.data.probes)}
        at = np.asarray([index[p] for p in seen.probes])
        logprobs, rank = place(self.data.slots[at], seen.ids, seen.logprobs)
        c, s = self.present.shape
        of = np.arange(c) if of is None else of
        who = np.unique(np.concatenate([of, self.rivals[of].ravel()]))
        pairs = self._pairs(logprobs, rank, at, who)
        margin = np.full((c, s, len(at)), np.nan, np.float32)
        margin[who] = self._margin([self._features(pairs, who, held) for held in range(s)]).transpose(2, 0, 1)
        views = np.full((VIEWS, c, s, len(at)), np.nan, np.float32)
        views[0, of] = margin[of]
        views[1, of] = margin[of] - margin[self.rivals[of]].max(axis=1)
        return self._only_hypotheses(views)

    def _pairs(self, logprobs: F32, rank: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], who: npt.NDArray) -> F32:
        """Features of each probe against each setting of the platforms `who`: (n, len(who), S, F)."""
        s, n = len(self.data.nuisances), len(at)
        shape = (len(who) * s, n, self.data.slots.shape[1])
        chosen = np.ix_(who, np.arange(s), at)  # one step: taking platforms first would copy the library
        theirs, ranks = self.data.logprobs[chosen].reshape(shape), self.data.rank[chosen].reshape(shape)
        found = pair_statistics(logprobs, rank, theirs, ranks, self.data.reference[at], self.k)
        return pair_features(found.reshape(len(who), s, n, -1).transpose(2, 0, 1, 3), self.k)

    def _features(self, pairs: F32, who: npt.NDArray[np.int64], held: int) -> F32:
        """What the verifier reads, with setting `held` out of the library: (n, len(who), F)."""
        usable = self.present[who]
        usable[:, held] = False
        features = candidate_features(pairs, usable, self._own[held, who])
        tail = np.broadcast_to(np.array([0.0, self.k], np.float32), (*features.shape[:2], 2))
        return np.concatenate([features, tail], axis=-1)

    def _margin(self, parts: list[F32]) -> F32:
        """Log-odds for features of equal shape (n, m, F), all in one call: (len(parts), n, m)."""
        rows = np.stack(parts)
        return self.bundle.verifier.margin(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape[:-1]).astype(np.float32)

    def _only_hypotheses(self, views: F32) -> F32:
        testable = self.present & (self.present.sum(axis=1, keepdims=True) > 1)
        return np.where(testable[None, :, :, None], views, np.nan).astype(np.float32)

    def _calibrate(self) -> F32:
        """What each platform scores on the calibration probes as itself: (VIEWS, C, S, n)."""
        at = self.split.calibrate
        out = np.full((VIEWS, *self.present.shape, len(at)), np.nan, np.float32)
        hypotheses = list(zip(*np.nonzero(self.present), strict=True))
        parts = []
        for i, held in hypotheses:
            who = np.concatenate([[i], self.rivals[i]])
            pairs = self._pairs(self.data.logprobs[i, held, at], self.data.rank[i, held, at], at, who)
            parts.append(self._features(pairs, who, held))
        for (i, held), margin in zip(hypotheses, self._margin(parts), strict=True):
            out[0, i, held] = margin[:, 0]
            out[1, i, held] = margin[:, 0] - margin[:, 1:].max(axis=1)
        return self._only_hypotheses(out)

    # ------------------------------------------------------------ evidence

    def start(self) -> Evidence:
        return Evidence(self.classes, Martingales(self._calibration))

    def processes(self, scores: F32) -> npt.NDArray[np.float64]:
        """ln E_t against each class after each probe of `scores`: (classes, n)."""
        evidence = self.start()
        return np.stack([evidence.add(scores[..., t]) for t in range(scores.shape[-1])], axis=1)


@dataclass(slots=True)
class Evidence:
    """What the answers so far say against each class; fed one probe at a time."""

    classes: Classes
    martingales: Martingales
    ties: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))  # the same in every replay

    def add(self, scores: F32) -> npt.NDArray[np.float64]:
        """scores (VIEWS, C, S) of the next probe → ln E against each class, (classes,).

        The mean over views, then the least over a class's members and their settings. A class that no hypothesis
        tests keeps E = 1: nothing speaks against it.
        """
        self.martingales.add(scores, 1.0 - float(self.ties.random()))
        log = log_mean(self.martingales.log)  # (C, S)
        log = np.where(np.isfinite(scores[0]), log, np.inf).min(axis=1)
        label = np.asarray(self.classes.label)
        least = np.array([log[label == c].min() for c in range(self.classes.count)])
        return np.where(np.isfinite(least), least, 0.0)


def nearest_rivals(classes: Classes) -> npt.NDArray[np.int64]:
    """For each platform the platforms of other classes that are hardest to tell from it: int64 (C, <= RIVALS)."""
    label = np.asarray(classes.label)
    separation = np.where(label[:, None] == label[None, :], np.inf, classes.separation)
    count = max(1, min(RIVALS, min(int((label != x).sum()) for x in label)))
    return np.argsort(separation, axis=1, kind="stable")[:, :count]


def own_without(data: Aligned, pool: npt.NDArray[np.int64], k: int) -> F32:
    """How far each platform is from itself on the probes of `pool`, without one setting after another: (S, C, 4)."""
    c, s = data.present.shape
    part = data.on_probes(pool)
    found = np.stack(
        [
            pair_statistics(part.logprobs[i, a], part.rank[i, a], part.logprobs[i], part.rank[i], part.reference, k)
            for i in range(c)
            for a in range(s)
        ]
    )
    statistics = found.reshape(c, s, *found.shape[1:])
    out = []
    for held in range(s):
        usable = data.present.copy()
        usable[:, held] = False
        out.append(self_features(statistics, usable, k))
    return np.stack(out)
