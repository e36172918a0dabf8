"""The whole protocol on the synthetic world: it finds what was put in, and nothing where nothing is."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import synthetic
from hspi.detectors.number_format import SampleBench
from hspi.detectors.training import Bench, fit_verifier
from hspi.evaluation import protocol
from hspi.evaluation.pairs import pair_rows
from hspi.evaluation.paper import PaperBench
from hspi.evaluation.replay import ReplayReport, _held_out_platform, _joint_classes, pooled, score_samples
from hspi.evidence.aligned import align
from hspi.evidence.library import Library
from synthetic import SEED, World

TREES = {"n_estimators": 15, "max_depth": 3}
Found = tuple[dict[str, float], dict[str, list[dict[str, Any]]], list[str]]


@pytest.fixture(scope="module")
def found(world: World) -> Found:
    steps: list[str] = []
    parameters = {"verifier": TREES, "classifier": TREES}
    metrics, tables = protocol.evaluate(world.libraries, world.signatures_of, parameters, SEED, steps.append)
    return metrics, tables, steps


def test_the_synthetic_platforms_are_told_apart(found: Found) -> None:
    metrics = found[0]
    for split in ("probes", "unseen_model", "unseen_platform"):
        assert metrics[f"replay.{split}.macro_accuracy"] > 0.97, split
    assert metrics["replay.probes.min_pair_accuracy"] > 0.97
    assert metrics["replay.probes.mcc"] > 0.97 and metrics["replay.probes.macro_f1"] > 0.97
    assert metrics["replay.open_set.auroc"] > 0.97
    assert metrics["residual.probes.family_accuracy"] > 0.97
    assert metrics["residual.unseen_model.family_accuracy"] > 0.75, "few small trees, one model to learn from"


def test_permuted_labels_fall_to_chance(found: Found) -> None:
    metrics = found[0]
    assert metrics["null.macro_accuracy.chance"] == pytest.approx(1 / 5)
    assert metrics["null.macro_accuracy"] < 0.6 < metrics["replay.probes.macro_accuracy"]


def test_detectors_that_see_no_residual_see_nothing_here(found: Found) -> None:
    """Noise on logits is not visible in one answer's bits: anything above chance would be a leak."""
    for name in ("hspi_ld.probes.macro_accuracy", "hspi_ld.unseen_model.macro_accuracy"):
        assert found[0][name] < 0.45
    assert found[0]["distribution.probes.family_accuracy"] < 0.7


def test_every_accuracy_comes_with_its_interval_and_chance(found: Found) -> None:
    metrics, tables, _ = found
    bases = {k.removesuffix(".chance") for k in metrics if k.endswith(".chance")}
    assert {b.split(".")[0] for b in bases} == {"replay", "nearest", "residual", "distribution", "hspi_ld", "null"}
    for name in bases:
        low, value, high = (metrics[name + x] for x in (".ci_low", "", ".ci_high"))
        assert 0 <= low <= value <= high <= 1 and low < high, name
        assert 0 < metrics[f"{name}.chance"] <= 0.5, name
    assert len(tables["summary"]) == len(bases)
    assert {r["split"] for r in tables["summary"]} >= {"probes", "unseen_model", "unseen_platform"}
    assert all(math.isfinite(v) for v in metrics.values())


def test_what_the_metrics_count(found: Found) -> None:
    metrics = found[0]
    assert (metrics["platforms"], metrics["models"], metrics["classes"], metrics["classes.two"]) == (6, 2, 5, 5)


def test_claims_are_rejected_as_often_as_they_may_be(found: Found) -> None:
    metrics = found[0]
    for alpha in (0.01, 0.05):
        assert metrics[f"claim.power.{alpha}"] > 0.95
    # few independent probes stand behind these samples, so the bound is loose
    assert metrics["claim.false_alarm.0.01"] <= metrics["claim.false_alarm.0.05"] < 0.25


def test_more_tokens_never_do_much_worse(found: Found) -> None:
    rows = [r for r in found[1]["accuracy_by_tokens"] if r["level"] == "replay" and r["top_k"] == 20]
    by = {r["tokens"]: r["accuracy"] for r in rows}
    assert sorted(by) == [1, 2, 4, 8, 16, 32]
    assert all(by[b] >= by[a] - 0.02 for a, b in zip(sorted(by), sorted(by)[1:], strict=False))
    enough = found[0]["replay.tokens_to_99"]
    assert by[int(enough)] >= 0.99 and all(by[n] < 0.99 for n in by if n < enough)


