"""Replay: an observation beside a candidate platform's own signature on the same probes.

For each probe, over the tokens that both report: d = observed − candidate log-probability, and the residuals of both
against the float64 reference, each less its median (the shift of the softmax normaliser, DESIGN.md §1). The
statistics of a probe add up, so that any sample of probes costs one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
from hspi.evidence.cores import on_all_cores
from hspi.evidence.median import median

F32 = npt.NDArray[np.float32]

STATISTICS = (
    "shared",  # tokens that both report
    "equal",  # of those, the same float32 bits
    "near",  # of those, within two ulp once the shift is removed
    "same_rank",  # of those, at the same place in both orders
    "all_equal",  # 1 if every asked token has the same bits
    "oo",  # sum of squared residuals of the observation
    "cc",  # … of the candidate
    "oc",  # … and their product
    "dd",  # sum of squared differences
    "log_distance",  # log10 of dd / (oo + cc), of this probe alone
    "correlation",  # of the residuals, of this probe alone
)
T = len(STATISTICS)

PAIR_FEATURES = (
    "distance",
    "correlation",
    "equal",
    "near",
    "same_rank",
    "all_equal",
    "missing",
    "mean_log_distance",
    "mean_correlation",
    "scale_ratio",
    "observed_scale",
)
FEATURES = (
    *PAIR_FEATURES,
    "mean_distance",
    "mean_equal",
    "self_distance",
    "self_equal",
    "self_near",
    "self_mean_log_distance",
    "excess_distance",
    "excess_equal",
    "excess_mean_log_distance",
)


# The nearer, the likelier: an observation that equals a signature bit for bit must never look odd for being too near.
DIRECTION = {
    **dict.fromkeys(("distance", "mean_log_distance", "missing", "mean_distance"), -1),
    **dict.fromkeys(("excess_distance", "excess_mean_log_distance"), -1),
    **dict.fromkeys(("correlation", "equal", "near", "all_equal", "mean_correlation", "mean_equal", "excess_equal"), 1),
}


def top_slots(rank: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int16]:
    """Slots of the k best-ranked tokens: int16 (P, k), -1 where the token has no slot."""
    order = np.argsort(rank, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(rank, order, axis=1)
    return np.where(best < k, order, -1).astype(np.int16)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pair_statistics(slots, lp_o, rank_o, lp_c, rank_c, reference, out):  # type: ignore[no-untyped-def]
    """slots (P, k); lp_o, rank_o (P, K); lp_c, rank_c (N, P, K); reference float64 (P, K); out (N, P, T)."""
    n_candidates, n_probes = lp_c.shape[0], lp_c.shape[1]
    k = slots.shape[1]
    d = np.empty(k)
    o = np.empty(k)
    c = np.empty(k)
    ulp = np.empty(k)
    shift_all = np.full(n_probes, np.nan)  # of the observation where a candidate has every token: the same for each
    for n in range(n_candidates):
        for p in range(n_probes):
            m = 0
            equal = 0
            same_rank = 0
            for j in range(k):
                slot = slots[p, j]
                if slot < 0:
                    continue
                b = lp_c[n, p, slot]
                if np.isnan(b):
                    continue
                a = lp_o[p, slot]
                d[m] = np.float64(a) - np.float64(b)
                o[m] = np.float64(a) - reference[p, slot]
                c[m] = np.float64(b) - reference[p, slot]
                ulp[m] = max(abs(a), 0.125) * 1.2e-7
                equal += a == b
                same_rank += rank_o[p, slot] == rank_c[n, p, slot]
                m += 1
            row = out[n, p]
            row[:] = 0.0
            row[9] = 1.0  # nothing shared: as far as can be
            if m == 0:
                continue
            shift_d = median(d, m)
            shift_c = median(c, m)
            if m < k:
                shift_o = median(o, m)
            else:
                if np.isnan(shift_all[p]):
                    shift_all[p] = median(o, m)
                shift_o = shift_all[p]
            oo = cc = oc = dd = floor = 0.0
            near = 0
            for j in range(m):
                x = o[j] - shift_o
                y = c[j] - shift_c
                z = d[j] - shift_d
                oo += x * x
                cc += y * y
                oc += x * y
                dd += z * z
                floor += ulp[j] * ulp[j]
                near += abs(z) <= 2.0 * ulp[j]
            row[0] = m
            row[1] = equal
            row[2] = near
            row[3] = same_rank
            row[4] = equal == k
            row[5] = oo
            row[6] = cc
            row[7] = oc
            row[8] = dd
            row[9] = np.log10((dd + 0.1 * floor) / (oo + cc + floor))
            row[10] = oc / np.sqrt((oo + 1e-3 * floor) * (cc + 1e-3 * floor))


def pair_statistics(
    observed_logprobs: F32,
    observed_rank: npt.NDArray[np.uint8],
    candidate_logprobs: F32,
    candidate_rank: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float64],
    k: int,
) -> F32:
    """Statistics of one observation against N candidate settings, float32 (N, P, T), columns STATISTICS.

    observed (P, K), candidates (N, P, K), all in the slots of `reference` (P, K); the k best tokens of the
    observation are compared.
    """
    out = np.empty((*candidate_logprobs.shape[:2], T))
    slots = top_slots(observed_rank, k)
    _pair_statistics(slots, observed_logprobs, observed_rank, candidate_logprobs, candidate_rank, reference, out)
    return out.astype(np.float32)


def all_pair_statistics(data: Aligned, observed: Sequence[tuple[int, int]], k: int) -> F32:
    """Each observed (platform, setting) against every one: float32 (O, C, S, P, T)."""
    c, s, p, slots = data.logprobs.shape
    flat, ranks = data.logprobs.reshape(c * s, p, slots), data.rank.reshape(c * s, p, slots)
    out = np.empty((len(observed), c, s, p, T), np.float32)

    def fill(i: int) -> None:
        a, b = observed[i]
        found = pair_statistics(data.logprobs[a, b], data.rank[a, b], flat, ranks, data.reference, k)
        out[i] = found.reshape(c, s, p, T)

    on_all_cores(fill, range(len(observed)))
    return out


def pair_features(total: F32, k: int) -> F32:
    """Features of a sample from the mean of its probes' statistics: (…, T) → (…, len(PAIR_FEATURES))."""
    t = {name: total[..., i].astype(np.float64) for i, name in enumerate(STATISTICS)}
    shared = np.maximum(t["shared"], 1e-9)
    tiny = 1e-15
    columns = [
        np.log10((t["dd"] + tiny) / (t["oo"] + t["cc"] + tiny)),
        t["oc"] / np.sqrt((t["oo"] + tiny) * (t["cc"] + tiny)),
        t["equal"] / shared,
        t["near"] / shared,
        t["same_rank"] / shared,
        t["all_equal"],
        1.0 - t["shared"] / k,
        t["log_distance"],
        t["correlation"],
        np.log10((t["oo"] + tiny) / (t["cc"] + tiny)),
        0.5 * np.log10(t["oo"] / shared + tiny),
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def candidate_features(pairs: F32, usable: npt.NDArray[np.bool_], own: F32) -> F32:
    """Features of (observation, candidate platform) from those of its settings.

    pairs (…, C, S, F): the observation against each setting; usable (…, C, S) or (C, S): which settings stand in the
    library; own (C, 4): how far the candidate is from itself across its settings (`self_features`).
    Returns (…, C, len(FEATURES)): the nearest setting's features, means over settings, and the excess over `own`.
    """
    distance = np.where(usable, pairs[..., 0], np.inf)
    best = np.argmin(distance, axis=-1)
    nearest = np.take_along_axis(pairs, best[..., None, None], axis=-2)[..., 0, :]
    weight = np.broadcast_to(usable, distance.shape).astype(np.float32)
    weight = weight / np.maximum(weight.sum(axis=-1, keepdims=True), 1)
    mean = (pairs * weight[..., None]).sum(axis=-2)
    own = np.broadcast_to(own, (*nearest.shape[:-1], own.shape[-1]))
    extra = [
        mean[..., 0],
        mean[..., 2],
        own[..., 0],
        own[..., 1],
        own[..., 2],
        own[..., 3],
        nearest[..., 0] - own[..., 0],
        nearest[..., 2] - own[..., 1],
        nearest[..., 7] - own[..., 3],
    ]
    features = np.concatenate([nearest, np.stack(extra, axis=-1)], axis=-1)
    features[~np.broadcast_to(usable, distance.shape).any(axis=-1)] = np.nan
    return features.astype(np.float32)


def self_features(statistics: F32, usable: npt.NDArray[np.bool_], k: int) -> F32:
    """How a platform differs from itself across settings: (C, 4) distance, equal, near, mean_log_distance.

    statistics (C, S, S, P', T): each setting observed against each other of the same platform, on probes that no
    sample uses; usable (C, S). NaN where a platform has one setting only. The nearest other setting counts, as it
    does for an observation.
    """
    c = len(usable)
    pairs = pair_features(statistics.mean(axis=3), k)  # (C, S, S, F)
    out = np.full((c, 4), np.nan, np.float32)
    for i in range(c):
        rows = []
        for a in np.flatnonzero(usable[i]):
            others = [b for b in np.flatnonzero(usable[i]) if b != a]
            if others:
                rows.append(min((pairs[i, a, b] for b in others), key=lambda f: f[0]))
        if rows:
            out[i] = np.mean(rows, axis=0)[[0, 2, 3, 7]]
    return out
