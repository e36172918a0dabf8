"""The replay detector: is this observation the same platform as that candidate?

A pair verifier (`Boosted` on features of observation and candidate) scores every candidate; adding a platform means
adding its signatures, with no retraining. Nothing here knows platforms by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hspi.detectors.estimators import Boosted
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.cores import on_all_cores
from hspi.evidence.equivalence import Classes
from hspi.evidence.replay import (
    DIRECTION,
    F32,
    FEATURES,
    T,
    candidate_features,
    nearest_setting,
    pair_features,
    pair_statistics,
    self_features,
    setting_statistics,
)
from hspi.splits import Index

VERIFIER_FEATURES = (*FEATURES, "log2_probes", "top_k")
SETTINGS_EQUAL, ALL_EQUAL = (VERIFIER_FEATURES.index(n) for n in ("settings_equal", "all_equal"))
MONOTONE = tuple(DIRECTION.get(name, 0) for name in VERIFIER_FEATURES)
NEAREST_WRONG, RANDOM_WRONG = 6, 4  # negatives kept for each sample: the hard ones, and a few of the rest
# Platforms that an observation is compared with where many observations are: the nearest, by what was measured of the
# library. So the work grows with the number of platforms, not with its square.
RIVALS = 24

TIE = 0.02  # log-odds for each factor of ten in squared distance, and for all of a candidate's settings beside none
VERY = 4.0  # log-odds where all answers are the candidate's bit for bit, which trees do not set above likeness

Row = tuple[int, int]  # (platform, setting)


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pair statistics of one model at one top-k, on which any sample of probes is one product.

    rows: what was observed, as `Aligned.rows`; rivals int64 (C, M): for each platform those that its answers are
    compared with, nearest first, itself not among them. cross float32 (R, M, P, T): each row beside its platform's
    rivals, their nearest settings counting; own: by platform, (S, S, P, T) as `setting_statistics` has it.
    """

    data: Aligned
    k: int
    rows: list[Row]
    rivals: npt.NDArray[np.int64]
    cross: F32
    own: list[F32]
    present: npt.NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    restless: npt.NDArray[np.bool_] = field(init=False, repr=False, compare=False)
    _at: dict[Row, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._at.update({row: i for i, row in enumerate(self.rows)})
        object.__setattr__(self, "present", self.data.present)
        object.__setattr__(self, "restless", self.data.restless)

    @classmethod
    def of(cls, data: Aligned, k: int, distance: npt.NDArray[np.float64] | None = None) -> Comparisons:
        """k: tokens of each answer that are compared; distance (C, C): how far platforms are apart, of which the
        nearest are compared (without it, every platform with every one)."""
        rivals = nearest_platforms([p.hardware for p in data.platforms], distance)
        rows = data.rows
        cross = np.empty((len(rows), rivals.shape[1], len(data.probes), T), np.float32)

        def fill(i: int) -> None:
            a, b = rows[i]
            theirs, ranks = data.logprobs[rivals[a]], data.rank[rivals[a]]
            flat = theirs.reshape(-1, *theirs.shape[2:]), ranks.reshape(-1, *ranks.shape[2:])
            found = pair_statistics(data.logprobs[a, b], data.rank[a, b], flat[0], flat[1], data.reference, k)
            cross[i] = nearest_setting(found.reshape(*theirs.shape[:3], T), data.beside(a, b)[rivals[a]])

        on_all_cores(fill, range(len(rows)))
        own = on_all_cores(lambda c: setting_statistics(data, c, k), range(len(data.platforms)))
        return cls(data, k, rows, rivals, cross, own)

    def self_features(self, platform: int, usable: npt.NDArray[np.bool_], pool: Index) -> F32:
        """How far a platform is from itself across the settings `usable` (S,), on the probes of `pool`: (4,)."""
        return self_features(self.own[platform][:, :, pool], self.restless[platform] & usable, usable, self.k)

    def own_settings(self, platform: int, setting: int) -> npt.NDArray[np.bool_]:
        """Those that stand beside its answers under one of them (`Aligned.beside`): (S,)."""
        usable = self.present[platform].copy()
        usable[setting] &= not self.restless[platform, setting]
        return np.asarray(usable)

    def of_itself(self, row: Row, usable: npt.NDArray[np.bool_]) -> F32:
        """A row beside its own platform with these settings (S,): (P, T), NaN where there are none."""
        platform, setting = row
        return nearest_setting(self.own[platform][setting], usable)

    def beside_rivals(self, row: Row) -> F32:
        """A row beside its platform's rivals: (M, P, T)."""
        return np.asarray(self.cross[self._at[row]])


def nearest_platforms(hardware: Sequence[str], distance: npt.NDArray[np.float64] | None) -> npt.NDArray[np.int64]:
    """For each of C platforms RIVALS others, or all where there are no more: int64 (C, M), nearest first.

    Half are the nearest at all, half the nearest on other hardware, which are all that is left where a machine is held
    out; where that has fewer, the next nearest fill up.
    """
    c, machine = len(hardware), np.asarray(hardware)
    apart = np.zeros((c, c)) if distance is None else np.nan_to_num(distance, nan=np.inf)
    order = np.argsort(np.where(np.eye(c, dtype=bool), np.inf, apart), axis=1, kind="stable")[:, : c - 1]
    if distance is None or c - 1 <= RIVALS:
        return order
    chosen = np.empty((c, RIVALS), np.int64)
    for i, near in enumerate(order):
        elsewhere = near[machine[near] != machine[i]][: RIVALS // 2]
        here = near[~np.isin(near, elsewhere)][: RIVALS - len(elsewhere)]
        chosen[i] = near[np.isin(near, np.r_[elsewhere, here])]
    return chosen


def means(statistics: F32, samples: Index) -> F32:
    """Mean statistics of each sample (B, n) of probes: (…, P, T) → (B, …, T)."""
    *lead, p, t = statistics.shape
    indicator = np.zeros((len(samples), p), np.float32)
    np.put_along_axis(indicator, samples, np.float32(1 / samples.shape[1]), axis=1)
    flat = np.moveaxis(statistics.reshape(-1, p, t), 1, 0).reshape(p, -1)
    return (indicator @ flat).reshape(len(samples), *lead, t)


@dataclass(frozen=True, slots=True)
class Table:
    """n samples against M + 1 candidates: the truth first, then its rivals. features float32 (n, M + 1,
    len(VERIFIER_FEATURES)); who int (n, M + 1): which platforms they are; truth, setting, block int (n,): samples of
    one block share their probes.
    """

    features: F32
    who: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    setting: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]

    @property
    def distance(self) -> F32:
        """(n, M + 1): the naive nearest candidate's; infinite where there is none."""
        return np.where(np.isfinite(self.features[:, :, 0]), self.features[:, :, 0], np.inf)


def verifier_rows(pairs: F32, own: F32, probes: int, k: int) -> F32:
    """What the verifier reads of observations beside candidates: (…, C, len(VERIFIER_FEATURES)).

    pairs and own as `evidence.replay.candidate_features` has them; probes: in each sample, as many as a mean of `pairs`
    is over; k: tokens of each answer. NaN where a candidate has no usable setting.
    """
    features = candidate_features(pairs, own)
    tail = np.broadcast_to(np.array([np.log2(probes), k], np.float32), (*features.shape[:-1], 2))
    return np.concatenate([features, tail], axis=-1)


def own_distances(data: Aligned, k: int) -> F32:
    """How far each platform is from itself across its settings, on all probes of `data`: (S + 1, C, 4).

    Row s is without setting s of unsteady platforms, the last with all.
    """
    present, moved = data.present, data.restless
    c, s = present.shape
    out = np.full((s + 1, c, 4), np.nan, np.float32)

    def fill(i: int) -> None:
        if not moved[i].any():
            return
        statistics = setting_statistics(data, i, k)
        for held in range(s):
            usable = present[i] & ~(moved[i] & (np.arange(s) == held))
            out[held, i] = self_features(statistics, moved[i] & usable, usable, k)
        out[s, i] = self_features(statistics, moved[i], present[i], k)

    on_all_cores(fill, range(c))
    return out


def tabulate(
    pairs: Comparisons,
    observed: Sequence[Row],
    samples: Index,
    own_pool: Index,
    apart: bool,
) -> Table:
    """Features of every observation × sample × candidate.

    samples (B, n): probes of each sample; own_pool: probes on which candidates are compared with themselves (no probe
    of a sample among them). An unsteady platform's own setting never stands in its library. A steady one's does, for
    its class answers so again in whatever batch; apart takes it away where the platform has another.
    """
    b, n = samples.shape
    all_own = np.stack([pairs.self_features(c, on, own_pool) for c, on in enumerate(pairs.present)])
    features, who = [], []
    for platform, at in observed:
        usable = pairs.own_settings(platform, at)
        if apart and usable.sum() > 1:
            usable[at] = False
        rivals = pairs.rivals[platform]
        beside = np.concatenate(
            [pairs.of_itself((platform, at), usable)[None], pairs.beside_rivals((platform, at))], axis=0
        )
        own = all_own[np.r_[platform, rivals]].copy()
        own[0] = pairs.self_features(platform, usable, own_pool)
        features.append(verifier_rows(pair_features(means(beside, samples), pairs.k), own, n, pairs.k))
        who.append(np.broadcast_to(np.r_[platform, rivals], (b, len(rivals) + 1)))
    truth, setting = (np.repeat([row[i] for row in observed], b) for i in (0, 1))
    return Table(np.concatenate(features), np.concatenate(who), truth, setting, np.tile(np.arange(b), len(observed)))


def training_rows(
    table: Table, classes: Classes, rng: np.random.Generator, drop: Sequence[int] = ()
) -> tuple[F32, npt.NDArray[np.int64], F32]:
    """Pairs to learn from: X (m, F), y (m,) 1 for the same class, weight (m,), balanced between the two.

    Every right candidate, the nearest wrong ones and a few random ones. Platforms in `drop` appear on neither side.
    """
    n, c = table.who.shape
    label = np.asarray(classes.label)
    same = label[table.truth][:, None] == label[table.who]
    dropped = np.isin(table.who, list(drop))
    distance = np.where(same | dropped, np.inf, table.distance)
    usable = np.isfinite(table.features[:, :, 0]) & ~dropped & ~np.isin(table.truth, list(drop))[:, None]
    keep = same.copy()
    nearest = np.argsort(distance, axis=1)[:, :NEAREST_WRONG]
    np.put_along_axis(keep, nearest, True, axis=1)
    np.put_along_axis(keep, rng.integers(0, c, (n, RANDOM_WRONG)), True, axis=1)
    keep &= usable
    x, y = table.features[keep], same[keep].astype(np.int64)
    weight = np.where(y == 1, 0.5 / max(y.mean(), 1e-9), 0.5 / max(1 - y.mean(), 1e-9))
    return x, y, weight.astype(np.float32)


def log_odds(verifier: Boosted, rows: F32) -> F32:
    """Natural log-odds that observation and candidate are one platform: (n, len(VERIFIER_FEATURES)) → (n,).

    Trees saturate: of candidates that they call alike the nearer one is the likelier, and of those equally near the one
    that gives such bits under more of its settings. Raises DataError for trees of
    another version of hspi, which read other features.
    """
    if verifier.n_features_in_ != rows.shape[1]:
        raise DataError(
            f"a detector's trees must read {rows.shape[1]} features, as this version of hspi makes them, but these "
            f"read {verifier.n_features_in_}: `hspi train` makes others"
        )
    tie = TIE * (rows[:, SETTINGS_EQUAL] - rows[:, 0]) + VERY * (rows[:, ALL_EQUAL] == 1)
    return np.asarray(verifier.margin(rows) + np.nan_to_num(tie, nan=0.0), np.float32)


def score(verifier: Boosted, table: Table) -> F32:
    """Natural log-odds that each candidate is the platform observed: (n, M + 1), −inf where it has no signature."""
    n, c, f = table.features.shape
    margin = log_odds(verifier, table.features.reshape(n * c, f)).reshape(n, c)
    return np.where(np.isfinite(table.features[:, :, 0]), margin, -np.inf).astype(np.float32)


def spread(values: F32, who: npt.NDArray[np.int64], platforms: int, empty: float = -np.inf) -> F32:
    """Values of candidates (n, M) in the places of their platforms (n, platforms), `empty` for those not compared."""
    out = np.full((len(values), platforms), empty, np.float32)
    np.put_along_axis(out, who, values, axis=1)
    return out


def self_rows(
    pairs: Comparisons, platform: int, chosen: npt.NDArray[np.bool_], samples: Index, own_pool: Index
) -> dict[str, F32]:
    """What the verifier reads of a platform beside its own signatures, by the setting that it answers under: {name:
    (B, len(VERIFIER_FEATURES))} for samples (B, n).

    chosen (S,): the settings in its library. None come back where an unsteady platform has one setting only.
    """
    names, found = list(pairs.data.settings[platform]), {}
    for at in np.flatnonzero(chosen):
        usable = pairs.own_settings(platform, int(at)) & chosen
        if not usable.any():
            continue
        own = pairs.self_features(platform, usable, own_pool)
        features = pair_features(means(pairs.of_itself((platform, int(at)), usable), samples), pairs.k)
        found[names[at]] = verifier_rows(features, own, samples.shape[1], pairs.k)
    return found


def self_scores(verifier: Boosted, every: Sequence[dict[str, F32]]) -> list[dict[str, list[float]]]:
    """The scores of what `self_rows` gave of several platforms, sorted: the levels of each candidate alone. They need
    no training with it, so a platform added later has them too."""
    parts = [rows for some in every for rows in some.values()]
    if not parts:
        return [{} for _ in every]
    scores = iter(np.split(log_odds(verifier, np.concatenate(parts)), np.cumsum([len(p) for p in parts])[:-1]))
    return [{name: np.sort(next(scores)).tolist() for name in some} for some in every]


def class_scores(scores: F32, classes: Classes) -> F32:
    """Best member of each class: (n, C) → (n, classes)."""
    label = np.asarray(classes.label)
    return np.stack([scores[:, label == j].max(axis=1) for j in range(classes.count)], axis=1)
