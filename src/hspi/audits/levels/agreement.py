"""The levels that see less than exact log-probabilities: they count the share of an answer that a candidate gives too.

`Text` knows the greedy token alone and asks at near-ties of the float64 reference, where platforms part; which probes
those are depends on no platform, so that calibration and audit stay exchangeable. `Rounded` compares log-probabilities
entry by entry, the candidate's own rounded as the endpoint rounds.

Whatever changes answers on the way (sampling, another rounding) makes them unlike every candidate's. A claim therefore
falls only where another candidate's answers fit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hspi.audits.levels.level import Offer, Sequential
from hspi.audits.levels.replay import how_asked, replayable
from hspi.audits.levels.scorer import FITS, Bools, Scorer
from hspi.detectors.detector import Detector
from hspi.detectors.virtual_families import Claimed
from hspi.evidence.aligned import Aligned, place
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32
from hspi.splits import Index

NEAR_TIE = 0.6  # nats between the reference's two best; no format was seen to swap two that are further apart
BROKEN = "\ufffd"  # what part of a character decodes to


class Rounded(Sequential):
    """Needs rounded log-probabilities and candidates' signatures on the same prompts. The bound alpha holds."""

    kind: ClassVar[str] = "rounded"
    limits: ClassVar[str] = (
        "As replay, less what rounding takes away: platforms that differ by less than the last decimal stay together. "
        "A claim falls only where another candidate's answers fit, of other software unless hardware is claimed."
    )

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        if not replayable(offer) or offer.cap.decimals is None:
            return None
        return cls(offer, f"{offer.numbers}, rounded by the endpoint, on prompts given as {how_asked(offer)}")

    @property
    def name(self) -> str:
        return f"replay, rounded to {self.offer.cap.decimals} decimals"

    def make_scorer(self, cache: Path | None) -> Scorer:
        s, decimals = self.material.settings, self.offer.cap.decimals
        assert decimals is not None
        return RoundedScorer(self.material.detector, s.model, self.offer.k, s.seed, decimals, self.offer.usable)


class Text(Sequential):
    """Needs greedy tokens as text and candidates' signatures on the same prompts. The bound alpha holds."""

    kind: ClassVar[str] = "text"
    limits: ClassVar[str] = (
        "Little: formats that swap the two best tokens at near-ties. The same bound on false alarms as replay. A claim "
        "falls only where another candidate's answers fit."
    )

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        if not offer.text or not offer.cap.greedy or not offer.candidates:
            return None
        return cls(offer, "no log-probabilities come: greedy tokens at near-ties of the reference")

    def make_scorer(self, cache: Path | None) -> Scorer:
        m = self.material
        symbols = Symbols(m.vocabulary, m.special)
        return TextScorer(m.detector, m.settings.model, m.settings.seed, symbols, self.offer.usable)


class Agreement(Scorer):
    """The score is the agreement with a platform's nearest setting."""

    calibrated: ClassVar[bool] = False

    @abstractmethod
    def agree(self, observed: Any, at: Index, who: Index) -> F32:
        """The share of each answer that each setting gives too: (n, len(who), S)."""

    def features(self, observed: Any, at: Index, who: Index, held: Sequence[int]) -> F32:
        same = self.agree(observed, at, who)
        out = np.full((len(held), *same.shape[:2], 1), np.nan, np.float32)
        for i, usable in enumerate(self.usable_settings(who, held)):
            best = np.where(usable, same, -1.0).max(axis=-1)
            out[i, ..., 0] = np.where(usable.any(axis=1), best, np.nan)
        return out

    def margin(self, rows: F32) -> F32:
        return rows[..., 0]

    def against(self, seen: Observation, claimed: Claimed, log_e: npt.NDArray[np.float64]) -> str:
        agreed, own = self.agreed(seen), list(claimed.platforms)
        fits = (log_e[np.asarray(self.told.label)] < FITS) & (agreed > agreed[own].max(initial=-1.0))
        return self.detector.grounds(self.model).against(own, claimed.hardware, fits, None)

    def agreed(self, seen: Observation) -> F32:
        """The mean agreement of all answers with each platform's nearest setting: (C,)."""
        at = np.asarray([self._index[p] for p in seen.probes])
        who = np.arange(len(self.present))
        same = np.where(self.present, self.agree(self.observed(seen, at), at, who), -1.0)
        return np.asarray(same.max(axis=2).mean(axis=0), np.float32)

    def judge(self, seen: Observation, alpha: float) -> tuple[str, dict[str, float], str]:
        """The class that agrees most; no posterior, for these levels have no detector that was calibrated."""
        best = int(np.argmax(self.agreed(seen)))
        return self.told.names[self.told.label[best]], {}, ""


