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
from hspi.detectors.verifier import Comparisons
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
def found() -> Found:
    """Of two machines: six platforms on each, of which one computes alike on both."""
    steps: list[str] = []
    parameters = {"verifier": TREES, "classifier": TREES}
    libraries = synthetic.world(("amd-zen2", "intel-haswell")).libraries
    metrics, tables = protocol.evaluate(libraries, parameters, SEED, steps.append)
    return metrics, tables, steps


def test_the_synthetic_platforms_are_told_apart(found: Found) -> None:
    metrics = found[0]
    for split in ("probes", "held_out_class", "unseen_model", "unseen_platform", "unseen_hardware"):
        assert metrics[f"replay.{split}.macro_accuracy"] > 0.97, split
    assert metrics["replay.probes.min_pair_accuracy"] > 0.97
    assert metrics["replay.probes.mcc"] > 0.97 and metrics["replay.probes.macro_f1"] > 0.97
    assert metrics["replay.open_set.auroc"] > 0.97 and metrics["replay.unseen_hardware.auroc"] > 0.97
    assert metrics["residual.probes.family_accuracy"] > 0.97
    assert metrics["residual.unseen_model.family_accuracy"] > 0.75, "few small trees, one model to learn from"


def test_permuted_labels_fall_to_chance(found: Found) -> None:
    metrics = found[0]
    assert metrics["null.macro_accuracy.chance"] == pytest.approx(1 / 9)
    assert metrics["null.macro_accuracy.ci_low"] < 1 / 9 and metrics["null.macro_accuracy"] < 0.25


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
    assert (metrics["platforms"], metrics["models"], metrics["classes"], metrics["classes.two"]) == (12, 2, 9, 9)


def test_true_claims_are_contradicted_as_often_as_they_may_be(found: Found) -> None:
    metrics, tables, _ = found
    for alpha in (0.01, 0.05):
        mean, worst, upper = (metrics[f"claim.false_alarm.{alpha}{x}"] for x in ("", ".worst", ".worst.upper"))
        assert mean <= worst <= alpha < 1 and worst < upper <= 1
        assert metrics[f"claim.excluded.{alpha}"] >= mean, "an exclusion alone contradicts nobody"
    assert metrics["claim.contradicted.held_out_class"] == metrics["claim.contradicted.held_out_class.worst"] == 0
    assert metrics["claim.contradicted.other_hardware"] == 0
    rows = tables["true_claims"]
    # eleven distinct platforms of four classes, each with its class in the library and without
    assert len(rows) == 2 * 11 * 4 and all(r["audits"] == 2 * 256 for r in rows), "of both models"
    assert {r["batch_class"] for r in rows} == set(synthetic.SETTINGS)
    (row,) = (r for r in tables["false_alarm"] if r["alpha"] == 0.01)
    assert row["worst"] == metrics["claim.false_alarm.0.01.worst"] and row["n_of_worst"] == 512


def test_the_price_in_power_is_what_restless_rivals_of_one_format_cost(found: Found) -> None:
    metrics, tables, _ = found
    assert metrics["claim.power.format"] == 1
    assert 0 < metrics["claim.power.kernel"] < 1 and 0 < metrics["claim.power.hardware"] < 1
    assert tables["undetected"]
    for row in tables["undetected"]:
        assert row["differ_in"] in ("kernel", "hardware") and row["truth"].rpartition("/")[2] in synthetic.RESTLESS


def test_hardware_that_nobody_trained_on_is_named_given_its_signatures_and_else_unknown(found: Found) -> None:
    rows = found[1]["hardware"]
    questions = ["named, given its signatures", "said to be unknown, without them"]
    assert [(r["hardware"], r["question"]) for r in rows] == [
        (m, q) for m in ("amd-zen2", "intel-haswell") for q in questions
    ]
    assert all(r["value"] > 0.97 and r["ci_low"] <= r["value"] <= r["ci_high"] + 1e-9 for r in rows)
    # the twin of amd-zen2/fp32-a was not compared, so that it too is asked to be unknown
    asked = {r["hardware"]: r["n"] for r in rows if r["question"] == questions[1]}
    assert asked == {"amd-zen2": 2 * 6 * 4 * 8, "intel-haswell": 2 * 5 * 4 * 8}


def test_classes_that_span_machines_are_published(found: Found) -> None:
    for row, model in zip(found[1]["spans"], synthetic.MODELS, strict=True):
        assert (row["model"], row["class"]) == (model, "amd-zen2/fp32-a")
        assert row["platforms"] == "amd-zen2/fp32-a intel-haswell/fp32-a"
        assert row["hardware"] == "amd-zen2 intel-haswell"


def test_every_platform_has_its_accuracy_twins_that_were_not_compared_too(found: Found) -> None:
    by_id = {f"{r['hardware']}/{r['software']}": r for r in found[1]["accuracy_by_platform"]}
    assert len(by_id) == 12 == len(found[1]["accuracy_by_platform"])
    twin, first = by_id["intel-haswell/fp32-a"], by_id["amd-zen2/fp32-a"]
    assert {k: v for k, v in twin.items() if k != "hardware"} == {k: v for k, v in first.items() if k != "hardware"}
    assert all(r["accuracy"] > 0.97 and r["samples"] == 2 * 4 * 8 for r in by_id.values())


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
        assert len(pairs) == len(set(pairs)) == 9 * 8 / 2 and all(len(p) == 2 for p in pairs)
    for r in rows:
        assert r["ci_low"] <= r["accuracy"] + 1e-9 and r["accuracy"] <= r["ci_high"] + 1e-9
    assert min(r["accuracy"] for r in rows) == found[0]["replay.probes.min_pair_accuracy"]


