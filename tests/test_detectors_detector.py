"""The verifier, its calibration and the detector that judges, on the synthetic world of tests/synthetic.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic
from hspi.detectors import verifier as verifiers
from hspi.detectors.calibration import AGREES, Calibration
from hspi.detectors.detector import Detector
from hspi.detectors.training import OWN_SAMPLES, Bench, fit_verifier
from hspi.detectors.verifier import (
    RIVALS,
    VERIFIER_FEATURES,
    Comparisons,
    class_scores,
    nearest_platforms,
    own_distances,
    score,
    spread,
    tabulate,
    training_rows,
)
from hspi.errors import DataError, UnknownName
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.explained import explained_statistics
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.platforms.claim import Claim
from hspi.verdict import UNKNOWN
from synthetic import PATTERNS, SEED, World

TREES = {"n_estimators": 40, "max_depth": 4}


@pytest.fixture(scope="module")
def benches(world: World) -> list[Bench]:
    return [Bench.of(x, SEED) for x in world.libraries]


@pytest.fixture(scope="module")
def detector(world: World) -> Detector:
    return synthetic.trained(world)


def observe(
    detector: Detector, platform: str, model: str, n: int = 32, setting: str = "b2", k: int = 20, company: int = 5
) -> Observation:
    """n test probes of the platform in a batch class that the library has; a restless one in a company of its own."""
    every = [
        Observation.of(synthetic.signature(platform, model, s, setting, company=company), k) for s in synthetic.SETS
    ]
    probes = [detector.library(model).data.probes[i] for i in test_rows(detector, model)[:n]]
    seen = {p: (ids, values) for o in every for p, ids, values in zip(o.probes, o.ids, o.logprobs, strict=True)}
    ids, values = (np.stack([seen[p][j] for p in probes]) for j in (0, 1))
    return Observation(model, probes, ids, values)


def unseen_class(seen: Observation, size: float) -> Observation:
    """The same from a batch class that no signature has: noise of this size is added."""
    noise = np.random.default_rng(5).normal(size=seen.logprobs.shape)
    values = (seen.logprobs + size * noise).astype(np.float32)
    order = np.argsort(-values, axis=1, kind="stable")
    return replace(seen, ids=np.take_along_axis(seen.ids, order, 1), logprobs=np.take_along_axis(values, order, 1))


def test_rows(detector: Detector, model: str) -> list[int]:
    from hspi.splits import split_probes

    return split_probes(detector.library(model).data.probes, SEED).test.tolist()


test_rows.__test__ = False  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the world itself, and training


def test_the_synthetic_twins_are_one_class(world: World) -> None:
    for classes in (x.classes for x in world.libraries):
        assert classes.members_of("cpu/bf16-twin") == ["cpu/bf16-a", "cpu/bf16-twin"] and classes.count == 5


STEADY, RESTLESS = 3, 5  # fp32-a and int8-a, by place


def poisoned(pairs: Comparisons, platform: int, setting: int) -> Comparisons:
    """The same where a row lies as far as can be from its own platform's same setting."""
    own = [x.copy() for x in pairs.own]
    own[platform][setting, setting] = 1e9
    return replace(pairs, own=own)


def test_an_unsteady_platform_s_own_setting_never_stands_in_its_library(benches: list[Bench]) -> None:
    bench, samples = benches[0], benches[0].split.test[None, :8]
    pairs = bench.comparisons[20]
    for apart in (False, True):
        table = tabulate(pairs, [(RESTLESS, 2)], samples, bench.split.fit, apart)
        again = tabulate(poisoned(pairs, RESTLESS, 2), [(RESTLESS, 2)], samples, bench.split.fit, apart)
        np.testing.assert_array_equal(again.features, table.features)


def test_a_steady_platform_s_batch_class_stands_in_its_library_unless_it_is_held_out(benches: list[Bench]) -> None:
    bench, samples = benches[0], benches[0].split.test[None, :8]
    pairs = bench.comparisons[20]
    whole, apart = (tabulate(pairs, [(STEADY, 2)], samples, bench.split.fit, x) for x in (False, True))
    assert whole.distance[0, 0] < apart.distance[0, 0] - 3, "it answers so again"
    np.testing.assert_array_equal(whole.features[:, 1:], apart.features[:, 1:])
    again = tabulate(poisoned(pairs, STEADY, 2), [(STEADY, 2)], samples, bench.split.fit, True)
    np.testing.assert_array_equal(again.features, apart.features)


