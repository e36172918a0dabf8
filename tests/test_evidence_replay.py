"""Replay's compiled statistics against a readable recomputation, token by token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import synthetic
from hspi.evidence.aligned import ABSENT, place
from hspi.evidence.replay import (
    FEATURES,
    PAIR_FEATURES,
    STATISTICS,
    candidate_features,
    nearest_setting,
    pair_features,
    pair_statistics,
    self_features,
    setting_statistics,
    top_slots,
)

SLOTS, K = 16, 10
COLUMN = {name: i for i, name in enumerate(STATISTICS)}
FEATURE = {name: i for i, name in enumerate(PAIR_FEATURES)}

Answer = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


def answer(reference: npt.NDArray[np.float64], size: float, seed: int, k: int = K) -> Answer:
    """A platform whose noise has this size, in the slots of the reference; it reports k tokens of 2 * SLOTS."""
    rng = np.random.default_rng(seed)
    p = len(reference)
    tail = np.sort(rng.normal(-9, 1, (p, SLOTS)))  # tokens without a slot
    values = np.concatenate([reference, tail], axis=1) + size * rng.normal(size=(p, 2 * SLOTS))
    ids = np.argsort(-values, axis=1, kind="stable")[:, :k].astype(np.int32)
    slots = np.tile(np.arange(SLOTS, dtype=np.int32), (p, 1))
    return place(slots, ids, np.take_along_axis(values, ids, axis=1).astype(np.float32))


@pytest.fixture(scope="module")
def reference() -> npt.NDArray[np.float64]:
    return -np.sort(np.random.default_rng(1).exponential(2.0, (5, SLOTS)), axis=1)


def plainly(observed: Answer, candidate: Answer, reference: npt.NDArray[np.float64], p: int, k: int) -> list[float]:
    """STATISTICS of one probe as their definitions say."""
    (lp_o, rank_o), (lp_c, rank_c) = observed, candidate
    asked = [s for s in range(SLOTS) if rank_o[p, s] < k]
    both = [s for s in asked if rank_c[p, s] != ABSENT]
    if not both:
        return [0.0] * 9 + [1.0, 0.0, 0.0]
    o, c, ref = (np.array([float(x[p, s]) for s in both]) for x in (lp_o, lp_c, reference))
    x, y, z = o - ref, c - ref, o - c
    x, y, z = (v - np.median(v) for v in (x, y, z))
    ulp = 1.2e-7 * np.maximum(np.abs(o), 0.125)
    floor = (ulp**2).sum()
    oo, cc, oc, dd = x @ x, y @ y, x @ y, z @ z
    equal = sum(lp_o[p, s] == lp_c[p, s] for s in both)
    return [
        len(both),
        equal,
        (np.abs(z) <= 2 * ulp).sum(),
        sum(rank_o[p, s] == rank_c[p, s] for s in both),
        float(equal == min(k, K)),
        *(oo, cc, oc, dd),
        np.log10((dd + 0.1 * floor) / (oo + cc + floor)),
        oc / np.sqrt((oo + 1e-3 * floor) * (cc + 1e-3 * floor)),
        float(equal == min(k, K)),  # of one setting
    ]


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("sizes", [(1e-6, 1e-6), (1e-3, 1e-2), (0.3, 1.5), (3.0, 3.0)])
def test_each_statistic_is_what_its_definition_says(
    reference: npt.NDArray[np.float64], sizes: tuple[float, float], k: int
) -> None:
    observed = answer(reference, sizes[0], 2)
    candidates = [answer(reference, sizes[1], 3), observed, answer(reference, sizes[1], 4, k=3)]
    lp, rank = (np.stack(x) for x in zip(*candidates, strict=True))
    found = pair_statistics(*observed, lp, rank, reference, k)
    assert found.shape == (3, len(reference), len(STATISTICS)) and found.dtype == np.float32
    expected = [[plainly(observed, c, reference, p, k) for p in range(len(reference))] for c in candidates]
    np.testing.assert_allclose(found, np.array(expected), rtol=2e-5, atol=1e-12)


def test_an_answer_compared_with_itself_is_equal_and_at_the_floor(reference: npt.NDArray[np.float64]) -> None:
    lp, rank = answer(reference, 1e-3, 2)
    found = pair_statistics(lp, rank, lp[None], rank[None], reference, K)[0]
    for name in ("equal", "near", "same_rank"):
        np.testing.assert_array_equal(found[:, COLUMN[name]], found[:, COLUMN["shared"]])
    assert not found[:, COLUMN["dd"]].any()
    other = answer(reference, 1e-3, 3)
    far = pair_statistics(lp, rank, other[0][None], other[1][None], reference, K)[0]
    assert (found[:, COLUMN["log_distance"]] < far[:, COLUMN["log_distance"]] - 3).all()
    np.testing.assert_allclose(found[:, COLUMN["correlation"]], 1, atol=1e-3)
    features = pair_features(found.mean(axis=0), K)
    shared = found[:, 0].mean() / K
    assert features[FEATURE["equal"]] == features[FEATURE["near"]] == features[FEATURE["same_rank"]] == 1
    np.testing.assert_allclose(features[FEATURE["missing"]], 1 - shared, atol=1e-6)


def test_a_shift_of_a_whole_position_changes_no_difference(reference: npt.NDArray[np.float64]) -> None:
    # On a grid of 2^-12, so that adding a small integer rounds nothing.
    grid = np.rint(reference * 4096) / 4096
    (lp, rank), (lp_c, rank_c) = (_gridded(answer(grid, 0.05, s)) for s in (2, 3))
    shift = np.array([1, -2, 3, 0, -1], np.float32)[:, None]
    before = pair_statistics(lp, rank, lp_c[None], rank_c[None], grid, K)
    for a, b in ((lp + shift, lp_c), (lp, lp_c + shift), (lp + shift, lp_c + shift)):
        after = pair_statistics(a, rank, b[None], rank_c[None], grid, K)
        for name in ("shared", "same_rank", "oo", "cc", "oc", "dd"):
            np.testing.assert_array_equal(after[..., COLUMN[name]], before[..., COLUMN[name]], err_msg=name)
        np.testing.assert_allclose(after[..., COLUMN["log_distance"]], before[..., COLUMN["log_distance"]], atol=1e-5)


def _gridded(found: Answer) -> Answer:
    return (np.rint(found[0] * 4096) / 4096).astype(np.float32), found[1]


def test_a_candidate_that_shares_nothing_is_as_far_as_can_be(reference: npt.NDArray[np.float64]) -> None:
    lp, rank = answer(reference, 1e-3, 2)
    empty = np.full_like(lp, np.nan)[None], np.full_like(rank, ABSENT)[None]
    found = pair_statistics(lp, rank, *empty, reference, K)[0]
    np.testing.assert_array_equal(found[:, COLUMN["log_distance"]], 1)
    assert not np.delete(found, COLUMN["log_distance"], axis=1).any()
    assert pair_features(found.mean(axis=0), K)[FEATURE["missing"]] == 1


def test_asked_tokens_without_a_slot_stay_asked() -> None:
    rank = np.array([[0, 2, ABSENT, 5], [ABSENT] * 4], np.uint8)
    np.testing.assert_array_equal(top_slots(rank, 3), [[0, 1, -1], [-1, -1, -1]])


def test_answer_by_answer_the_nearest_usable_setting_speaks_for_a_candidate() -> None:
    """A server's batches grow and shrink while it is asked: one answer is of one class, the next of another."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(2, 3, 4, 5, len(STATISTICS))).astype(np.float32)  # sample, candidate, setting, probe
    found[..., COLUMN["settings_equal"]] = 0  # none gives the very bits
    usable = np.array([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    nearest = nearest_setting(found, np.broadcast_to(usable, (2, 3, 4)))
    assert nearest.shape == (2, 3, 5, len(STATISTICS)) and nearest.dtype == np.float32
    for b, p in np.ndindex(2, 5):
        best = np.argmin(found[b, 0, :3, p, COLUMN["log_distance"]])
        np.testing.assert_array_equal(nearest[b, 0, p], found[b, 0, best, p])
    np.testing.assert_array_equal(nearest[:, 1], found[:, 1, 1])
    assert np.isnan(nearest[:, 2]).all(), "a candidate without signatures has no statistics"
    found[:, 0, 3] = -1e6  # what is not usable is not read
    np.testing.assert_array_equal(nearest_setting(found, np.broadcast_to(usable, (2, 3, 4)))[:, 0], nearest[:, 0])


def test_of_settings_that_are_equally_near_the_one_with_the_very_bits_speaks() -> None:
    """Two batch classes may differ by the softmax's normaliser alone, which distance does not see."""
    found = np.zeros((2, 1, len(STATISTICS)), np.float32)
    found[:, 0, COLUMN["log_distance"]] = -9.6, -9.5
    found[1, 0, COLUMN["all_equal"]] = 1
    assert nearest_setting(found, np.ones(2, bool))[0, COLUMN["all_equal"]] == 1
    assert nearest_setting(found, np.array([True, False]))[0, COLUMN["all_equal"]] == 0


def test_a_candidate_s_settings_that_give_the_very_bits_are_counted() -> None:
    found = np.zeros((4, 2, len(STATISTICS)), np.float32)  # settings, probes
    found[:3, 0, COLUMN["all_equal"]] = 1
    found[3] = np.nan  # not collected
    nearest = nearest_setting(found, np.array([True, True, False, False]))
    np.testing.assert_array_equal(nearest[:, COLUMN["settings_equal"]], [1, 0])
    nearest = nearest_setting(found, np.array([True, False, False, True]))
    assert nearest[0, COLUMN["settings_equal"]] == 0.5


def test_features_are_of_the_pair_and_of_its_excess_over_the_candidate_s_own_unrest() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(2, 3, len(PAIR_FEATURES))).astype(np.float32)
    own = rng.normal(size=(3, 4)).astype(np.float32)
    own[2] = np.nan  # a steady one
    found = candidate_features(pairs, own)
    assert found.shape == (2, 3, len(FEATURES)) and found.dtype == np.float32
    np.testing.assert_array_equal(found[..., : len(PAIR_FEATURES)], pairs)
    np.testing.assert_array_equal(found[0, :, len(PAIR_FEATURES) : -3], own)
    for name, of, at in (
        ("distance", "distance", 0),
        ("equal", "equal", 1),
        ("mean_log_distance", "mean_log_distance", 3),
    ):
        expected = pairs[:, :2, FEATURE[of]] - own[:2, at]
        np.testing.assert_allclose(found[:, :2, FEATURES.index(f"excess_{name}")], expected, rtol=1e-5)
    assert np.isnan(found[:, 2, len(PAIR_FEATURES) :]).all()


# ---------------------------------------------------------------- a platform beside itself


@pytest.fixture(scope="module")
def settings(reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Three settings, each beside each: as `setting_statistics` has it."""
    every = [answer(reference, 1e-3, s) for s in (2, 3, 4)]
    lp, rank = (np.stack(x) for x in zip(*every, strict=True))
    return np.stack([pair_statistics(*one, lp, rank, reference, K) for one in every])


def test_every_setting_is_compared_with_every_other(settings: npt.NDArray[np.float32]) -> None:
    data = synthetic.library("one", ["bf16-b", "int8-a"]).data
    found = setting_statistics(data, 1, 8)
    assert found.shape == (4, 4, 96, len(STATISTICS))
    own = data.logprobs[1], data.rank[1]
    np.testing.assert_array_equal(found[2], pair_statistics(own[0][2], own[1][2], *own, data.reference, 8))


def test_an_unsteady_platform_is_as_far_from_itself_as_from_its_nearest_other_setting(
    settings: npt.NDArray[np.float32],
) -> None:
    all_of_them = np.ones(3, bool)
    found = self_features(settings, all_of_them, all_of_them, K)
    expected = []
    for a in range(3):
        others = settings[a, [s for s in range(3) if s != a]]
        best = others[..., COLUMN["log_distance"]].argmin(axis=0)
        expected.append(pair_features(others[best, np.arange(len(best))].mean(axis=0), K))
    np.testing.assert_allclose(found, np.mean(expected, axis=0)[[0, 2, 3, 7]], rtol=1e-5)


def test_settings_that_repeat_or_are_not_in_the_library_say_nothing_of_unrest(
    settings: npt.NDArray[np.float32],
) -> None:
    usable = np.array([True, True, False])
    found = self_features(settings, np.array([False, True, False]), usable, K)
    np.testing.assert_allclose(found, pair_features(settings[1, 0].mean(axis=0), K)[[0, 2, 3, 7]], rtol=1e-5)


def test_a_steady_platform_and_one_of_one_setting_do_not_know_themselves(settings: npt.NDArray[np.float32]) -> None:
    one, nobody = np.array([True, False, False]), np.zeros(3, bool)
    assert np.isnan(self_features(settings, one, one, K)).all()
    assert np.isnan(self_features(settings, nobody, np.ones(3, bool), K)).all()