def test_each_pair_of_classes_stands_in_the_table_once(found: Found) -> None:
    rows = found[1]["pair_accuracy"]
    for model in synthetic.MODELS:
        pairs = [frozenset((r["platform_a"], r["platform_b"])) for r in rows if r["model"] == model]
        assert len(pairs) == len(set(pairs)) == 5 * 4 / 2 and all(len(p) == 2 for p in pairs)
    for r in rows:
        assert r["ci_low"] <= r["accuracy"] + 1e-9 and r["accuracy"] <= r["ci_high"] + 1e-9
    assert min(r["accuracy"] for r in rows) == found[0]["replay.probes.min_pair_accuracy"]


def test_confusion_counts_every_sample(found: Found) -> None:
    # per model: 4 held-out settings x 6 platforms x 8 partitions of one sample of 32 test probes
    for model in synthetic.MODELS:
        assert sum(r["count"] for r in found[1]["confusion"] if r["model"] == model) == 4 * 6 * 8


def test_classes_are_published_with_their_members(found: Found) -> None:
    rows = [r for r in found[1]["classes"] if r["model"] == "one"]
    assert {r["class"]: r["platforms"] for r in rows}["bf16-a"] == "bf16-a bf16-twin"
    assert {r["provenance"] for r in rows} == {"emulated"}


def test_the_steps_name_the_parts(found: Found) -> None:
    steps = found[2]
    assert len(steps) == len(set(steps))
    assert {"permuted labels", "held-out nuisance b1", "held-out model two"} <= set(steps)


def test_files_are_whole_and_readable(found: Found, tmp_path: Path) -> None:
    metrics, tables, _ = found
    protocol.write(metrics, tables, tmp_path / "metrics.json", tmp_path / "tables")
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again == {k: pytest.approx(v, abs=1e-6) for k, v in metrics.items()}
    assert {p.stem for p in (tmp_path / "tables").iterdir()} == set(tables), "and no temporary file"
    for name, rows in tables.items():
        with (tmp_path / "tables" / f"{name}.csv").open() as f:
            assert len(list(csv.DictReader(f))) == len(rows)
    lowest, *_ = pair_rows(tmp_path / "tables" / "pair_accuracy.csv")
    assert lowest["accuracy"] == pytest.approx(metrics["replay.probes.min_pair_accuracy"], abs=1e-6)


# ---------------------------------------------------------------- nothing that is tested has trained


def test_test_probes_train_nothing(world: World) -> None:
    """Trees fitted on data whose test probes are garbage are the same trees, bit for bit."""
    library = world.libraries[0]
    data = library.data
    clean = Bench.of(library, SEED)
    spoilt = data.logprobs.copy()
    spoilt[:, :, clean.split.test] = np.random.default_rng(0).normal(size=spoilt[:, :, clean.split.test].shape)
    dirty = Bench.of(replace(library, data=replace(data, logprobs=spoilt)), SEED)
    assert not np.array_equal(clean.comparisons[20].statistics, dirty.comparisons[20].statistics)
    a, b = (fit_verifier([x], parameters=TREES).booster_.save_raw() for x in (clean, dirty))
    assert a == b


def test_a_held_out_setting_trains_nothing(world: World) -> None:
    library = world.libraries[0]
    data = library.data
    clean = Bench.of(library, SEED)
    spoilt = data.logprobs.copy()
    spoilt[:, 3] = np.random.default_rng(0).normal(size=spoilt[:, 3].shape)
    dirty = Bench.of(replace(library, data=replace(data, logprobs=spoilt)), SEED)
    a, b = (fit_verifier([x], parameters=TREES, held_out_setting="b4").booster_.save_raw() for x in (clean, dirty))
    assert a == b
    seen = fit_verifier([dirty], parameters=TREES, held_out_setting="b1").booster_.save_raw()
    assert seen != fit_verifier([clean], parameters=TREES, held_out_setting="b1").booster_.save_raw()


