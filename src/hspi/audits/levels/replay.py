"""The replay level: what the pair verifier says of exact log-probabilities beside a candidate's own.

What candidates score on themselves takes seconds for hundreds of them and depends on the detector and the library
alone: it is kept in a cache, under a hash of all that it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hspi.audits.levels.level import Offer, Sequential
from hspi.audits.levels.scorer import VIEWS, Bools, Scorer
from hspi.detectors.detector import FEWEST, Detector
from hspi.detectors.grounds import FITS as SAME
from hspi.detectors.number_format import Formats
from hspi.detectors.verifier import log_odds, own_distances, verifier_rows
from hspi.detectors.virtual_families import Claimed
from hspi.evidence.aligned import place
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32, STATISTICS, nearest_setting, pair_features, pair_statistics
from hspi.files import read_array, write_array
from hspi.splits import Index

EQUAL = STATISTICS.index("equal")
VERSION = 2  # raise when the same detector and library would give other scores


class Replay(Sequential):
    """Needs exact log-probabilities and candidates' signatures on the same prompts. The bound alpha holds."""

    kind: ClassVar[str] = "replay"
    limits: ClassVar[str] = (
        "Every class whose signatures are among the candidates. A claim is excluded wrongly with probability alpha at "
        "most, whenever the audit stops, if the endpoint's batches are of classes that were collected. Excluded, it is "
        "contradicted where the answers are those of another platform or of a coarser number format or, where it names "
        "its hardware, far less exact than its own; otherwise the audit ends inconclusive."
    )

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        if not replayable(offer) or offer.cap.decimals is not None:
            return None
        return cls(offer, f"{offer.numbers} at full precision on prompts given as {how_asked(offer)}")

    def make_scorer(self, cache: Path | None) -> Scorer:
        s = self.material.settings
        return ReplayScorer(self.material.detector, s.model, self.offer.k, s.seed, cache, self.offer.usable)


def replayable(offer: Offer) -> bool:
    """Whether log-probabilities come on prompts that candidates answered too, and more than a format is claimed."""
    return bool(offer.top and offer.candidates)


def how_asked(offer: Offer) -> str:
    assert offer.cap.form is not None
    return (
        "token ids" if offer.cap.form.ids else "text that the tokenizer maps back to the same ids, with nothing added"
    )


Placed = tuple[F32, npt.NDArray[np.uint8]]  # log-probabilities and ranks in the library's slots, (n, K) each


