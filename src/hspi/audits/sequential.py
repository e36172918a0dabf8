"""When an audit may stop: conformal test martingales, one for each hypothesis, and Ville's inequality.

A hypothesis is "the endpoint answers as platform m does under setting s". Its scores on the calibration probes and on
the probes of the audit are exchangeable when it is true: all probes are drawn alike, and both are scored by the same
function, against a library without s. Then the conformal p-values

    p_t = (#{scores of calibration and of probes 1..t below score t} + u_t #{those equal to it}) / (calibration + t)

with u_t uniform on (0, 1] are independent and uniform (Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random
World*, 2005, theorem 8.2). The u_t come from a fixed seed, which no answer depends on, so that anyone who scores the
same answers gets the same numbers; ties are common, for trees give one score to all that is far off. A bet κ p^(κ-1)
with κ in (0, 1) has integral 1 over p and pays for small p-values, for small ones alone if κ is low. Which κ serves
best depends on the lie and on the number of answers, so all are played:

    E_t = mean over κ of Π κ p_i^(κ-1), i = 1 .. t,

is a test martingale that needs no tuning (the simple mixture of Vovk, Nouretdinov, Gammerman, *Testing exchangeability
on-line*, ICML 2003). The product of the mean bets is one too, but it soon wins nothing more: tested scores join the
calibration as they come, so the p-values of a lie are no longer near 0. With 40 probes to calibrate it came to 1e6 at
the most, this one comes to 1e9. Averages of such processes, and the least over the settings and members of a class,
keep the property. Ville's inequality:

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
POWERS = np.linspace(0.05, 0.95, 19)  # the κ


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


def bets(p: Floats) -> Floats:
    """ln of κ p^(κ-1) for each of POWERS: (…) → (len(POWERS), …)."""
    powers = POWERS.reshape(-1, *[1] * p.ndim)
    return np.asarray(np.log(powers) + (powers - 1) * np.log(p))


def log_process(calibration: Sequence[float], scores: Sequence[float], u: Floats) -> Floats:
    """ln E_t after each score, float64 (t,)."""
    return log_mean(np.cumsum(bets(p_values(calibration, scores, u)), axis=1))


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
        self._sums = np.zeros((len(POWERS), *self.log.shape))

    def add(self, score: npt.NDArray[np.floating], u: float | Floats) -> None:
        """score (...): what each hypothesis scores on the next probe; u: one draw for all, or one for each."""
        one = np.asarray(score, float)[..., None]
        self.bag = np.concatenate([self.bag, one], axis=-1)
        below, equal = (self.bag < one).sum(axis=-1), (self.bag == one).sum(axis=-1)
        p = (below + u * equal) / self.bag.shape[-1]
        self._sums = self._sums + bets(np.where(np.isfinite(one[..., 0]), p, 1.0))
        self.log = log_mean(self._sums)
