"""Equivalence classes on synthetic platforms: twins become one, others do not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hspi.evidence.aligned import ABSENT, Aligned
from hspi.evidence.equivalence import NEAR, Classes, bits, measure, row_distances, screened
from hspi.platforms.record import Platform

P, K, S = 40, 12, 3


def build(patterns: list[int], nuisance: float = 0.1, seed: int = 0, steady: bool = False) -> Aligned:
    """One platform for each entry; equal entries share a pattern. All tokens are reported, best slot first."""
    rng = np.random.default_rng([seed, 99])
    reference = -np.sort(rng.exponential(2.0, (P, K)), axis=1)
    raw = np.empty((len(patterns), S, P, K), np.float32)
    for c, pattern in enumerate(patterns):
        own = np.random.default_rng([seed, pattern]).normal(size=(P, K))
        for s in range(S):
            raw[c, s] = reference + 1e-2 * (own + nuisance * rng.normal(size=(P, K)))
    rank = np.broadcast_to(np.arange(K, dtype=np.uint8), raw.shape).copy()
    slots = np.tile(np.arange(K, dtype=np.int32), (P, 1))
    platforms = [Platform(f"p{i}", "synthetic") for i in range(len(patterns))]
    sizes = [{f"b{s}": str(s) for s in range(2, S + 2)} for _ in patterns]
    probes = [("t", i) for i in range(P)]
    arrays = slots, reference, raw.copy(), rank, raw
    return Aligned("m", platforms, sizes, probes, *arrays, steady=[steady] * len(patterns))


def classes_of(data: Aligned) -> Classes:
    return measure(data, 8)


@pytest.mark.parametrize("steady", [True, False])
def test_the_same_bits_are_one_class_and_other_patterns_are_others(steady: bool) -> None:
    data = build([1, 2, 3], steady=steady)
    data.logprobs[2], data.raw[2] = data.logprobs[0], data.raw[0]
    found = classes_of(data)
    assert found.label == [0, 1, 0]
    assert found.members(0) == ["p0", "p2"] and found.name(1) == "p1" and found.count == 2
    assert found.separation[0, 1] > 0.99 and found.separation[0, 2] == 0.5


def test_twins_under_nuisance_are_merged_nearly_always_and_others_never() -> None:
    split, runs = 0, 20
    for seed in range(runs):
        label = classes_of(build([1, 1, 2], seed=seed)).label
        assert label[2] not in label[:2]
        split += label[0] != label[1]
    assert split <= 2, "the bound is a 99 % one: of 20 pairs of twins hardly one may be parted"


def test_platforms_inside_each_other_s_nuisance_cannot_be_told_apart() -> None:
    assert classes_of(build([1, 2], nuisance=30.0)).count == 1


def test_separation_is_symmetric_and_half_on_the_diagonal() -> None:
    found = classes_of(build([1, 1, 2]))
    for of_pairs in (found.separation, found.low, found.distance):
        np.testing.assert_array_equal(of_pairs, of_pairs.T)
    np.testing.assert_array_equal(np.diag(found.separation), 0.5)
    assert (found.low <= found.separation).all() and (found.separation >= 0).all() and (found.separation <= 1).all()


def test_distances_grow_with_what_parts_two_platforms() -> None:
    data = build([1, 1, 2], steady=True)
    data.logprobs[1], data.raw[1] = data.logprobs[0], data.raw[0]
    found = classes_of(data).distance
    assert found[0, 1] == found[0, 0] < found[0, 2] - 3
    nearer = classes_of(build([1, 1, 2])).distance
    assert nearer[0, 1] < nearer[0, 2] - 1, "a tenth of the noise is a hundredth of its square"


# ---------------------------------------------------------------- steady platforms


def test_a_steady_platform_s_own_setting_stands_for_it() -> None:
    """Its class answers so again, so that what parts it from a twin by batch class is told as often as it is seen."""
    steady, unsteady = (build([1, 1, 2], steady=x) for x in (True, False))
    assert steady.beside(0, 1)[0].tolist() == [True] * S
    assert unsteady.beside(0, 1)[0].tolist() == [True, False, True]
    assert classes_of(steady).label == [0, 1, 2] and classes_of(unsteady).label == [0, 0, 1]


def test_steady_platforms_that_share_some_batch_classes_are_told_by_the_rest() -> None:
    data = build([1, 1], steady=True)
    data.logprobs[1, :2], data.raw[1, :2] = data.logprobs[0, :2], data.raw[0, :2]
    found = classes_of(data)
    assert found.label == [0, 1]
    assert found.separation[0, 1] == pytest.approx(0.5 * 2 / S + 1 / S, abs=0.02)


def test_who_is_asked_alone_repeats_whether_steady_or_not() -> None:
    data = build([1, 2])
    data.settings[0] = {"b1": "1", "b3": "3", "b4": "4"}
    assert data.beside(0, 0)[0].tolist() == [True] * S
    assert data.beside(0, 1)[0].tolist() == [True, False, True]


def test_a_steady_platform_with_one_setting_is_measured() -> None:
    data = without(without(build([1, 1, 3], steady=True), 1, slice(1, None)), 0, slice(1, None))
    found = classes_of(data)
    assert found.label == [0, 1, 2] and found.separation[0, 1] > 0.99


# ---------------------------------------------------------------- odd ones


def without(data: Aligned, platform: int, settings: slice) -> Aligned:
    for array in (data.raw, data.logprobs):
        array[platform, settings] = np.nan
    data.rank[platform, settings] = ABSENT
    return data


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_unsteady_platform_with_one_setting_cannot_be_measured_and_stays_alone() -> None:
    found = classes_of(without(build([1, 1, 3]), 1, slice(1, None)))
    assert found.label == [0, 1, 2]
    assert np.isnan(found.separation[0, 1]) and found.separation[0, 2] > 0.99


def test_twins_with_unlike_numbers_of_settings_are_merged_all_the_same() -> None:
    merged = [classes_of(without(build([1, 1], seed=i), 1, slice(2, None))).count == 1 for i in range(20)]
    assert sum(merged) >= 18


def test_chains_of_twins_are_one_class() -> None:
    data = build([1, 2, 3, 4])
    for a, b in ((3, 0), (2, 3)):
        data.logprobs[a], data.raw[a] = data.logprobs[b], data.raw[b]
    assert classes_of(data).label == [0, 1, 0, 0]


def test_classes_survive_json() -> None:
    found = classes_of(build([1, 1, 2]))
    again = Classes.from_dict(json.loads(json.dumps(found.to_dict())))
    assert (again.model, again.platform_ids, again.label) == (found.model, found.platform_ids, found.label)
    np.testing.assert_allclose(again.low, found.low, atol=1e-4)
    np.testing.assert_allclose(again.distance, found.distance, atol=1e-4)
    assert again.members_of("p1") == ["p0", "p1"] and again.members_of("stranger") == ["stranger"]


def test_some_platforms_keep_what_was_measured_and_classes_are_numbered_anew() -> None:
    found = classes_of(build([1, 2, 3, 2]))
    part = found.only([3, 2, 1])
    assert part.platform_ids == ["p3", "p2", "p1"] and part.label == [0, 1, 0] and found.label == [0, 1, 2, 1]
    assert part.distance[0, 1] == found.distance[3, 2] and part.separation[1, 2] == found.separation[2, 1]


def test_classes_of_older_detectors_have_no_distances() -> None:
    old = classes_of(build([1, 2])).to_dict()
    del old["distance"]
    assert not Classes.from_dict(old).distance.any()


def test_bits_are_of_all_that_was_answered_and_of_nothing_else() -> None:
    data = build([1, 2])
    data.logprobs[1], data.raw[1] = data.logprobs[0], data.raw[0]
    assert bits(data, 0) == bits(data, 1)
    data.raw[1, 2, 5, 3] = np.nextafter(data.raw[1, 2, 5, 3], np.float32(0))
    assert bits(data, 0) != bits(data, 1)
    assert bits(without(data, 1, slice(2, 3)), 1) != bits(data, 0), "one setting fewer is another library"


# ---------------------------------------------------------------- what need not be compared probe by probe


def test_the_nearest_are_compared_probe_by_probe_and_the_rest_estimated() -> None:
    data = build([1, 1, 2, 2, 3, 3, 4, 4])
    whole, some = row_distances(data, 8), row_distances(data, 8, near=2)
    platform = np.array([c for c, _ in data.rows])
    twin = platform ^ 1  # the nearest of each, with a noise of its own
    at = np.arange(len(platform))
    for near in (platform, twin):
        np.testing.assert_array_equal(some[at, near], whole[at, near])
    far = np.ones(whole.shape[:2], bool)
    far[at, platform] = far[at, twin] = False
    estimate = some[far]
    assert (estimate == estimate[:, :1]).all(), "one for all probes"
    assert np.abs(estimate[:, 0] - whole[far].mean(axis=1)).max() < 0.5, "of a power of ten"
    assert (estimate[:, 0] > whole[at, twin].mean()).all()


def test_screening_changes_no_class() -> None:
    data = build([1, 1, 2, 2, 3, 3, 4, 4])
    assert len(data.platforms) < NEAR and screened(data).shape == (len(data.rows), 8, S)
    assert classes_of(data).label == [0, 0, 1, 1, 2, 2, 3, 3]