class ReplayScorer(Scorer):
    """cache: a folder where candidates' scores on themselves are kept, or None to make them each time."""

    tells_format_from: ClassVar[int] = FEWEST

    def __init__(
        self, detector: Detector, model: str, k: int, seed: int, cache: Path | None = None, usable: Bools | None = None
    ) -> None:
        self.cache = cache
        super().__init__(detector, model, k, seed, usable)

    def _start(self) -> F32:
        c, s = self.present.shape
        own, views = s * c * 4, (VIEWS, c, s, len(self.calibrate_on))
        path = None if self.cache is None else self.cache / f"{self._key()}.safetensors"
        kept = None if path is None else read_array(path, (own + int(np.prod(views)),), np.float32)
        if kept is not None:
            self._own = kept[:own].reshape(s, c, 4)
            return kept[own:].reshape(views)
        self._own = own_distances(self.data.on_probes(self.split.fit), self.k)[:-1]
        calibration = self._calibrate()
        if path is not None:
            write_array(path, np.concatenate([self._own.ravel(), calibration.ravel()]))
        return calibration

    def _key(self) -> str:
        """A hash of the trees, the library, the classes, the split and k."""
        import xgboost

        d = self.data
        digest = hashlib.sha256(bytes(self.detector.verifier.booster_.save_raw("ubj")))
        for array in (d.slots, d.reference, d.logprobs, d.rank, self.present, self.rivals, self.split.fit):
            digest.update(np.ascontiguousarray(array).data)
        names = [
            VERSION,
            xgboost.__version__,
            d.platform_ids(),
            d.settings,
            d.steady,
            self.k,
            self.calibrate_on.tolist(),
        ]
        digest.update(json.dumps(names).encode())
        return digest.hexdigest()[:32]

    def observed(self, seen: Observation, at: Index) -> Placed:
        return place(self.data.slots[at], seen.ids, seen.logprobs)

    def own(self, platform: int, setting: int, at: Index) -> Placed:
        return self.data.logprobs[platform, setting, at], self.data.rank[platform, setting, at]

    def features(self, observed: Placed, at: Index, who: Index, held: Sequence[int]) -> F32:
        return self._without(self._statistics([observed], at, who), who, held)

    def itself(self, platform: int, who: Index, held: Sequence[int]) -> F32:
        at = self.calibrate_on
        return self._without(self._statistics([self.own(platform, s, at) for s in held], at, who), who, held)

    def _statistics(self, observed: Sequence[Placed], at: Index, who: Index) -> F32:
        """Pair statistics of each against each setting of the platforms `who`: (len(observed), len(who), S, n, T)."""
        s, n = self.present.shape[1], len(at)
        shape = (len(who) * s, n, self.data.slots.shape[1])
        chosen = np.ix_(who, np.arange(s), at)  # one step: taking platforms first would copy the library
        theirs, ranks = self.data.logprobs[chosen].reshape(shape), self.data.rank[chosen].reshape(shape)
        found = [pair_statistics(*one, theirs, ranks, self.data.reference[at], self.k) for one in observed]
        return np.stack(found).reshape(len(observed), len(who), s, n, -1)

    def _without(self, statistics: F32, who: Index, held: Sequence[int]) -> F32:
        """What the verifier reads where one setting after another is tested: (len(held), n, len(who), F).

        statistics: of one observation for all of `held`, or of one for each of them.
        """
        usable = self.usable_settings(who, held)
        wide = np.broadcast_to(statistics, (len(held), *statistics.shape[1:]))
        pairs = pair_features(nearest_setting(wide, usable), self.k).transpose(0, 2, 1, 3)
        return verifier_rows(pairs, self._own[np.asarray(held)[:, None], who][:, None], 1, self.k)

    def margin(self, rows: F32) -> F32:
        """Log-odds, all in one call."""
        found = log_odds(self.detector.verifier, rows.reshape(-1, rows.shape[-1]))
        lacking = ~np.isfinite(rows[..., 0])
        return np.where(lacking, -np.inf, found.reshape(rows.shape[:-1])).astype(np.float32)

    def judge(self, seen: Observation, alpha: float) -> tuple[str, dict[str, float], str]:
        found = self.detector.judge(seen, alpha=alpha)
        return found.answer, found.posterior, found.plan

    def narrowed(self, seen: Observation, left: list[int]) -> list[int]:
        classes = {self.told.label[int(i)] for i in np.flatnonzero(self.gave(seen))}
        return [c for c in left if c in classes] or left

    def gave(self, seen: Observation) -> Bools:
        """Which platforms gave these very values, each answer under whichever setting has most of them: (C,).

        Not under the nearest: two settings that differ by the softmax's normaliser alone are equally near.
        """
        at = np.asarray([self._index[p] for p in seen.probes])
        return self._same(self.observed(seen, at), at, np.arange(len(self.present)))

    def _same(self, observed: Placed, at: Index, who: Index) -> Bools:
        (found,) = self._statistics([observed], at, who)
        equal = np.where(self.present[who][..., None], found[..., EQUAL], 0.0).max(axis=1)
        return np.asarray(equal.mean(axis=1) >= SAME * self.k)

    def apart(self, served: int, setting: int, at: Index, members: Index) -> bool:
        same = self._same(self.own(served, setting, at), at, np.concatenate([[served], members]))
        return bool(same[0] and not same[1:].any())

    def against(self, seen: Observation, claimed: Claimed, log_e: npt.NDArray[np.float64]) -> str:
        return "" if self.gave(seen)[list(claimed.platforms)].any() else self.detector.against(seen, claimed)

    def told_format(self, seen: Observation) -> Formats | None:
        return self.detector.told_format(seen)
