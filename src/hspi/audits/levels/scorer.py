"""Scores of one audit: each probe's answer beside every candidate, and what the candidates score on themselves.

Hypotheses are (platform, batch class). Each answer is held against the platform's nearest signature, for a server's
batches grow and shrink while it is asked. A class that repeats bit for bit stands in its platform's library, for the
endpoint's answers and for the platform's own alike; a setting that does not is left out for both, so that both are
exchangeable when the hypothesis is true (`sequential`). What a score is, the level of evidence decides: `replay` asks
the pair verifier, `agreement` counts what is alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hspi.audits.sequential import Floats, Martingales, draws, log_mean, log_process
from hspi.detectors.detector import Detector
from hspi.detectors.number_format import Formats
from hspi.detectors.virtual_families import Claimed, Families
from hspi.evidence.aligned import Aligned
from hspi.evidence.cores import on_all_cores
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32
from hspi.splits import Index, split_probes

RIVALS = 6  # platforms of other classes, the nearest, that a platform's score is held against
FITS = np.log(2.0)  # evidence against a class below which it fits answers
AT_LEAST = 24  # answers before a class may be named, so that what is in no library has time to show
VIEWS = 2  # the score itself, and its lead over the best rival

Bools = npt.NDArray[np.bool_]


class Scorer(ABC):
    """One model's candidates at one level. C platforms, S settings, P probes of the library, n of them at a time.

    split parts the library's probes as training did, k: alternatives of an answer that count; usable (P,): which probes
    can be asked at all (every one, if not given); calibrate_on int64 (n,): those on which candidates score themselves.
    A subclass says how an answer is read, compared and scored. Raises UnknownName for a model without a library.
    """

    calibrated: ClassVar[bool] = True  # whether a detector knows when nobody fits
    tells_format_from: ClassVar[int] = 0  # answers whose residuals tell the number format; 0 where none are seen

    def __init__(self, detector: Detector, model: str, k: int, seed: int, usable: Bools | None = None) -> None:
        self.detector, self.model, self.k = detector, model, k
        self.split = split = split_probes(self.data.probes, seed)
        self.usable = np.ones(len(self.data.probes), bool) if usable is None else usable
        # Where nothing was fitted, the probes to fit on calibrate too.
        pool = split.calibrate if self.calibrated else np.concatenate([split.fit, split.calibrate])
        self.calibrate_on = pool[self.usable[pool]]
        self.present = self.data.present  # counted anew at each reading, over the whole library
        self.restless = self.data.restless
        self.told = detector.told(model)
        self.rivals = nearest_rivals(detector.library(model).classes.separation, self.told.label)
        self._index = {p: i for i, p in enumerate(self.data.probes)}
        self._test = frozenset(split.test.tolist())
        self._calibration = self._start()

    @property
    def data(self) -> Aligned:
        return self.detector.library(self.model).data

    # ------------------------------------------------------------ what a level decides

    @abstractmethod
    def observed(self, seen: Observation, at: Index) -> Any:
        """Answers to the probes `at`, in the form that `features` reads."""

    @abstractmethod
    def own(self, platform: int, setting: int, at: Index) -> Any:
        """What the library's platform answered there, in the same form."""

    @abstractmethod
    def features(self, observed: Any, at: Index, who: Index, held: Sequence[int]) -> F32:
        """Of each probe beside each platform of `who`, its setting `held` left out if it does not repeat:
        (len(held), n, len(who), F).
        """

    def itself(self, platform: int, who: Index, held: Sequence[int]) -> F32:
        """The same of a platform's own answers to the calibration probes, setting by setting."""
        at = self.calibrate_on
        return np.stack([self.features(self.own(platform, s, at), at, who, [s])[0] for s in held])

    @abstractmethod
    def margin(self, rows: F32) -> F32:
        """The score for features, the higher the likelier: (…, F) → (…)."""

    @abstractmethod
    def judge(self, seen: Observation, alpha: float) -> tuple[str, dict[str, float], str]:
        """(the class that all answers together are likest, or "unknown"; a posterior, empty where there is none; the
        kernel plan of a virtual GPU, "" for others)."""

    def narrowed(self, seen: Observation, left: list[int]) -> list[int]:
        """Of the classes that are not excluded those that gave these very values, if any did: one whose answers vary is
        never excluded from what lies among them, but it does not give another's values bit for bit.
        """
        return left

    def apart(self, served: int, setting: int, at: Index, members: Index) -> bool:
        """Whether AT_LEAST answers of platform `served` suffice to rule `members` out by their very values."""
        return False

    def told_format(self, seen: Observation) -> Formats | None:
        """What the residuals say of the number format, where this level sees them."""
        return None

    @abstractmethod
    def against(self, seen: Observation, claimed: Claimed, log_e: npt.NDArray[np.float64]) -> str:
        """What speaks against an excluded claim besides (`detectors/grounds.py`), or nothing.

        log_e (classes,): ln E against each after all answers.
        """

    def usable_settings(self, who: Index, held: Sequence[int]) -> Bools:
        """(len(held), len(who), S): what stands in the library of each platform where one setting of it is tested."""
        usable = np.repeat(self.present[None, who], len(held), axis=0)
        usable[np.arange(len(held)), :, held] &= ~self.restless[who][:, held].T
        return usable

    def asks(self, at: int) -> bool:
        """Whether the level puts this probe of the library to an endpoint: one that neither trained nor calibrates."""
        return at in self._test and bool(self.usable[at])

    # ------------------------------------------------------------ scores

    def scores(self, seen: Observation) -> F32:
        """Views of every hypothesis on every probe, one at a time: float32 (VIEWS, C, S, n), NaN where there is no
        such hypothesis.
        """
        at = np.asarray([self._index[p] for p in seen.probes])
        return self.views(self.observed(seen, at), at)

    def views(self, observed: Any, at: Index, of: Index | None = None) -> F32:
        """The same of what `observed` or `own` gave; `of`: of these platforms alone."""
        c, s = self.present.shape
        of = np.arange(c) if of is None else of
        who = np.unique(np.concatenate([of, self.rivals[of].ravel()]))
        margin = np.full((c, s, len(at)), np.nan, np.float32)
        margin[who] = self.margin(self.features(observed, at, who, range(s))).transpose(2, 0, 1)
        views = np.full((VIEWS, c, s, len(at)), np.nan, np.float32)
        views[0, of] = margin[of]
        views[1, of] = margin[of] - margin[self.rivals[of]].max(axis=1)
        return self._only_hypotheses(views)

    def _only_hypotheses(self, views: F32) -> F32:
        testable = self.present & (~self.restless | (self.present.sum(axis=1, keepdims=True) > 1))
        return np.where(testable[None, :, :, None], views, np.nan).astype(np.float32)

    def _start(self) -> F32:
        """Whatever is made once, and the calibration; a level that pays much for it may keep it."""
        return self._calibrate()

    def _calibrate(self) -> F32:
        """What each platform scores on the calibration probes as itself: (VIEWS, C, S, n)."""
        out = np.full((VIEWS, *self.present.shape, len(self.calibrate_on)), np.nan, np.float32)

        def fill(i: int) -> None:
            settings = np.flatnonzero(self.present[i]).tolist()
            who = np.concatenate([[i], self.rivals[i]])
            margin = self.margin(self.itself(i, who, settings))
            out[0, i, settings] = margin[..., 0]
            out[1, i, settings] = margin[..., 0] - margin[..., 1:].max(axis=-1)

        on_all_cores(fill, np.flatnonzero(self.present.any(axis=1)).tolist())
        return self._only_hypotheses(out)

    # ------------------------------------------------------------ evidence

    def plain_lie(self, answers: int) -> Floats:
        """ln E against a class after each of so many answers, all of them unlike it: what few answers can come to."""
        return log_process(np.ones(len(self.calibrate_on)).tolist(), [0.0] * answers, draws(answers))

    def start(self) -> Evidence:
        return Evidence(self.told, Martingales(self._calibration))

    def processes(self, scores: F32) -> npt.NDArray[np.float64]:
        """ln E_t against each class after each probe of `scores`: (classes, n)."""
        evidence = self.start()
        return np.stack([evidence.add(scores[..., t]) for t in range(scores.shape[-1])], axis=1)


