"""The replay detector: is this observation the same platform as that candidate?

A pair verifier (`Boosted` on features of observation and candidate) scores every candidate; adding a platform means
adding its signatures, with no retraining. Nothing here knows platforms by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    all_pair_statistics,
    candidate_features,
    pair_features,
    pair_statistics,
    self_features,
)
from hspi.splits import Index

VERIFIER_FEATURES = (*FEATURES, "log2_probes", "top_k")
MONOTONE = tuple(DIRECTION.get(name, 0) for name in VERIFIER_FEATURES)
NAIVE_SETTING = 0  # the first; where that is observed itself, the next
NEAREST_WRONG, RANDOM_WRONG = 6, 4  # negatives kept for each sample: the hard ones, and a few of the rest


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pair statistics of one model at one top-k, on which any sample of probes is one product.

    statistics float32 (C, S, P, C, S, T): observed platform and setting, probe, candidate and setting; present (C, S).
    Observations are named by (platform, setting).
    """

    data: Aligned
    k: int
    statistics: F32
    present: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, data: Aligned, k: int) -> Comparisons:
        """Every setting against every one; k: tokens of each answer that are compared. C²·S²·P·T floats of memory."""
        c, s = data.present.shape
        every = [(i, j) for i in range(c) for j in range(s)]
        found = all_pair_statistics(data, every, k).transpose(0, 3, 1, 2, 4)
        return cls(data, k, np.ascontiguousarray(found).reshape(c, s, *found.shape[1:]), data.present)

    def observed(self, settings: Sequence[int], platforms: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """(platform, setting) of all that was collected under these settings, of these platforms or of all."""
        chosen = range(len(self.present)) if platforms is None else platforms
        return [(c, s) for c in chosen for s in settings if self.present[c, s]]

    def own(self, library: npt.NDArray[np.bool_], pool: Index, platforms: Sequence[int] | None = None) -> F32:
        """How far candidates are from themselves across the settings of their library, on the probes of `pool`.

        library (C, S): the settings that count, of each of `platforms` (all, if not given). Returns (C, 4).
        """
        chosen = range(len(self.present)) if platforms is None else platforms
        return self_features(np.stack([self.with_itself(c)[:, :, pool] for c in chosen]), library, self.k)

    def with_itself(self, platform: int) -> F32:
        """Each setting of a platform observed against each of its own: (S, S, P, T)."""
        return self.statistics[platform, :, :, platform].swapaxes(1, 2)

    def sampled(self, samples: Index, platform: int, at: int, candidates: slice = slice(None)) -> F32:
        """Mean statistics of an observation over each sample of probes (B, n): (B, C, S, T)."""
        b, n = samples.shape
        each = self.statistics[platform, at, :, candidates]
        indicator = np.zeros((b, len(each)), np.float32)
        np.put_along_axis(indicator, samples, np.float32(1 / n), axis=1)
        return (indicator @ each.reshape(len(each), -1)).reshape(b, *each.shape[1:])


@dataclass(frozen=True, slots=True)
class Table:
    """n samples against C candidates. features float32 (n, C, len(VERIFIER_FEATURES)); truth, setting int (n,);
    block int (n,): samples of one block share their probes. distance float32 (n, C): the naive nearest candidate's.
    """

    features: F32
    truth: npt.NDArray[np.int64]
    setting: npt.NDArray[np.int64]
    block: npt.NDArray[np.int64]
    distance: F32


def verifier_rows(
    pairs: F32, usable: npt.NDArray[np.bool_], own: F32, probes: int | npt.NDArray[np.integer], k: int
) -> F32:
    """What the verifier reads of observations beside candidates: (…, C, len(VERIFIER_FEATURES)).

    pairs (…, C, S, F), usable and own as `evidence.replay.candidate_features` has them; probes: in each sample, as many
    as a mean of `pairs` is over; k: tokens of each answer. NaN where a candidate has no usable setting.
    """
    features = candidate_features(pairs, usable, own)
    tail = np.broadcast_to(np.array([np.log2(probes), k], np.float32), (*features.shape[:-1], 2))
    return np.concatenate([features, tail], axis=-1)


def own_distances(data: Aligned, k: int, without: Sequence[int | None] = (None,)) -> F32:
    """How far each platform is from itself across its settings, on all probes of `data`: (len(without), C, 4).

    Each row is without one setting, or with all of them (None).
    """
    c, s = data.present.shape
    statistics = np.empty((c, s, s, len(data.probes), T), np.float32)

    def fill(i: int) -> None:
        own = data.logprobs[i], data.rank[i]
        for a in range(s):
            statistics[i, a] = pair_statistics(own[0][a], own[1][a], *own, data.reference, k)

    on_all_cores(fill, range(c))
    return np.stack([self_features(statistics, _less(data.present, setting), k) for setting in without])


def _less(present: npt.NDArray[np.bool_], setting: int | None) -> npt.NDArray[np.bool_]:
    usable = present.copy()
    if setting is not None:
        usable[:, setting] = False
    return usable


def tabulate(
    pairs: Comparisons,
    observed: Sequence[tuple[int, int]],
    library_settings: Sequence[int],
    samples: Index,
    own_pool: Index,
) -> Table:
    """Features of every observation × sample × candidate.

    samples (B, n): probes of each sample; an observation's own setting never stands in its library;
    own_pool: probes on which candidates are compared with themselves (no probe of a sample among them). The naive
    nearest candidate knows one setting, NAIVE_SETTING. Raises DataError without a second setting.
    """
    b, n = samples.shape
    own_of: dict[int, F32] = {}
    features, truth, setting, distance = [], [], [], []
    for platform, at in observed:
        library = np.zeros_like(pairs.present)
        kept = [x for x in library_settings if x != at]
        if not kept:
            raise DataError("two nuisance settings must be collected at least, but there is one")
        library[:, kept] = pairs.present[:, kept]
        if at not in own_of:
            own_of[at] = pairs.own(library, own_pool)
        found = pair_features(pairs.sampled(samples, platform, at), pairs.k)
        features.append(verifier_rows(found, library, own_of[at], n, pairs.k))
        known = NAIVE_SETTING if at != NAIVE_SETTING else kept[0]
        distance.append(np.where(pairs.present[:, known], found[:, :, known, 0], np.inf))
        truth.append(np.full(b, platform))
        setting.append(np.full(b, at))
    return Table(
        np.concatenate(features),
        np.concatenate(truth),
        np.concatenate(setting),
        np.tile(np.arange(b), len(observed)),
        np.concatenate(distance).astype(np.float32),
    )


def training_rows(
    table: Table, classes: Classes, rng: np.random.Generator, drop: Sequence[int] = ()
) -> tuple[F32, npt.NDArray[np.int64], F32]:
    """Pairs to learn from: X (m, F), y (m,) 1 for the same class, weight (m,), balanced between the two.

    Every right candidate, the nearest wrong ones and a few random ones. Platforms in `drop` appear on neither side.
    """
    n, c = table.features.shape[:2]
    label = np.asarray(classes.label)
    same = label[table.truth][:, None] == label[None, :]
    distance = np.where(same, np.inf, table.features[:, :, 0])
    distance[:, list(drop)] = np.inf
    usable = np.isfinite(table.features[:, :, 0])
    usable[:, list(drop)] = False
    usable[np.isin(table.truth, list(drop))] = False
    keep = same.copy()
    nearest = np.argsort(distance, axis=1)[:, :NEAREST_WRONG]
    np.put_along_axis(keep, nearest, True, axis=1)
    np.put_along_axis(keep, rng.integers(0, c, (n, RANDOM_WRONG)), True, axis=1)
    keep &= usable
    x, y = table.features[keep], same[keep].astype(np.int64)
    weight = np.where(y == 1, 0.5 / max(y.mean(), 1e-9), 0.5 / max(1 - y.mean(), 1e-9))
    return x, y, weight.astype(np.float32)


def score(verifier: Boosted, table: Table) -> F32:
    """Natural log-odds that each candidate is the observation's platform: (n, C), −inf where it has no signature."""
    n, c, f = table.features.shape
    margin = verifier.margin(table.features.reshape(n * c, f)).reshape(n, c)
    return np.where(np.isfinite(table.features[:, :, 0]), margin, -np.inf).astype(np.float32)


def self_scores(
    verifier: Boosted,
    pairs: Comparisons,
    platform: int,
    settings: Sequence[int],
    samples: Index,
    own_pool: Index,
) -> F32:
    """What a platform scores against its own signatures under its other settings: sorted (samples × settings,).

    The levels of that candidate alone. They need no training with it, so a platform added later has them too; none
    come back where it has one setting only.
    """
    chosen = [s for s in settings if pairs.present[platform, s]]
    rows = []
    for at in chosen:
        library = np.zeros_like(pairs.present[platform : platform + 1])
        library[0, [s for s in chosen if s != at]] = True
        if not library.any():
            continue
        found = pair_features(pairs.sampled(samples, platform, at, slice(platform, platform + 1)), pairs.k)
        own = pairs.own(library, own_pool, [platform])
        rows.append(verifier.margin(verifier_rows(found, library, own, samples.shape[1], pairs.k)[:, 0]))
    return np.sort(np.concatenate(rows)).astype(np.float32) if rows else np.empty(0, np.float32)


def class_scores(scores: F32, classes: Classes) -> F32:
    """Best member of each class: (n, C) → (n, classes)."""
    label = np.asarray(classes.label)
    return np.stack([scores[:, label == j].max(axis=1) for j in range(classes.count)], axis=1)
