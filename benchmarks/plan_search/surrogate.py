"""What a model would answer under a book of plans that was not run, from the books that were.

Another plan for one product flips a few roundings, and what they do to the logits adds up over products, nearly. So
logits are kriged over books (a Gaussian process's mean: Rasmussen and Williams, *Gaussian Processes for Machine
Learning*, 2006, equations 2.25 and 5.12): the covariance of two books falls with each product that they differ in, by
as much as that product moves the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
SHARES, RATES = (0.2, 0.5, 0.8, 1.0), (0.5, 2.0, 8.0)  # tried by leave-one-out
NUGGET = 1e-3
PAIRS = 3000  # of runs, that show how much each product moves the logits


@dataclass(frozen=True, slots=True)
class Surrogate:
    """codes (N, products): plans of each run, as numbers; weights (products,), of sum 1: how much each one moves.

    share: of the covariance that is additive over products; rate: how fast the rest falls. inverse (N, N) of the runs'
    covariance; dual (N, T), mean (T,), variance (T,) over runs.
    """

    codes: Codes
    weights: Floats
    share: float
    rate: float
    inverse: Floats
    dual: Floats
    mean: Floats
    variance: Floats

    @classmethod
    def fit(cls, codes: Codes, logits: Floats) -> Surrogate:
        """codes (N, products), logits (N, T). Share and rate are those with the least leave-one-out error."""
        weights, mean = influence(codes, logits), logits.mean(axis=0)
        best: tuple[float, Surrogate] | None = None
        for share, rate in product(SHARES, RATES):
            if share == 1.0 and rate != RATES[0]:
                continue
            near = _covariance(codes, codes, weights, share, rate)
            inverse: Floats = np.linalg.inv(near + NUGGET * np.eye(len(codes))).astype(float)
            dual = inverse @ (logits - mean)
            error = float(((dual / np.diag(inverse)[:, None]) ** 2).mean())
            if best is None or error < best[0]:
                best = error, cls(codes, weights, share, rate, inverse, dual, mean, logits.var(axis=0))
        assert best is not None
        return best[1]

    def at(self, columns: npt.NDArray[np.int64]) -> Surrogate:
        """The same, of these logits alone."""
        return replace(self, dual=self.dual[:, columns], mean=self.mean[columns], variance=self.variance[columns])

    def predict(self, codes: Codes) -> tuple[Floats, Floats]:
        """(M, products) → the logits (M, T), and what part of each one's variance is left unknown, (M,)."""
        near = _covariance(codes, self.codes, self.weights, self.share, self.rate)
        unknown = 1.0 - np.einsum("mn,nk,mk->m", near, self.inverse, near)
        return self.mean + near @ self.dual, np.clip(unknown, NUGGET, 1.0)


def influence(codes: Codes, logits: Floats) -> Floats:
    """How much of the squared difference of two runs each product accounts for: (products,), of sum 1."""
    from scipy.optimize import nnls

    i, j = np.triu_indices(len(codes), 1)
    if len(i) > PAIRS:
        chosen = np.random.default_rng(0).choice(len(i), PAIRS, replace=False)
        i, j = i[chosen], j[chosen]
    square = (logits**2).sum(axis=1)
    apart = (square[:, None] + square[None, :] - 2 * logits @ logits.T)[i, j]
    found, _ = nnls(np.c_[codes[i] != codes[j], np.ones(len(i))], np.maximum(apart, 0))
    weights = found[:-1] + 1e-3 * found.sum() + 1e-300  # no product is known to do nothing
    return np.asarray(weights / weights.sum())


def _covariance(a: Codes, b: Codes, weights: Floats, share: float, rate: float) -> Floats:
    apart = (a[:, None, :] != b[None, :, :]) @ weights
    return np.asarray(share * (1 - apart) + (1 - share) * np.exp(-rate * apart))
