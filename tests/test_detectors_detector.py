"""The verifier, its calibration and the detector that judges, on the synthetic world of tests/synthetic.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import synthetic
from hspi.detectors.calibration import Calibration
from hspi.detectors.detector import Detector
from hspi.detectors.training import Bench, fit_verifier
from hspi.detectors.verifier import VERIFIER_FEATURES, class_scores, own_distances, score, tabulate, training_rows
from hspi.errors import DataError, UnknownName
from hspi.evidence.observation import Observation
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
    detector: Detector, platform: str, model: str, n: int = 32, setting: str = "b2", k: int = 20
) -> Observation:
    """n test probes of the platform's own signature, with nuisance noise that no library holds."""
    data = detector.library(model).data
    c, s = data.platform_ids().index(platform), data.nuisances.index(setting)
    rows = test_rows(detector, model)[:n]
    rng = np.random.default_rng(5)
    size = 0.1 * PATTERNS[platform][1]
    ids, values = [], []
    for i in rows:
        at = np.argsort(data.rank[c, s, i], kind="stable")[: k + 8]
        at = at[data.rank[c, s, i][at] < k + 8]
        noisy = data.logprobs[c, s, i][at] + (size * rng.normal(size=len(at))).astype(np.float32)
        order = np.argsort(-noisy, kind="stable")[:k]
        ids.append(data.slots[i][at][order])
        values.append(noisy[order])
    return Observation(model, [data.probes[i] for i in rows], np.stack(ids), np.stack(values))


def test_rows(detector: Detector, model: str) -> list[int]:
    from hspi.splits import split_probes

    return split_probes(detector.library(model).data.probes, SEED).test.tolist()


test_rows.__test__ = False  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the world itself, and training


def test_the_synthetic_twins_are_one_class(world: World) -> None:
    for classes in (x.classes for x in world.libraries):
        assert classes.members_of("bf16-twin") == ["bf16-a", "bf16-twin"] and classes.count == 5


def test_an_observation_s_own_setting_never_stands_in_its_library(benches: list[Bench]) -> None:
    bench = benches[0]
    pairs = bench.comparisons[20]
    samples = bench.split.test[None, :8]
    poisoned = pairs.statistics.copy()
    table = tabulate(pairs, [(3, 2)], bench.settings, samples, bench.split.fit)
    poisoned[3, 2, :, :, 2] = 1e9  # the setting itself, of every candidate
    poisoned[3, 2, :, 3, 2] = 0
    again = tabulate(replace(pairs, statistics=poisoned), [(3, 2)], bench.settings, samples, bench.split.fit)
    np.testing.assert_array_equal(again.features, table.features)
    np.testing.assert_array_equal(again.distance, table.distance)


def test_features_of_a_sample_read_its_probes_alone(benches: list[Bench]) -> None:
    bench = benches[0]
    pairs, chosen = bench.comparisons[20], bench.split.test[:8]
    table = tabulate(pairs, [(1, 0)], bench.settings, chosen[None], bench.split.fit)
    poisoned = pairs.statistics.copy()
    others = np.setdiff1d(np.arange(96), np.concatenate([chosen, bench.split.fit]))
    poisoned[:, :, others] = 1e9
    again = tabulate(replace(pairs, statistics=poisoned), [(1, 0)], bench.settings, chosen[None], bench.split.fit)
    np.testing.assert_array_equal(again.features, table.features)
    assert table.features.shape == (1, 6, len(VERIFIER_FEATURES))


def test_one_setting_cannot_be_compared_with_another(benches: list[Bench]) -> None:
    bench = benches[0]
    with pytest.raises(DataError, match="two nuisance settings"):
        tabulate(bench.comparisons[20], [(0, 1)], [1], bench.split.test[None, :4], bench.split.fit)


