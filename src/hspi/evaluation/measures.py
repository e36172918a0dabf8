"""Accuracies with their chance level and interval, and the other figures of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
RESAMPLES, BINS = 1000, 10


@dataclass(frozen=True, slots=True)
class Accuracy:
    """value with its 95 % interval over probes, the chance level, samples scored and tokens each sample took."""

    value: float
    ci_low: float
    ci_high: float
    chance: float
    samples: int
    tokens: int = 0

    def flat(self, name: str) -> dict[str, float]:
        return {
            name: self.value,
            f"{name}.ci_low": self.ci_low,
            f"{name}.ci_high": self.ci_high,
            f"{name}.chance": self.chance,
        }


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's interval at 95 % for a share; it does not shrink to nothing when every sample is right."""
    if n <= 0:
        return 0.0, 1.0
    p, z = successes / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def macro_accuracy(
    right: npt.NDArray[np.float64],
    truth: Sequence[str] | npt.NDArray,
    block: Ints,
    per_partition: int,
    chance: float,
    tokens: int = 0,
) -> Accuracy:
    """Mean over classes of the share of right answers, with a bootstrap over blocks of probes.

    right (n,) in [0, 1]; truth (n,) class names; block (n,): samples of one block share their probes, and
    `per_partition` blocks are disjoint. Resamples are of that many blocks, so that repeated partitions of the same
    probes do not pass for new probes; the interval is never narrower than Wilson's for the disjoint samples.
    """
    names, codes = np.unique(np.asarray(truth), return_inverse=True)
    blocks, at = np.unique(block, return_inverse=True)
    total = np.zeros((len(names), len(blocks)))
    count = np.zeros_like(total)
    np.add.at(total, (codes, at), right)
    np.add.at(count, (codes, at), 1)
    value = float((total.sum(axis=1) / count.sum(axis=1)).mean())
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(blocks), (RESAMPLES, per_partition))
    seen = count[:, drawn].sum(axis=2)
    share = np.where(seen > 0, total[:, drawn].sum(axis=2) / np.maximum(seen, 1), np.nan)
    again = np.nanmean(share, axis=0)  # a class that no drawn block holds says nothing
    low, high = np.quantile(again, [0.025, 0.975])
    disjoint = len(right) * per_partition / len(blocks)
    w_low, w_high = wilson(value * disjoint, disjoint)
    return Accuracy(value, min(float(low), w_low), max(float(high), w_high), chance, len(right), tokens)


def mean_of(parts: Sequence[Accuracy]) -> Accuracy:
    """Mean of accuracies measured on disjoint data; the interval is the mean of the intervals, which is wider."""
    value, low, high, chance = (
        float(np.mean([getattr(p, f) for p in parts])) for f in ("value", "ci_low", "ci_high", "chance")
    )
    return Accuracy(value, low, high, chance, sum(p.samples for p in parts), parts[0].tokens)


def pair_accuracies(scores: npt.NDArray[np.float32], truth: Ints) -> npt.NDArray[np.float64]:
    """How well each pair of classes is told apart, the others not being offered: symmetric (K, K), NaN on the diagonal.

    scores (n, K), higher is likelier, NaN where a class is not to be told from the truth; truth (n,). A tie counts as
    half; the two directions weigh alike.
    """
    k = scores.shape[1]
    out = np.full((k, k), np.nan)
    for a in range(k):
        own = scores[truth == a]
        if len(own):
            won = (own[:, [a]] > own) + 0.5 * (own[:, [a]] == own)
            told = ~np.isnan(own)
            out[a] = np.where(told.any(axis=0), (won * told).sum(axis=0) / np.maximum(told.sum(axis=0), 1), np.nan)
    both = np.isnan(out) & np.isnan(out.T)
    out = np.where(both, np.nan, 0.5 * (np.where(np.isnan(out), out.T, out) + np.where(np.isnan(out.T), out, out.T)))
    np.fill_diagonal(out, np.nan)
    return out


def auroc(known: npt.NDArray[np.floating], unknown: npt.NDArray[np.floating]) -> float:
    """P(score of a known one > score of an unknown one), ties as half."""
    from scipy.stats import rankdata

    both = np.concatenate([known, unknown])
    ranks = rankdata(both)[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


def reliability(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> list[dict]:
    """Rows of the reliability plot: bin_low, bin_high, confidence, accuracy, count."""
    edges = np.linspace(0, 1, BINS + 1)
    at = np.clip(np.digitize(confidence, edges) - 1, 0, BINS - 1)
    rows = []
    for b in range(BINS):
        some = at == b
        if some.any():
            rows.append(
                {
                    "bin_low": edges[b],
                    "bin_high": edges[b + 1],
                    "confidence": float(confidence[some].mean()),
                    "accuracy": float(right[some].mean()),
                    "count": int(some.sum()),
                }
            )
    return rows


def upper_bound(happened: int, n: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper bound for a share (Biometrika 26, 1934)."""
    from scipy.stats import beta

    return 1.0 if happened >= n else float(beta.ppf(confidence, happened + 1, n - happened))
