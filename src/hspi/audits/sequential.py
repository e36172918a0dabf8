"""When an audit may stop: conformal test martingales, one for each hypothesis, and Ville's inequality.

A hypothesis is "the endpoint answers as platform m does under setting s". Its scores on the calibration probes and on
the probes of the audit are exchangeable when it is true: all probes are drawn alike, and both are scored by the same
function, against a library without s. Then the conformal p-values

    p_t = (#{scores of calibration and of probes 1..t below score t} + u_t #{those equal to it}) / (calibration + t)

with u_t uniform on (0, 1] are independent and uniform (Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random
World*, 2005, theorem 8.2). The u_t come from a fixed seed, which no answer depends on, so that anyone who scores the
same answers gets the same numbers; ties are common, for trees give one score to all that is far off. A calibrator f is
decreasing with integral 1, so each f(p_t) is an e-value (Vovk, Wang, *E-values: calibration, combination and
applications*, Annals of Statistics 49, 2021), and E_t = f(p_1) ... f(p_t) is a test martingale. Averages of
such processes, and the least over the settings and members of a class, keep the property. Ville's inequality:

    P(there is a t with E_t >= 1/alpha) <= alpha,

so one may look after each answer and stop at will. Because tested scores join the calibration as they come, nothing
is conditional on one calibration set. What remains assumed is exchangeability: the endpoint's batching must be no
worse for the scores than the worst of the settings that the library holds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def calibrator(p: float | Floats) -> Floats:
    """Vovk and Wang's mixture of κ p^(κ-1) over κ in (0, 1), which needs no tuning: (1 − p + p ln p) / (p ln² p)."""
    p = np.asarray(p, float)
    safe = np.where(p > 1 - 1e-6, 0.5, p)
    log = np.log(safe)
    return np.where(p > 1 - 1e-6, 0.5, (1 - safe + safe * log) / (safe * log * log))


def draws(count: int, seed: int = 0) -> Floats:
    """The u_t, float64 (count,) on (0, 1]."""
    return 1.0 - np.random.default_rng(seed).random(count)


def p_values(calibration: Sequence[float], scores: Sequence[float], u: Floats) -> Floats:
    """Online conformal p-values of `scores` in their order, float64 (t,); low scores speak against the hypothesis."""
    bag = sorted(calibration)
    out = np.empty(len(scores))
    for i, score in enumerate(scores):
        insort(bag, score)
        below, upto = bisect_left(bag, score), bisect_right(bag, score)
        out[i] = (below + u[i] * (upto - below)) / len(bag)
    return out


def log_process(calibration: Sequence[float], scores: Sequence[float], u: Floats) -> Floats:
    """ln E_t after each score, float64 (t,)."""
    return np.cumsum(np.log(calibrator(p_values(calibration, scores, u))))


def log_mean(stacked: Floats) -> Floats:
    """ln of the mean of several e-processes, given and returned as logarithms: (n, …) → (…)."""
    top = stacked.max(axis=0)
    return np.asarray(top + np.log(np.exp(stacked - top).mean(axis=0)))


def crossing(process: Floats, alpha: float) -> int | None:
    """How many scores it took until E_t >= 1/alpha; None if it never did."""
    reached = np.flatnonzero(process >= -np.log(alpha))
    return int(reached[0]) + 1 if len(reached) else None


class Martingales:
    """Many processes at once, fed one score each at a time: the fast twin of `log_process`.

    calibration (..., n): NaN rows are hypotheses that do not exist. `log` holds ln E_t of each, (...).
    """

    def __init__(self, calibration: npt.NDArray[np.floating]) -> None:
        self.bag = np.asarray(calibration, float)
        self.log: Floats = np.zeros(self.bag.shape[:-1])

    def add(self, score: npt.NDArray[np.floating], u: float | Floats) -> None:
        """score (...): what each hypothesis scores on the next probe; u: one draw for all, or one for each."""
        self._bet(self._p_values(np.asarray(score, float)[..., None], u))

    def _p_values(self, one: Floats, u: float | Floats) -> Floats:
        self.bag = np.concatenate([self.bag, one], axis=-1)
        below, equal = (self.bag < one).sum(axis=-1), (self.bag == one).sum(axis=-1)
        p = (below + u * equal) / self.bag.shape[-1]
        return np.asarray(np.where(np.isfinite(one[..., 0]), p, 1.0))

    def _bet(self, p: Floats) -> None:
        self.log = self.log + np.log(calibrator(p))


class SimpleMixture(Martingales):
    """For rare signs: the mean over κ of the products of κ p^(κ-1), where `calibrator` is the product of the means.

    A martingale too (Vovk, Nouretdinov, Gammerman, *Testing exchangeability on-line*, ICML 2003). The κ that serves
    best pays little for the many answers that say nothing.
    """

    POWERS = np.linspace(0.05, 0.95, 19)

    def __init__(self, calibration: npt.NDArray[np.floating]) -> None:
        super().__init__(calibration)
        self._sums = np.zeros((len(self.POWERS), *self.log.shape))

    def _bet(self, p: Floats) -> None:
        powers = self.POWERS.reshape(-1, *[1] * p.ndim)
        self._sums = self._sums + np.log(powers) + (powers - 1) * np.log(p)
        self.log = log_mean(self._sums)