def test_dropped_platforms_train_on_neither_side(benches: list[Bench]) -> None:
    bench = benches[0]
    samples = np.stack([bench.split.fit[:4], bench.split.fit[4:8]])
    pairs = bench.comparisons[20]
    table = tabulate(pairs, pairs.observed(bench.settings), bench.settings, samples, bench.split.calibrate)
    drop = [2]
    marked = table.features.copy()
    marked[:, drop] = -777
    marked[np.isin(table.truth, drop)] = -777
    x, y, w = training_rows(replace(table, features=marked), bench.classes, np.random.default_rng(0), drop)
    assert not (x == -777).any()
    assert w[y == 1].sum() == pytest.approx(w[y == 0].sum(), rel=1e-4), "both sides weigh alike"
    label = np.array(bench.classes.label)
    kept = table.truth[~np.isin(table.truth, drop)]
    rights = (label[kept][:, None] == label[None, [0, 1, 3, 4, 5]]).sum()
    assert y.sum() == rights, "every right candidate is there"


def test_permuted_labels_teach_nothing(benches: list[Bench]) -> None:
    null, real = (fit_verifier(benches, parameters=TREES, permute=p) for p in (True, False))
    right = []
    for verifier in (null, real):
        for bench in benches:
            pairs = bench.comparisons[5]
            samples = bench.split.test.reshape(-1, 4)
            table = tabulate(pairs, pairs.observed([3]), bench.settings, samples, bench.split.fit)
            guess = class_scores(score(verifier, table), bench.classes).argmax(axis=1)
            right.append((guess == np.array(bench.classes.label)[table.truth]).mean())
    assert max(right[:2]) < 0.5 < 0.95 < min(right[2:])


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("model", synthetic.MODELS)
@pytest.mark.parametrize("platform", PATTERNS)
def test_the_platform_is_identified(detector: Detector, platform: str, model: str) -> None:
    found = detector.judge(observe(detector, platform, model))
    assert platform in found.members and found.outcome == "identified"
    assert found.members == detector.library(model).classes.members_of(platform)
    assert (found.probes, found.top_k, found.model, found.level) == (32, 20, model, "replay")
    assert sum(found.posterior.values()) == pytest.approx(1)


def removed(detector: Detector, world: World, model: str, platforms: Sequence[str]) -> Detector:
    kept = [p for p in PATTERNS if p not in platforms]
    return replace(detector, libraries={model: synthetic.library(model, kept)})


@pytest.mark.parametrize("gone", [["int8-a"], ["fp32-a"], ["bf16-b"]])
def test_unknown_when_the_truth_is_not_in_the_library(detector: Detector, world: World, gone: list[str]) -> None:
    smaller = removed(detector, world, "one", gone)
    found = smaller.judge(observe(detector, gone[0], "one"))
    assert found.answer == UNKNOWN and found.outcome == "unknown" and found.posterior[UNKNOWN] > 0.5
    still = smaller.judge(observe(detector, "bf16-a", "one"))
    assert "bf16-a" in still.members


def test_a_platform_joins_by_its_signatures_alone(world: World) -> None:
    ignorant = synthetic.trained(world, without=["bf16-b", "int8-a"])
    for platform in ("bf16-b", "int8-a"):
        found = ignorant.judge(observe(ignorant, platform, "two"), claim=platform)
        # A verifier that knew four platforms may be unsure of a fifth; it must rank it first and never accuse it.
        assert found.answer in {platform, UNKNOWN} and found.outcome != "contradicted"
        assert max((p, name) for name, p in found.posterior.items() if name != UNKNOWN)[1] == platform


def test_claims_true_and_false(detector: Detector) -> None:
    seen = observe(detector, "bf16-a", "one")
    for claim in ("bf16-a", "bf16-twin"):
        true = detector.judge(seen, claim=claim)
        assert true.outcome == "consistent" and true.claim_p_value > 0.01  # type: ignore[operator]
    for claim in ("bf16-b", "fp32-a", "int8-a"):
        assert detector.judge(seen, claim=claim).outcome == "contradicted"
    with pytest.raises(DataError, match="claim must be among the candidates"):
        detector.judge(seen, claim="h100")