def test_a_dropped_platform_trains_nothing(world: World) -> None:
    library = world.libraries[0]
    data = library.data
    i = data.platform_ids().index("int8-a")
    clean = Bench.of(library, SEED)
    spoilt = data.logprobs.copy()
    spoilt[i] = spoilt[i][:, :, ::-1]
    dirty = Bench.of(replace(library, data=replace(data, logprobs=spoilt)), SEED)
    a, b = (fit_verifier([x], parameters=TREES, dropped=["int8-a"]) for x in (clean, dirty))
    # The far platform may still be drawn among the random wrong candidates, where it is thrown away.
    assert a.booster_.save_raw() == b.booster_.save_raw()


def test_scores_are_of_test_probes_in_disjoint_samples(world: World) -> None:
    bench = Bench.of(world.libraries[0], SEED)
    part = score_samples(fit_verifier([bench], parameters=TREES), bench, 8, 20, [3], bench.settings)
    assert part.per_partition == 6 and part.table.block.max() + 1 == 3 * 6
    assert part.scores.shape == (6 * 18, 5) and set(part.table.setting) == {3}
    assert pooled([part], 8).samples == 108


def test_twins_on_any_model_share_a_fold(world: World) -> None:
    benches = [Bench.of(x, SEED, ()) for x in world.libraries]
    split = [labelled(b, [0, 1, 2, 3, 4, 5]) for b in benches]
    assert len(set(_joint_classes(split).values())) == 6
    one_merged = [split[0], labelled(split[1], [0, 1, 2, 3, 3, 4])]
    groups = _joint_classes(one_merged)
    assert groups["fp32-a"] == groups["fp32-b"] != groups["bf16-a"]


def labelled(bench: Bench, label: list[int]) -> Bench:
    return replace(bench, library=replace(bench.library, classes=replace(bench.classes, label=label)))


def test_a_platform_that_one_model_lacks_is_no_obstacle(world: World) -> None:
    kept = synthetic.signatures("two", [p for p in synthetic.PATTERNS if p != "int8-a"])
    data = align("two", kept, synthetic.reference("two"))
    benches = [
        Bench.of(world.libraries[0], SEED),
        Bench.of(Library.measured(data, SEED, 20), SEED),
    ]
    report = ReplayReport()
    _held_out_platform(benches, TREES, "b4", report, lambda s: None)
    assert report.accuracies["replay.unseen_platform.macro_accuracy"].value > 0.9


# ---------------------------------------------------------------- detectors of one observation


def spoilt(bench: SampleBench, probes: Any, setting: int) -> SampleBench:
    """The same bench, whose statistics of these probes and of this setting are garbage."""
    statistics = bench.statistics.copy()
    statistics[:, :, probes] = 1e9
    statistics[:, setting] = 1e9
    other = SampleBench.__new__(SampleBench)
    other.__dict__.update(bench.__dict__, statistics=statistics)
    return other


@pytest.mark.parametrize("level", ["residual", "distribution"])
def test_single_benches_train_and_test_on_other_probes_and_settings(world: World, level: str) -> None:
    bench = SampleBench(world.libraries[0], SEED)
    x, y, _ = bench.training(level, bench.formats, [0, 1, 2], 0)
    np.testing.assert_array_equal(spoilt(bench, bench.split.test, 3).training(level, bench.formats, [0, 1, 2], 0)[0], x)
    assert set(y) == {"bf16", "fp32", "int8"} and np.isfinite(x).any(axis=1).all()
    x, _, block, per_partition = bench.test(level, bench.formats, [3], 0)
    trained = np.concatenate([bench.split.fit, bench.split.calibrate])
    np.testing.assert_array_equal(spoilt(bench, trained, 0).test(level, bench.formats, [3], 0)[0], x)
    assert len(x) == 6 * 8 and per_partition == 1 and block.max() == 7


def test_paper_samples_come_from_disjoint_prompts(world: World) -> None:
    bench = PaperBench(world.signatures_of("one"), world.libraries[0].classes, SEED)
    x, y, _ = bench.samples("train", ["b1"])
    # 24 prompts train, 4 a sample; 2 positions x 64 values x 3 integers each
    assert x.shape == (6 * 6, 4 * synthetic.POSITIONS * 64 * 3) and len(set(y)) == 5
    test, _, _ = bench.samples("test", ["b1"])
    assert test.shape == x.shape
    one = 64 * 3  # a prompt's position is a block of its own
    rows = {r.tobytes() for r in x.reshape(-1, one)}
    assert not rows & {r.tobytes() for r in test.reshape(-1, one)}
