"""Equivalence classes: platforms that the probes cannot tell apart under nuisance. Measured, never declared.

Two platforms are one class on a model if every setting hashes alike, or if telling them apart across settings, one
probe at a time, is not better than chance (DESIGN.md §3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
from hspi.evidence.replay import F32, STATISTICS

_LOG_DISTANCE = STATISTICS.index("log_distance")
Z = 2.33  # one-sided 99 %


@dataclass(frozen=True, slots=True)
class Classes:
    """One model's classes. label[i]: class of platform i; names and members by class.

    separation (C, C): share of probes on which an observation is nearer to its own platform's signature under another
    setting than to the other platform's; low (C, C): its lower 99 % bound over probes.
    """

    model: str
    platform_ids: list[str]
    label: list[int]
    separation: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]

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
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "platforms": self.platform_ids,
            "label": self.label,
            "separation": np.round(self.separation, 4).tolist(),
            "low": np.round(self.low, 4).tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Classes:
        return cls(
            str(data["model"]),
            list(data["platforms"]),  # type: ignore[call-overload]
            list(data["label"]),  # type: ignore[call-overload]
            np.asarray(data["separation"], float),
            np.asarray(data["low"], float),
        )


def separations(
    statistics: F32, settings: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Single-probe separation of each pair of platforms and its standard error over probes: two (C, C).

    statistics (C, S, C, S, P, T): each setting observed against every one; settings (C, S): which exist. NaN where two
    platforms share no two settings.
    """
    c = len(settings)
    distance = statistics[..., _LOG_DISTANCE]
    mean = np.full((c, c), np.nan)
    error = np.full((c, c), np.nan)
    for a in range(c):
        shared = settings & settings[a]  # alike for both, since the nearest of more settings is nearer
        won = np.zeros((c, distance.shape[-1]))
        count = np.zeros(c)
        for b in np.flatnonzero(settings[a]):
            others = shared.copy()
            others[:, b] = False
            own = np.where(others[:, :, None], distance[a, b, a], np.inf).min(axis=1)  # (C, P)
            near = np.where(others[:, :, None], distance[a, b], np.inf).min(axis=1)
            some = others.any(axis=1)
            won[some] += np.where(own < near, 1.0, np.where(own == near, 0.5, 0.0))[some]
            count += some
        measured = count > 0
        by_probe = won[measured] / count[measured, None]
        mean[a, measured] = by_probe.mean(axis=1)
        error[a, measured] = by_probe.std(axis=1) / np.sqrt(by_probe.shape[1])
    both = 0.5 * (mean + mean.T)
    np.fill_diagonal(both, 0.5)
    return both, 0.5 * np.sqrt(error**2 + error.T**2)


def measure(data: Aligned, statistics: F32) -> Classes:
    """Classes of one model, numbered by their first member. `data` must hold training probes alone.

    statistics float32 (C, S, C, S, P, T) over the same probes, as `all_pair_statistics` gives them.
    """
    c = len(data.platforms)
    separation, error = separations(statistics, data.present)
    low = separation - Z * error
    same = low <= 0.5
    hashes = [_bits(data, i) for i in range(c)]
    for i in range(c):
        for j in range(c):
            same[i, j] |= hashes[i] == hashes[j]
    return Classes(data.model, data.platform_ids(), _components(same), separation, low)


def _bits(data: Aligned, i: int) -> str:
    """Hash of all that a platform answered, setting by setting."""
    digest = hashlib.sha256()
    for s, name in enumerate(data.nuisances):
        if data.present[i, s]:
            digest.update(name.encode() + data.raw[i, s].tobytes() + data.rank[i, s].tobytes())
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