class Symbols:
    """What a reader of text can tell apart: token ids → the lowest id that reads alike, without space around it.

    texts: of each id; special: ids that servers may leave out. Both read as nothing.
    """

    def __init__(self, texts: Sequence[str], special: Iterable[int] = ()) -> None:
        nothing = set(special)
        first: dict[str, int] = {}
        plain = ["" if i in nothing else text.strip() for i, text in enumerate(texts)]
        self.of: npt.NDArray[np.int32] = np.array([first.setdefault(t, i) for i, t in enumerate(plain)], np.int32)
        self._first = first
        self._special = {texts[i] for i in nothing}
        self.unclear = np.array([t == "" or BROKEN in t for t in plain])

    def read(self, text: Any) -> int:
        """The symbol of an answered text. Raises ValueError if it is no token's text."""
        if not isinstance(text, str):
            raise ValueError(f"a text must come, but got a {type(text).__name__}")
        plain = "" if text in self._special else text.strip()
        if plain not in self._first:
            raise ValueError(f"the text of one token must come, but got {text[:40]!r}")
        return self._first[plain]


class TextScorer(Agreement):
    """The answer is a greedy token's symbol; `Observation.ids` holds it, (n, 1)."""

    def __init__(self, detector: Detector, model: str, seed: int, symbols: Symbols, usable: Bools) -> None:
        data = detector.library(model).data
        best = np.argmin(data.rank, axis=3)
        self.top = symbols.of[np.take_along_axis(data.slots[None, None], best[..., None], axis=3)[..., 0]]  # (C, S, P)
        self.top = np.where(data.rank.min(axis=3) == 0, self.top, -1)
        super().__init__(detector, model, 1, seed, usable & near_ties(data, symbols))

    def observed(self, seen: Observation, at: Index) -> npt.NDArray[np.int32]:
        return seen.ids[:, 0]

    def own(self, platform: int, setting: int, at: Index) -> npt.NDArray[np.int32]:
        return self.top[platform, setting, at]

    def agree(self, observed: npt.NDArray[np.int32], at: Index, who: Index) -> F32:
        theirs = self.top[np.ix_(who, np.arange(self.top.shape[1]), at)]
        return (theirs == observed).transpose(2, 0, 1).astype(np.float32)


def near_ties(data: Aligned, symbols: Symbols) -> Bools:
    """(P,): the probes whose two likeliest tokens are within NEAR_TIE and read differently and clearly."""
    first, second = data.slots[:, 0], data.slots[:, 1]
    clear = (symbols.of[first] != symbols.of[second]) & ~symbols.unclear[first] & ~symbols.unclear[second]
    return np.asarray(clear & (data.reference[:, 0] - data.reference[:, 1] <= NEAR_TIE))


class RoundedScorer(Agreement):
    """Log-probabilities of the k likeliest, rounded to `decimals`.

    To the nearest, down or towards zero: the endpoint does not say, so whichever of the three agrees best counts on
    each probe, for the candidates' scores on themselves too.
    """

    SHIFTS = (0.0, -0.5, 0.5)  # before rounding to the nearest, in steps; log-probabilities are negative

    def __init__(self, detector: Detector, model: str, k: int, seed: int, decimals: int, usable: Bools) -> None:
        self.decimals = decimals
        super().__init__(detector, model, k, seed, usable)

    def _steps(self, logprobs: F32, shift: float = 0.0) -> F32:
        return np.rint(logprobs.astype(np.float64) * 10.0**self.decimals + shift).astype(np.float32)

    def observed(self, seen: Observation, at: Index) -> F32:
        """Steps of the last decimal in the library's slots, (n, K); NaN where not reported."""
        return self._steps(place(self.data.slots[at], seen.ids, seen.logprobs)[0])

    def own(self, platform: int, setting: int, at: Index) -> F32:
        shown = self.data.rank[platform, setting, at] < self.k
        return np.where(shown, self._steps(self.data.logprobs[platform, setting, at]), np.nan).astype(np.float32)

    def agree(self, observed: F32, at: Index, who: Index) -> F32:
        theirs = self.data.logprobs[np.ix_(who, np.arange(self.present.shape[1]), at)]
        best = np.max([(self._steps(theirs, shift) == observed).sum(axis=-1) for shift in self.SHIFTS], axis=0)
        return (best / self.k).transpose(2, 0, 1).astype(np.float32)  # NaN is alike to nothing