def test_who_has_one_batch_class_alone_keeps_it(world: World) -> None:
    one = [s for s in synthetic.signatures("one", ["fp32-a", "bf16-b"]) if s.header.nuisance.name == "b1"]
    library = Library.measured(align("one", one, synthetic.reference("one")), SEED, 20)
    bench = Bench.plain(library, SEED, (20,))
    table = tabulate(bench.comparisons[20], bench.data.rows, bench.split.test[None, :8], bench.split.fit, apart=True)
    assert np.isfinite(table.distance).all() and (table.distance[:, 0] < -5).all()


def test_features_of_a_sample_read_its_probes_alone(benches: list[Bench]) -> None:
    bench = benches[0]
    pairs, chosen = bench.comparisons[20], bench.split.test[:8]
    table = tabulate(pairs, [(1, 0)], chosen[None], bench.split.fit, apart=False)
    others = np.setdiff1d(np.arange(96), np.concatenate([chosen, bench.split.fit]))
    cross, own = pairs.cross.copy(), [x.copy() for x in pairs.own]
    for statistics in (cross, *own):
        statistics[..., others, :] = 1e9
    again = tabulate(replace(pairs, cross=cross, own=own), [(1, 0)], chosen[None], bench.split.fit, apart=False)
    np.testing.assert_array_equal(again.features, table.features)
    assert table.features.shape == (1, 6, len(VERIFIER_FEATURES))
    assert sorted(table.who[0]) == list(range(6)) and table.who[0, 0] == table.truth[0] == 1


# ---------------------------------------------------------------- who is compared with whom


def test_few_platforms_are_all_compared_the_nearest_first(benches: list[Bench]) -> None:
    distance = benches[0].classes.distance
    rivals = benches[0].comparisons[20].rivals
    assert rivals.shape == (6, 5)
    for i, others in enumerate(rivals):
        assert sorted([i, *others]) == list(range(6))
        assert (np.diff(distance[i, others]) >= 0).all()
    assert rivals[0, 0] == 2, "the twin is the nearest"