@dataclass(slots=True)
class Evidence:
    """What the answers so far say against each class; fed one probe at a time."""

    told: Families
    martingales: Martingales
    ties: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))  # the same at each scoring

    def add(self, scores: F32) -> npt.NDArray[np.float64]:
        """scores (VIEWS, C, S) of the next probe → ln E against each class, (classes,).

        The mean over views, then the least over a class's members and their settings. A class that no hypothesis
        tests keeps E = 1: nothing speaks against it.
        """
        self.martingales.add(scores, 1.0 - float(self.ties.random()))
        log = log_mean(self.martingales.log)  # (C, S)
        log = np.where(np.isfinite(scores[0]), log, np.inf).min(axis=1)
        label = np.asarray(self.told.label)
        least = np.array([log[label == c].min() for c in range(self.told.count)])
        return np.where(np.isfinite(least), least, 0.0)


def nearest_rivals(separation: npt.NDArray[np.float64], labels: Sequence[int]) -> npt.NDArray[np.int64]:
    """For each platform those of other classes that are hardest to tell from it: int64 (C, <= RIVALS).

    separation (C, C) as `Classes` has it; labels (C,): what a verdict tells apart.
    """
    label = np.asarray(labels)
    separation = np.where(label[:, None] == label[None, :], np.inf, separation)
    count = max(1, min(RIVALS, min(int((label != x).sum()) for x in label)))
    return np.argsort(separation, axis=1, kind="stable")[:, :count]
