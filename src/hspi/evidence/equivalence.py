"""Equivalence classes: platforms that the probes cannot tell apart under nuisance. Measured, never declared.

Two platforms are one class on a model if every setting hashes alike, or if telling them apart, one probe at a time, is
not better than chance (DESIGN.md §3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
from hspi.evidence.cores import on_all_cores
from hspi.evidence.replay import F32, LOG_DISTANCE, pair_statistics

Z = 2.33  # one-sided 99 %
# Platforms that each is compared with probe by probe, and tokens of a probe that the choice of them looks at.
NEAR, SCREENED = 48, 8
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Classes:
    """One model's classes. label[i]: class of platform i; names and members by class.

    separation (C, C): share of probes on which an observation is nearer to its own platform's signatures than to the
    other platform's, an unsteady platform's own setting left out; low (C, C): its lower 99 % bound over probes;
    distance (C, C): log10 of how far they are apart on a probe, the nearest settings counting.
    """

    model: str
    platform_ids: list[str]
    label: list[int]
    separation: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float64]

    @property
    def count(self) -> int:
        return max(self.label) + 1

    def members(self, c: int) -> list[str]:
        return [p for p, label in zip(self.platform_ids, self.label, strict=True) if label == c]

    def members_of(self, platform: str) -> list[str]:
        """The class that a platform is in; alone where it is not known."""
        if platform not in self.platform_ids:
            return [platform]
        return self.members(self.label[self.platform_ids.index(platform)])

    def name(self, c: int) -> str:
        return self.members(c)[0]

    def only(self, platforms: list[int]) -> Classes:
        """The same, of these platforms alone; classes are numbered anew by their first member."""
        old = [self.label[i] for i in platforms]
        number = {label: n for n, label in enumerate(dict.fromkeys(old))}
        return Classes(
            self.model,
            [self.platform_ids[i] for i in platforms],
            [number[label] for label in old],
            self.separation[np.ix_(platforms, platforms)],
            self.low[np.ix_(platforms, platforms)],
            self.distance[np.ix_(platforms, platforms)],
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "platforms": self.platform_ids,
            "label": self.label,
            "separation": np.round(self.separation, 4).tolist(),
            "low": np.round(self.low, 4).tolist(),
            "distance": np.round(self.distance, 4).tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Classes:
        return cls(
            str(data["model"]),
            list(data["platforms"]),  # type: ignore[call-overload]
            list(data["label"]),  # type: ignore[call-overload]
            np.asarray(data["separation"], float),
            np.asarray(data["low"], float),
            np.asarray(data.get("distance", np.zeros_like(data["low"])), float),  # older detectors have none
        )


def row_distances(data: Aligned, k: int, near: int = NEAR) -> F32:
    """How far each setting's answers are from each platform's nearest one that stands beside them (`Aligned.beside`),
    probe by probe: log10 (R, C, P), infinite where there is none; R rows as `Aligned.rows`.

    Probe by probe only where one platform is among the `near` that `screened` finds nearest to the other, so that the
    work grows with the number of platforms; for the rest that one estimate stands at every probe.
    """
    rows = data.rows
    c, p, slots = len(data.platforms), *data.logprobs.shape[2:]
    whole = screened(data)
    chosen = _near(whole, np.array([a for a, _ in rows]), c, near)
    every = np.empty((len(rows), c, p), np.float32)

    def fill(i: int) -> None:
        a, b = rows[i]
        beside, some = data.beside(a, b), np.flatnonzero(chosen[a])
        every[i] = np.where(beside, whole[i], np.inf).min(axis=1)[:, None]
        theirs, ranks = data.logprobs[some].reshape(-1, p, slots), data.rank[some].reshape(-1, p, slots)
        found = pair_statistics(data.logprobs[a, b], data.rank[a, b], theirs, ranks, data.reference, k)
        distance = found[..., LOG_DISTANCE].reshape(len(some), -1, p)
        every[i, some] = np.where(beside[some, :, None], distance, np.inf).min(axis=1)

    on_all_cores(fill, range(len(rows)))
    return every


def screened(data: Aligned) -> F32:
    """About how far each setting is from each other: log10 (R, C, S) of what `row_distances` has as a mean of probes,
    infinite where nothing was collected.

    One matrix product of residuals on the likeliest tokens, each probe's scaled to length 1, gives the mean cosine; the
    ratio of sizes does the rest.
    """
    tokens = np.argsort(-data.reference, axis=1)[:, :SCREENED]
    answers = np.stack([np.take_along_axis(data.logprobs[row], tokens, axis=1) for row in data.rows])
    residual = answers - np.take_along_axis(data.reference, tokens, axis=1)
    residual = np.nan_to_num(residual - np.nanmedian(residual, axis=-1, keepdims=True))
    length = np.sqrt((residual**2).sum(axis=-1, keepdims=True)) + TINY
    flat = (residual / length).reshape(len(residual), -1).astype(np.float32)
    cosine = flat @ flat.T / len(data.probes)
    size = np.log(length[..., 0]).mean(axis=1)
    out = np.full((len(flat), *data.present.shape), np.inf, np.float32)
    out[:, data.present] = np.log10(np.maximum(1 - cosine / np.cosh(size[:, None] - size), TINY))
    return out


def _near(whole: F32, platform: npt.NDArray[np.int64], c: int, near: int) -> npt.NDArray[np.bool_]:
    """(C, C): whether one of two platforms is among the other's nearest, itself the first. whole (R, C, S) of rows that
    are of `platform` (R,)."""
    apart = np.full((c, c), np.inf, np.float32)
    np.minimum.at(apart, platform, whole.min(axis=2))
    np.fill_diagonal(apart, -np.inf)
    chosen = np.zeros((c, c), bool)
    np.put_along_axis(chosen, np.argsort(apart, axis=1, kind="stable")[:, :near], True, axis=1)
    return chosen | chosen.T


def measure(data: Aligned, k: int) -> Classes:
    """Classes of one model, numbered by their first member, by the k best tokens of each answer. `data` must hold
    training probes alone.
    """
    c = len(data.platforms)
    every = row_distances(data, k)
    platform = np.array([a for a, _ in data.rows])
    own = every[np.arange(len(every)), platform]
    tellable = np.isfinite(own).all(axis=1) & _telling(data)
    won = np.where(own[:, None] < every, 1.0, np.where(own[:, None] == every, 0.5, 0.0)).astype(np.float32)
    mean, error, distance = (np.full((c, c), np.nan) for _ in range(3))
    for a in range(c):
        distance[a] = every[platform == a].mean(axis=(0, 2))
        some = (platform == a) & tellable
        if some.any():
            by_probe = won[some].mean(axis=0)
            mean[a], error[a] = by_probe.mean(axis=1), by_probe.std(axis=1) / np.sqrt(by_probe.shape[1])
    separation = 0.5 * (mean + mean.T)
    np.fill_diagonal(separation, 0.5)
    low = separation - Z * 0.5 * np.sqrt(error**2 + error.T**2)
    hashes = [bits(data, i) for i in range(c)]
    same = (low <= 0.5) | np.array([[a == b for b in hashes] for a in hashes])
    return Classes(data.model, data.platform_ids(), _components(same), separation, low, 0.5 * (distance + distance.T))


def _telling(data: Aligned) -> npt.NDArray[np.bool_]:
    """(R,): the rows by which platforms are told apart, of an unsteady one those in company.

    Alone it repeats itself and may differ from a twin; a server in use keeps company, and what nobody can tell there is
    one class.
    """
    restless = data.restless
    return np.array([restless[c, s] or not restless[c].any() for c, s in data.rows])


def bits(data: Aligned, i: int) -> str:
    """Hash of all that a platform answered, setting by setting."""
    digest = hashlib.sha256()
    for s in np.flatnonzero(data.present[i]):
        digest.update(data.raw[i, s].tobytes() + data.rank[i, s].tobytes())
    return digest.hexdigest()


def _components(same: npt.NDArray[np.bool_]) -> list[int]:
    """Connected components, numbered by their first member."""
    label = [-1] * len(same)
    count = 0
    for i in range(len(same)):
        if label[i] >= 0:
            continue
        stack = [i]
        while stack:
            j = stack.pop()
            if label[j] < 0:
                label[j] = count
                stack.extend(k for k in range(len(same)) if same[j, k] and label[k] < 0)
        count += 1
    return label
