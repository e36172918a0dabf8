"""Levels of the verifier's scores, taken on samples whose truth is known and that it was not fitted on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError

Floats = npt.NDArray[np.floating]
OwnScores = dict[str, dict[str, dict[str, list[float]]]]  # candidate → sample size → setting → sorted scores

# log-odds of 0.95. Trees saturate, and right candidates then differ in their last digits alone: nobody may be accused
# over those. Conformal p-values stay valid under any fixed monotone map of the score.
AGREES = float(np.log(0.95 / 0.05))


@dataclass(frozen=True, slots=True)
class Calibration:
    """true_scores: for each sample size, the sorted scores of right candidates on calibration samples (split
    conformal: Vovk et al., *Algorithmic Learning in a Random World*, 2005). temperature divides the log-odds;
    unknown_logit is the log-odds that "none of these" competes with. own_scores: the same by candidate ("model/class")
    and by what it answered under ("platform setting"), since one that differs from itself from batch to batch must be
    allowed to.
    """

    true_scores: dict[str, list[float]] = field(default_factory=dict)
    temperature: float = 1.0
    unknown_logit: float = 0.0
    own_scores: OwnScores = field(default_factory=dict)

    def p_value(
        self, score: float | Floats, probes: int, top_k: int, candidates: Sequence[str] | None = None
    ) -> Floats:
        """P(a right candidate scores this low or lower), at the nearest calibrated size that is not larger.

        score (…, K): log-odds of K candidates, from `probes` probes with `top_k` tokens each. Returns the same shape.
        Raises DataError where nothing was calibrated.

        candidates: names ("model/class") of the last axis of `score`. The p-value is then that among this candidate's
        own scores (Mondrian conformal, op. cit. section 4.5), the largest over the settings that it was seen under: a
        claim falls only if the observation is odd for its own platform in each of its batch classes.
        """
        size = self.size(probes, top_k)
        score = np.asarray(score, float)
        p = _rank(self.true_scores[size], score)
        for i, name in enumerate(candidates or ()):
            if own := [some for some in self.own_scores.get(name, {}).get(size, {}).values() if some]:
                p[..., i] = np.max([_rank(some, score[..., i]) for some in own], axis=0)
        return p

    def size(self, probes: int, top_k: int) -> str:
        """The calibrated sample size that serves for this one, as "32x20": probes × top-k. Raises as `p_value`."""
        if not self.true_scores:
            raise DataError("a calibration must hold scores, but this one is empty")
        sizes = [tuple(int(v) for v in key.split("x")) for key in self.true_scores]
        fitting = [s for s in sizes if s[0] <= probes and s[1] <= top_k] or sizes
        best = max(fitting) if fitting is not sizes else min(sizes)
        return f"{best[0]}x{best[1]}"

    def posterior(self, scores: Floats) -> Floats:
        """(…, K) log-odds → (…, K + 1) probabilities, the last that of "unknown"."""
        logits = np.asarray(scores, float) / self.temperature
        tail = np.full((*logits.shape[:-1], 1), self.unknown_logit / self.temperature)
        logits = np.concatenate([logits, tail], axis=-1)
        logits -= logits.max(axis=-1, keepdims=True)
        weights = np.exp(logits)
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """From a file with the text of `to_json`. Raises DataError if it is not that."""
        try:
            data = json.loads(path.read_text("utf-8"))
            for by_size in data["own_scores"].values():  # without settings, as they were written once
                by_size |= {size: {"": some} for size, some in by_size.items() if isinstance(some, list)}
            return cls(**data)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(f"{path} must be a saved calibration, but: {error}") from error


def _rank(known: Sequence[float], score: Floats) -> Floats:
    """Conformal p-value of `score` among sorted `known`: low scores are odd, and none is that AGREES."""
    below = np.searchsorted(np.minimum(known, AGREES), np.minimum(score, AGREES), side="right")
    return np.asarray((1 + below) / (len(known) + 1))


def log_loss(scores: Floats, truth: npt.NDArray[np.int64], temperature: float) -> float:
    """Mean log-loss of `truth` (n,) among the classes, of log-odds (n, K) over a temperature."""
    z = scores / temperature
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), truth]).mean())


def fit_temperature(scores: Floats, truth: npt.NDArray[np.int64]) -> float:
    """The temperature with the least log-loss of `truth` among the classes: scores (n, K), truth (n,)."""
    from scipy.optimize import minimize_scalar

    wide, bounds = np.asarray(scores, float), (np.log(0.25), np.log(20.0))
    found = minimize_scalar(lambda log_t: log_loss(wide, truth, np.exp(log_t)), bounds=bounds, method="bounded")
    return float(np.exp(found.x))