def test_confusion_counts_every_sample(found: Found) -> None:
    # per model: 4 batch classes x 11 distinct platforms x 8 partitions of one sample of 32 test probes
    for model in synthetic.MODELS:
        assert sum(r["count"] for r in found[1]["confusion"] if r["model"] == model) == 4 * 11 * 8


def test_classes_are_published_with_their_members(found: Found) -> None:
    rows = [r for r in found[1]["classes"] if r["model"] == "one"]
    twins = "amd-zen2/bf16-a", "amd-zen2/bf16-twin"
    assert {r["class"]: r["platforms"] for r in rows}[twins[0]] == " ".join(twins)
    assert {r["provenance"] for r in rows} == {"emulated"}


def test_the_steps_name_the_parts(found: Found) -> None:
    steps = found[2]
    assert len(steps) == len(set(steps))
    some = {"permuted labels", "held-out answers 4/4", "held-out model two", "held-out hardware amd-zen2", "claims"}
    assert some <= set(steps)


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
    assert not np.array_equal(clean.comparisons[20].cross, dirty.comparisons[20].cross)
    a, b = (fit_verifier([x], parameters=TREES).booster_.save_raw() for x in (clean, dirty))
    assert a == b


def test_a_held_out_row_is_not_observed(world: World) -> None:
    """Its signature stands in the library still, as it does when the verifier is used."""
    clean = Bench.of(world.libraries[0], SEED)
    dirty = replace(clean, comparisons={k: spoilt_row(pairs, (3, 2)) for k, pairs in clean.comparisons.items()})
    for held, same in (({(3, 2)}, True), ({(3, 1)}, False)):
        fitted = [fit_verifier([x], parameters=TREES, held={"one": held}).booster_.save_raw() for x in (clean, dirty)]
        assert (fitted[0] == fitted[1]) == same


def spoilt_row(pairs: Comparisons, row: tuple[int, int]) -> Comparisons:
    """The same where what was observed is garbage."""
    cross, own = pairs.cross.copy(), [x.copy() for x in pairs.own]
    cross[pairs.rows.index(row)] = 0.0
    own[row[0]][row[1]] = 0.0
    return replace(pairs, cross=cross, own=own)


def test_a_dropped_platform_trains_nothing(world: World) -> None:
    library = world.libraries[0]
    data = library.data
    i = data.platform_ids().index("cpu/int8-a")
    clean = Bench.of(library, SEED)
    spoilt = data.logprobs.copy()
    spoilt[i] = spoilt[i][:, :, ::-1]
    dirty = Bench.of(replace(library, data=replace(data, logprobs=spoilt)), SEED)
    a, b = (fit_verifier([x], parameters=TREES, dropped=["cpu/int8-a"]) for x in (clean, dirty))
    # The far platform may still be drawn among the random wrong candidates, where it is thrown away.
    assert a.booster_.save_raw() == b.booster_.save_raw()


def test_scores_are_of_test_probes_in_disjoint_samples(world: World) -> None:
    bench = Bench.of(world.libraries[0], SEED)
    rows = [row for row in bench.data.rows if row[1] == 3]
    part = score_samples(fit_verifier([bench], parameters=TREES), bench, 8, 20, rows)
    assert part.per_partition == 6 and part.table.block.max() + 1 == 3 * 6
    assert part.scores.shape == (6 * 18, 5) and set(part.table.setting) == {3}
    assert pooled([part], 8).samples == 108


def test_twins_on_any_model_share_a_fold(world: World) -> None:
    benches = [Bench.of(x, SEED, ()) for x in world.libraries]
    split = [labelled(b, [0, 1, 2, 3, 4, 5]) for b in benches]
    assert len(set(_joint_classes(split).values())) == 6
    one_merged = [split[0], labelled(split[1], [0, 1, 2, 3, 3, 4])]
    groups = _joint_classes(one_merged)
    assert groups["cpu/fp32-a"] == groups["cpu/fp32-b"] != groups["cpu/bf16-a"]


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
    _held_out_platform(benches, TREES, report, lambda s: None)
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
    bench = PaperBench(world.libraries[0], SEED)
    x, y, block = bench.samples(bench.train)
    # four samples of each platform's first batch class; 32 prompts of one token x 64 values x 3 integers each
    assert x.shape == (6 * 4, 32 * 64 * 3) and len(set(y)) == 5 and block.max() == 3
    test, _, _ = bench.samples(bench.test)
    assert len(test) == 6 * 4 * bench.per_partition
    one = 64 * 3  # of a prompt
    rows = {r.tobytes() for r in x.reshape(-1, one)}
    assert not rows & {r.tobytes() for r in test.reshape(-1, one)}