def test_p_values_of_true_claims_on_new_probes_are_valid(detector: Detector, benches: list[Bench]) -> None:
    """Calibrated on other probes than those judged; two models x six platforms x four settings x samples."""
    p = []
    for bench in benches:
        pairs = bench.comparisons[20]
        samples = bench.split.test[:32].reshape(4, 8)
        table = tabulate(pairs, pairs.observed(bench.settings), bench.settings, samples, bench.split.fit)
        scores = class_scores(score(detector.verifier, table), bench.classes)
        truth = np.array(bench.classes.label)[table.truth]
        p += detector.calibration.p_value(scores[np.arange(len(truth)), truth], 8, 20).tolist()
    for alpha in (0.05, 0.2, 0.5):
        # samples share probes and patterns, so the slack is that of far fewer than 192 of them
        assert (np.array(p) <= alpha).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 48)


def test_calibration_knows_every_size_that_training_knew(detector: Detector) -> None:
    assert isinstance(detector.calibration, Calibration)
    assert set(detector.calibration.true_scores) == {"32x20", "8x20", "1x20", "32x5", "8x5", "1x5"}
    for scores in detector.calibration.true_scores.values():
        assert len(scores) == 2 * 6 * 4 * 12 and scores == sorted(scores)


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
    assert detector.judge(seen, claim="fp32-a").outcome == "consistent"
    with pytest.raises(DataError, match="weights differ"):
        detector.judge(replace(seen, weights_hash="other"), claim="fp32-a")
    with pytest.raises(DataError, match="'text' probes"):
        detector.judge(replace(seen, probe_hashes={"text": "other"}), claim="fp32-a")
    detector.judge(replace(seen, probe_hashes={}, weights_hash=""))


def test_one_probe_and_few_tokens_still_give_a_verdict(detector: Detector) -> None:
    for n, k in ((1, 20), (1, 2), (3, 7), (32, 40)):
        seen = observe(detector, "int8-a", "one", n=n, k=k)
        assert detector.judge(seen).answer in {"int8-a", UNKNOWN}


def test_an_observation_comes_from_a_signature(detector: Detector) -> None:
    signature = synthetic.signature("bf16-b", "two", "words", "b1")
    seen = Observation.of(signature, 500)
    assert seen.probes == [("words", i) for i in range(48)] and seen.ids.shape == (48, 64)
    assert detector.judge(seen).answer == "bf16-b"
    part = seen.take([3, 1])
    assert part.probes == [("words", 3), ("words", 1)]
    np.testing.assert_array_equal(part.logprobs, seen.logprobs[[3, 1]])


@pytest.mark.parametrize("platform", ["bf16-b", "fp32-a", "int8-a"])
def test_the_number_format_comes_from_residuals(detector: Detector, platform: str) -> None:
    posterior = detector.formats(observe(detector, platform, "one"))
    assert sum(posterior.values()) == pytest.approx(1, abs=1e-5)
    assert max(posterior, key=lambda f: posterior[f]) == PATTERNS[platform][0]


def test_a_platform_is_nearer_to_itself_than_the_verifier_s_negatives(world: World) -> None:
    data = world.libraries[0].data
    (own,) = own_distances(data, 20)
    assert own.shape == (6, 4) and np.isfinite(own).all()
    assert (own[:, 0] < -1).all(), "a tenth of the noise is a hundredth of its square"


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
        assert again.scores(seen).tobytes() == detector.scores(seen).tobytes()
        assert again.judge(seen, claim="fp32-a") == detector.judge(seen, claim="fp32-a")
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
    assert found["platform_class"][0] == "bf16-a" and found["members"][0] == "bf16-a bf16-twin"
    assert found["number_format"][0] == "bf16" and 0.5 < found["probability"][0] <= 1
