"""Replay: an observation beside a candidate platform's own signature on the same probes.

For each probe, over the tokens that both report: d = observed − candidate log-probability, and the residuals of both
against the float64 reference, each less its median (the shift of the softmax normaliser, DESIGN.md §1). The
statistics of a probe add up, so that any sample of probes costs one matrix product.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned
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
    "settings_equal",  # share of the candidate's settings that give the very bits: `nearest_setting` counts them
)
T = len(STATISTICS)
LOG_DISTANCE, ALL_EQUAL, SETTINGS_EQUAL = (STATISTICS.index(n) for n in ("log_distance", "all_equal", "settings_equal"))

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
    "settings_equal",
)
FEATURES = (
    *PAIR_FEATURES,
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
    **dict.fromkeys(("distance", "mean_log_distance", "missing"), -1),
    **dict.fromkeys(("excess_distance", "excess_mean_log_distance"), -1),
    **dict.fromkeys(("correlation", "equal", "near", "all_equal", "mean_correlation", "excess_equal"), 1),
    "settings_equal": 1,
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
            row[11] = row[4]


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


def nearest_setting(statistics: F32, usable: npt.NDArray[np.bool_]) -> F32:
    """Of each probe, the statistics of the candidate's setting that is nearest to its answer: (…, S, P, T) → (…, P, T).

    usable (…, S): which settings stand in the library; NaN where none does. Answer by answer, since a server's batches
    grow and shrink while it is asked, and with them the kernels that run. A setting with the very bits comes first: one
    that differs by the normaliser's shift alone is no farther. Where several candidates give them, the more of its
    settings do, the likelier is a candidate.
    """
    apart = np.where(statistics[..., ALL_EQUAL] == 1, -np.inf, statistics[..., LOG_DISTANCE])
    distance = np.where(usable[..., None], apart, np.inf)
    best = np.argmin(distance, axis=-2)
    found = np.take_along_axis(statistics, best[..., None, :, None], axis=-3)[..., 0, :, :]
    equal = (statistics[..., ALL_EQUAL] == 1) & usable[..., None]
    found[..., SETTINGS_EQUAL] = equal.sum(axis=-2) / np.maximum(usable.sum(axis=-1), 1)[..., None]
    some = np.asarray(usable.any(axis=-1))
    return np.where(some[..., None, None], found, np.nan).astype(np.float32)


def setting_statistics(data: Aligned, platform: int, k: int) -> F32:
    """Each setting of a platform observed against each of its own: float32 (S, S, P, T)."""
    own = data.logprobs[platform], data.rank[platform]
    return np.stack([pair_statistics(a, b, *own, data.reference, k) for a, b in zip(*own, strict=True)])


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
        t["settings_equal"],
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def candidate_features(pairs: F32, own: F32) -> F32:
    """Features of (observation, candidate platform), and their excess over what the candidate differs from itself.

    pairs (…, C, F): of the statistics that `nearest_setting` gives; own (…, C, 4): `self_features`, NaN for a steady
    candidate. Returns (…, C, len(FEATURES)), NaN where a candidate has no usable setting.
    """
    own = np.broadcast_to(own, (*pairs.shape[:-1], own.shape[-1]))
    excess = np.stack([pairs[..., 0] - own[..., 0], pairs[..., 2] - own[..., 1], pairs[..., 7] - own[..., 3]], axis=-1)
    return np.concatenate([pairs, own, excess], axis=-1).astype(np.float32)


def self_features(statistics: F32, settings: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_], k: int) -> F32:
    """How an unsteady platform differs from itself: float32 (4,) distance, equal, near, mean_log_distance.

    statistics (S, S, P, T): as `setting_statistics` has it, on probes that no sample uses; settings (S,): those that do
    not repeat, each compared with the nearest other of the library's, `usable` (S,). NaN where there are none.
    """
    held = [nearest_setting(statistics[a], usable & (np.arange(len(usable)) != a)) for a in np.flatnonzero(settings)]
    if not held or not np.isfinite(held[0]).all():
        return np.full(4, np.nan, np.float32)
    pairs = pair_features(np.stack(held).mean(axis=1), k)
    return np.asarray(pairs.mean(axis=0)[[0, 2, 3, 7]], np.float32)