@pytest.mark.parametrize(("machines", "elsewhere"), [(2, RIVALS // 2), (1, 0)])
def test_of_many_platforms_the_nearest_count_half_of_them_on_other_hardware(machines: int, elsewhere: int) -> None:
    """Platforms stand on a line; those of the first machine all before those of the second."""
    each = 40
    hardware = [f"m{i}" for i in range(machines) for _ in range(each)]
    at = np.arange(machines * each)
    distance = np.abs(at[:, None] - at).astype(float)
    rivals = nearest_platforms(hardware, distance)
    assert rivals.shape == (len(at), RIVALS)
    for i, others in enumerate(rivals):
        assert i not in others and len(set(others)) == RIVALS
        assert (np.diff(distance[i, others]) >= 0).all(), "nearest first"
        own = [j for j in others if hardware[j] == hardware[i]]
        assert sorted(distance[i, own]) == sorted(distance[i, at[np.array(hardware) == hardware[i]]])[1 : len(own) + 1]
        assert len(others) - len(own) == elsewhere


def test_where_other_hardware_has_fewer_platforms_the_next_nearest_fill_up() -> None:
    at = np.arange(40)
    rivals = nearest_platforms(["m"] * 37 + ["other"] * 3, np.abs(at[:, None] - at).astype(float))
    assert rivals.shape == (40, RIVALS) and {37, 38, 39} <= set(rivals[0])
    assert set(rivals[0]) == {*range(1, RIVALS - 2), 37, 38, 39}


def test_a_distance_that_was_not_measured_is_the_farthest() -> None:
    distance = np.abs(np.arange(40)[:, None] - np.arange(40)).astype(float)
    distance[0, :20] = distance[:20, 0] = np.nan
    assert set(nearest_platforms(["m"] * 40, distance)[0]) >= set(range(20, 40))


def test_fewer_rivals_change_no_figure_of_those_that_are_left(benches: list[Bench], monkeypatch: Any) -> None:
    bench = benches[0]
    whole = tabulate(bench.comparisons[20], bench.data.rows, bench.split.test[None, :8], bench.split.fit, apart=False)
    monkeypatch.setattr(verifiers, "RIVALS", 3)
    few = Comparisons.of(bench.data, 20, bench.classes.distance)
    table = tabulate(few, bench.data.rows, bench.split.test[None, :8], bench.split.fit, apart=False)
    assert table.who.shape[1] == 4
    np.testing.assert_array_equal(table.who[:, 0], table.truth)
    for i, who in enumerate(table.who):
        at = [whole.who[i].tolist().index(c) for c in who]
        np.testing.assert_allclose(table.features[i], whole.features[i][at], rtol=1e-4, atol=1e-6)
    placed = spread(table.distance, table.who, 6, empty=99.0)
    assert ((placed == 99.0).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(np.take_along_axis(placed, table.who, axis=1), table.distance)


def test_without_distances_every_platform_meets_every_one(benches: list[Bench]) -> None:
    data = benches[0].data
    assert sorted(Comparisons.of(data.only([0, 1, 2]), 20).rivals.tolist()) == [[0, 1], [0, 2], [1, 2]]


# ---------------------------------------------------------------- training


def test_dropped_platforms_train_on_neither_side(benches: list[Bench]) -> None:
    bench = benches[0]
    samples = np.stack([bench.split.fit[:4], bench.split.fit[4:8]])
    table = tabulate(bench.comparisons[20], bench.data.rows, samples, bench.split.calibrate, apart=False)
    drop = [2]
    marked = table.features.copy()
    marked[np.isin(table.who, drop)] = -777
    marked[np.isin(table.truth, drop)] = -777
    x, y, w = training_rows(replace(table, features=marked), bench.classes, np.random.default_rng(0), drop)
    assert not (x == -777).any()
    assert w[y == 1].sum() == pytest.approx(w[y == 0].sum(), rel=1e-4), "both sides weigh alike"
    label = np.array(bench.classes.label)
    kept = table.truth[~np.isin(table.truth, drop)]
    rights = (label[kept][:, None] == label[None, [0, 1, 3, 4, 5]]).sum()
    assert y.sum() == rights, "every right candidate is there"


def test_permuted_labels_teach_nothing(benches: list[Bench]) -> None:
    """Asked of the trees alone, for `log_odds` prefers the nearer of two that they call alike; and trees that may only
    fall with distance fit noise in the right direction alone, so that order says little and certainty all."""
    null, real = (fit_verifier(benches, parameters=TREES, permute=p) for p in (True, False))
    agreed = []
    for trees in (null, real):
        for bench in benches:
            samples, rows = bench.split.test.reshape(-1, 4), [row for row in bench.data.rows if row[1] == 3]
            table = tabulate(bench.comparisons[5], rows, samples, bench.split.fit, apart=False)
            label = np.array(bench.classes.label)
            right = label[table.who] == label[table.truth][:, None]
            margin = trees.margin(table.features.reshape(-1, len(VERIFIER_FEATURES))).reshape(right.shape)
            agreed.append((float((margin[right] >= AGREES).mean()), float((margin[~right] >= AGREES).mean())))
    assert agreed[:2] == [(0, 0)] * 2
    assert all(right > 0.9 and wrong < 0.01 for right, wrong in agreed[2:])


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("model", synthetic.MODELS)
@pytest.mark.parametrize("platform", PATTERNS)
def test_the_platform_is_identified(detector: Detector, platform: str, model: str) -> None:
    found = detector.judge(observe(detector, platform, model))
    assert f"cpu/{platform}" in found.members and found.outcome == "identified"
    assert found.members == detector.library(model).classes.members_of(f"cpu/{platform}")
    assert (found.probes, found.top_k, found.model, found.level) == (32, 20, model, "replay")
    assert sum(found.posterior.values()) == pytest.approx(1)


@pytest.mark.parametrize(("setting", "said"), [("b1", "b1 (1)"), ("b4", "b4 (4-64)")])
def test_the_batch_class_is_named_with_its_sizes(detector: Detector, setting: str, said: str) -> None:
    found = detector.judge(observe(detector, "bf16-b", "one", setting=setting))
    assert (found.nearest, found.batch_class) == ("cpu/bf16-b", said)


def removed(detector: Detector, world: World, model: str, platforms: Sequence[str]) -> Detector:
    kept = [p for p in PATTERNS if p not in platforms]
    return replace(detector, libraries={model: synthetic.library(model, kept)})


@pytest.mark.parametrize("gone", [["int8-a"], ["fp32-a"], ["bf16-b"]])
def test_unknown_when_the_truth_is_not_in_the_library(detector: Detector, world: World, gone: list[str]) -> None:
    smaller = removed(detector, world, "one", gone)
    found = smaller.judge(observe(detector, gone[0], "one"))
    assert found.answer == UNKNOWN and found.outcome == "unknown" and found.posterior[UNKNOWN] > 0.5
    assert found.batch_class == found.nearest == ""
    still = smaller.judge(observe(detector, "bf16-a", "one"))
    assert "cpu/bf16-a" in still.members


def test_a_platform_joins_by_its_signatures_alone(world: World) -> None:
    ignorant = synthetic.trained(world, without=["cpu/bf16-b", "cpu/int8-a"])
    for platform in ("bf16-b", "int8-a"):
        found = ignorant.judge(observe(ignorant, platform, "two"), claim=Claim(platform))
        # A verifier that knew four platforms may be unsure of a fifth; it must rank it first and never accuse it.
        assert found.answer in {f"cpu/{platform}", UNKNOWN} and found.outcome != "contradicted"
        best = max((p, name) for name, p in found.posterior.items() if name != UNKNOWN)[1]
        assert best == f"cpu/{platform}"


def test_p_values_of_true_claims_on_new_probes_are_valid(detector: Detector, benches: list[Bench]) -> None:
    """Calibrated on other probes than those judged; two models x six platforms x four settings x samples."""
    p = []
    for bench in benches:
        samples = bench.split.test[:32].reshape(4, 8)
        table = tabulate(bench.comparisons[20], bench.data.rows, samples, bench.split.fit, apart=False)
        scores = class_scores(spread(score(detector.verifier, table), table.who, 6), bench.classes)
        truth = np.array(bench.classes.label)[table.truth]
        names = [f"{bench.data.model}/{bench.classes.name(c)}" for c in range(bench.classes.count)]
        own = detector.calibration.p_value(scores, 8, 20, names)
        p += own[np.arange(len(truth)), truth].tolist()
    for alpha in (0.05, 0.2, 0.5):
        # samples share probes and patterns, so the slack is that of far fewer than 192 of them
        assert (np.array(p) <= alpha).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 48)


def test_calibration_knows_every_size_that_training_knew(detector: Detector) -> None:
    assert isinstance(detector.calibration, Calibration)
    assert set(detector.calibration.true_scores) == {"32x20", "8x20", "1x20", "32x5", "8x5", "1x5"}
    for scores in detector.calibration.true_scores.values():
        assert len(scores) == 2 * 6 * 4 * 12 and scores == sorted(scores)


def test_levels_stand_by_platform_and_batch_class(detector: Detector) -> None:
    own = detector.calibration.own_scores["one/cpu/bf16-a"]["8x20"]
    assert set(own) == {f"cpu/{p} {s}" for p in ("bf16-a", "bf16-twin") for s in synthetic.SETTINGS}
    assert all(len(scores) == OWN_SAMPLES and scores == sorted(scores) for scores in own.values())
    assert set(detector.calibration.own_scores["two/cpu/fp32-b"]["1x5"]) == {
        f"cpu/fp32-b {s}" for s in synthetic.SETTINGS
    }


def test_what_a_detector_asks_of_an_observation(detector: Detector) -> None:
    seen = observe(detector, "fp32-a", "one", n=4)
    with pytest.raises(UnknownName, match="model with a library"):
        detector.judge(replace(seen, model="three"))
    with pytest.raises(DataError, match="'text', 99"):
        detector.judge(replace(seen, probes=[*seen.probes[:3], ("text", 99)]))
    with pytest.raises(DataError, match="at least one"):
        detector.judge(seen.take([]))


def test_answers_to_other_probes_or_of_other_weights_are_refused_and_not_called_a_lie(detector: Detector) -> None:
    seen = Observation.of(synthetic.signature("fp32-a", "one", "text", "b1"), 20).take(range(8))
    claim = Claim("fp32-a")
    assert detector.judge(seen, claim=claim).outcome == "consistent"
    with pytest.raises(DataError, match="weights differ"):
        detector.judge(replace(seen, weights_hash="other"), claim=claim)
    with pytest.raises(DataError, match="'text' probes"):
        detector.judge(replace(seen, probe_hashes={"text": "other"}), claim=claim)
    detector.judge(replace(seen, probe_hashes={}, weights_hash=""))


def test_one_probe_and_few_tokens_still_give_a_verdict(detector: Detector) -> None:
    for n, k in ((1, 20), (1, 2), (3, 7), (32, 40)):
        seen = observe(detector, "int8-a", "one", n=n, k=k)
        assert detector.judge(seen).answer in {"cpu/int8-a", UNKNOWN}


def test_an_observation_comes_from_a_signature(detector: Detector) -> None:
    signature = synthetic.signature("bf16-b", "two", "words", "b1")
    seen = Observation.of(signature, 500)
    assert seen.probes == [("words", i) for i in range(48)] and seen.ids.shape == (48, 64)
    assert detector.judge(seen).answer == "cpu/bf16-b"
    part = seen.take([3, 1])
    assert part.probes == [("words", 3), ("words", 1)]
    np.testing.assert_array_equal(part.logprobs, seen.logprobs[[3, 1]])


@pytest.mark.parametrize("platform", ["bf16-b", "fp32-a", "int8-a"])
def test_the_number_format_comes_from_residuals(detector: Detector, platform: str) -> None:
    posterior = detector.formats(observe(detector, platform, "one"))
    assert sum(posterior.values()) == pytest.approx(1, abs=1e-5)
    assert max(posterior, key=lambda f: posterior[f]) == PATTERNS[platform][0]


def test_formats_of_many_samples_are_those_of_each(detector: Detector, world: World) -> None:
    data, formats = world.libraries[0].data, detector.number_format
    statistics = explained_statistics(data, 1, 0, 20)
    samples = np.random.default_rng(0).permutation(96).reshape(3, 32)
    together = formats.of_samples(statistics[samples])
    for sample, told in zip(samples, together, strict=True):
        alone = formats.of_statistics(statistics[sample])
        assert alone.found == told.found and alone.size == pytest.approx(told.size)
        assert alone.posterior.keys() == told.posterior.keys()
        for name, ends in alone.posterior.items():
            assert ends == pytest.approx(told.posterior[name], abs=1e-6)
        seen = observation(data, 1, 0, sample.tolist())
        assert formats.tell(data, seen).posterior == {n: pytest.approx(e, abs=1e-6) for n, e in alone.posterior.items()}


def observation(data: Aligned, platform: int, setting: int, at: list[int], k: int = 20) -> Observation:
    """What stands in a library."""
    order = np.argsort(data.rank[platform, setting, at], axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(data.slots[at], order, axis=1)
    values = np.take_along_axis(data.logprobs[platform, setting, at], order, axis=1)
    ids = np.where(np.isnan(values), -1, ids).astype(np.int32)
    return Observation(data.model, [data.probes[i] for i in at], ids, values)


def test_an_unsteady_platform_is_nearer_to_itself_than_the_verifier_s_negatives(world: World) -> None:
    data = world.libraries[0].data
    own = own_distances(data, 20)
    assert own.shape == (5, 6, 4)
    restless = [not steady for steady in data.steady]
    assert np.isfinite(own[:, restless]).all() and np.isnan(own[:, [not x for x in restless]]).all()
    assert (own[-1, restless, 0] < -1).all(), "a tenth of the noise is a hundredth of its square"
    # without b1, which every other setting is nearest to, it is farther from itself; b1 itself repeats and stays
    np.testing.assert_array_equal(own[0], own[-1])


def test_what_an_unsteady_platform_is_measured_by_is_as_without_that_setting(world: World) -> None:
    data = world.libraries[0].data.only([RESTLESS])
    for held in (1, 2, 3):
        less = replace(data, **{n: np.delete(getattr(data, n), held, axis=1) for n in ("logprobs", "rank", "raw")},
                       settings=[{n: s for i, (n, s) in enumerate(data.settings[0].items()) if i != held}])  # fmt: skip
        np.testing.assert_allclose(own_distances(data, 20)[held], own_distances(less, 20)[-1], rtol=1e-6)


# ---------------------------------------------------------------- claims


def test_true_claims_hold(detector: Detector) -> None:
    for platform, claim in (
        ("bf16-a", "bf16-a"),
        ("bf16-a", "bf16-twin"),
        ("fp32-b", "cpu/fp32-b"),
        ("int8-a", "int8-a"),
    ):
        found = detector.judge(observe(detector, platform, "one"), claim=Claim.parse(claim))
        assert found.outcome == "consistent" and found.claim == claim
        assert found.claim_p_value is not None and found.claim_p_value > 0.01
        assert found.tested == [f"cpu/{claim.removeprefix('cpu/')}"] and not found.failed_factors


@pytest.mark.parametrize(
    ("platform", "claim", "differs"),
    [
        ("bf16-a", "fp32-a", "dtype"),  # an unsteady rival of another number format agrees
        ("bf16-a", "int8-a", "dtype"),  # finer than it says, but it is somebody else's answers
        ("int8-a", "bf16-a", "dtype"),
        ("fp32-a", "fp32-b", ""),  # a steady rival gives these very values: another kernel
        ("bf16-b", "bf16-a", ""),  # … whatever an unsteady claim's own levels allow
    ],
)
def test_false_claims_fall_to_a_rival_that_fits(detector: Detector, platform: str, claim: str, differs: str) -> None:
    found = detector.judge(observe(detector, platform, "one"), claim=Claim(claim))
    assert found.outcome == "contradicted" and "the answers are those of cpu/" in found.why
    if differs:
        assert found.failed_factors[differs] == [PATTERNS[claim][0], PATTERNS[platform][0]]
    assert not {"hardware", "engine"} & set(found.failed_factors)


def test_an_unsteady_rival_of_the_same_format_accuses_nobody(detector: Detector) -> None:
    found = detector.judge(observe(detector, "bf16-a", "one"), claim=Claim("bf16-b"))
    assert found.claim_p_value is not None and found.claim_p_value <= 0.01
    assert (found.outcome, found.answer) == ("inconclusive", "cpu/bf16-a")
    assert "no signature of bf16-b fits" in found.why


@pytest.mark.parametrize("size", [0.5, 2.0])
@pytest.mark.parametrize("platform", ["bf16-b", "fp32-a", "int8-a"])
def test_answers_of_a_batch_class_that_nobody_collected_never_contradict_their_platform(
    detector: Detector, platform: str, size: float
) -> None:
    """However far they are from its other classes: as far as the next platform, or farther."""
    seen = observe(detector, platform, "one")
    found = detector.judge(unseen_class(seen, size * PATTERNS[platform][1]), claim=Claim(platform))
    assert found.outcome != "contradicted"
    if size == 2.0 and platform == "bf16-b":
        assert found.claim_p_value is not None and found.claim_p_value <= 0.01 and "another batch class" in found.why


def test_a_claim_of_what_nobody_knows_is_refused(detector: Detector) -> None:
    with pytest.raises(DataError, match=r"known, such as bf16-a.*got 'h100'"):
        detector.judge(observe(detector, "bf16-a", "one"), claim=Claim("h100"))


# ---------------------------------------------------------------- claims of hardware


@pytest.fixture(scope="module")
def machines(detector: Detector) -> Detector:
    """Platforms of two machines, that joined by their signatures alone."""
    return detector.with_library(synthetic.library("one", machines=("amd-zen2", "intel-haswell")))


def there(detector: Detector, platform: str, machine: str = "amd-zen2") -> Observation:
    """On probes of one set, from a batch class that the library has."""
    return Observation.of(synthetic.signature(platform, "one", "text", "b3", machine), 20).take(range(32))


@pytest.mark.parametrize(
    ("claim", "hardware", "outcome"),
    [
        ("bf16-b", None, "consistent"),
        ("amd-zen2/bf16-b", None, "consistent"),
        ("bf16-b", "amd-*", "consistent"),
        (None, "amd-zen2", "consistent"),
        ("intel-haswell/bf16-b", None, "contradicted"),  # it is named, and none of its classes is missing
        ("fp32-b", None, "contradicted"),
        ("intel-haswell/fp32-b", None, "contradicted"),
        (None, "intel-haswell", "inconclusive"),  # of whose restless platforms nobody knows all answers
        ("amd-zen5/bf16-b", None, "inconclusive"),
    ],
)
def test_software_hardware_and_both_are_three_claims(
    machines: Detector, claim: str | None, hardware: str | None, outcome: str
) -> None:
    found = machines.judge(there(machines, "bf16-b"), claim=Claim.parse(claim, hardware))
    assert found.outcome == outcome, found.why
    if claim == "intel-haswell/bf16-b":
        assert found.failed_factors == {"hardware": ["intel-haswell", "amd-zen2"]}
    if (claim, hardware) == ("bf16-b", None):
        assert found.tested == ["amd-zen2/bf16-b", "intel-haswell/bf16-b"]


def test_a_platform_that_computes_alike_on_two_machines_is_either(machines: Detector) -> None:
    for hardware in ("amd-zen2", "intel-haswell"):
        found = machines.judge(there(machines, "fp32-a"), claim=Claim("fp32-a", hardware))
        assert found.outcome == "consistent" and set(found.members) == {"amd-zen2/fp32-a", "intel-haswell/fp32-a"}


def test_hardware_that_is_missing_from_the_library_contradicts_nobody(detector: Detector) -> None:
    """The software's answers there are known of no machine like it."""
    alone = detector.with_library(synthetic.library("one", machines=("amd-zen2",)))
    for platform in PATTERNS:
        found = alone.judge(there(alone, platform, "intel-haswell"), claim=Claim(platform))
        assert found.outcome != "contradicted", found.why


def test_a_claim_that_no_candidate_meets_is_tested_by_its_number_format_alone(machines: Detector) -> None:
    found = machines.judge(there(machines, "bf16-b"), claim=Claim("bf16-b", "amd-zen5"))
    assert found.claim_p_value is None and found.tested == [] and "no candidate is amd-zen5/bf16-b" in found.why
    for served, claim, outcome in (
        ("bf16-b", "fp32-b", "contradicted"),
        ("int8-a", "fp32-b", "contradicted"),
        ("bf16-b", "int8-a", "inconclusive"),  # finer than it says
    ):
        found = machines.judge(there(machines, served), claim=Claim(claim, "amd-zen5"))
        assert (found.outcome, found.claim_p_value) == (outcome, None)
        if outcome == "contradicted":
            assert f"{PATTERNS[served][0]}, none the claimed {PATTERNS[claim][0]}" in found.why


# ---------------------------------------------------------------- files and tables


def test_a_saved_detector_gives_the_same_scores_and_holds_no_pickle(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "detector")
    detector.save(tmp_path / "detector")  # in the place of an older one
    files = sorted(p.relative_to(tmp_path / "detector") for p in (tmp_path / "detector").rglob("*") if p.is_file())
    assert {p.suffix for p in files} == {".ubj", ".json", ".safetensors"}
    for path in files:
        head = (tmp_path / "detector" / path).read_bytes()[:2]
        assert head[:1] != b"\x80" and head != b"PK", path
    assert not (tmp_path / "detector.tmp").exists()
    again = Detector.load(tmp_path / "detector")
    for model in synthetic.MODELS:
        seen = observe(detector, "bf16-b", model, n=8)
        assert again.beside(seen).scores.tobytes() == detector.beside(seen).scores.tobytes()
        assert again.judge(seen, claim=Claim("fp32-a")) == detector.judge(seen, claim=Claim("fp32-a"))
        assert again.formats(seen) == detector.formats(seen)


def test_a_folder_without_a_detector_is_a_data_error_and_is_left_alone(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a detector"):
        Detector.load(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="something else"):
        detector.save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_detector_that_lost_a_file_is_a_data_error(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "d")
    for path in sorted(p for p in (tmp_path / "d").rglob("*") if p.is_file()):
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError):
            Detector.load(tmp_path / "d")
        path.write_bytes(kept)
    Detector.load(tmp_path / "d")


def test_a_table_in_a_table_out(detector: Detector) -> None:
    from hspi.tracking.served_model import answered, example

    frame = example(detector, "one")
    assert list(frame["sample"].unique()) == [0] and len(frame) == 8
    found = answered(detector, frame)
    assert list(found.columns) == ["sample", "platform_class", "probability", "members", "number_format"]
    assert found["platform_class"][0] == "cpu/bf16-a" and found["members"][0] == "cpu/bf16-a cpu/bf16-twin"
    assert found["number_format"][0] == "bf16" and 0.5 < found["probability"][0] <= 1
