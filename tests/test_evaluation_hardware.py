"""A whole machine held out: named given its signatures, unknown without them, and accused of nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

import synthetic
from hspi.detectors.training import Bench
from hspi.evaluation.hardware import evaluate_hardware, spans
from hspi.evaluation.replay import ReplayReport
from synthetic import SEED, World

TREES = {"n_estimators": 15, "max_depth": 3}


def machines(*some: tuple[str, str]) -> list[Bench]:
    """A bench of one model: each machine with these platforms."""
    rows = [s for machine, names in some for s in synthetic.signatures("one", names.split(), (machine,))]
    return [Bench.of(synthetic.library_of("one", rows), SEED)]


def hardware(benches: list[Bench]) -> ReplayReport:
    report = ReplayReport()
    evaluate_hardware(benches, TREES, report)
    return report


def test_with_one_machine_or_one_platform_of_each_nothing_is_said_of_hardware(world: World) -> None:
    for benches in ([Bench.of(world.libraries[0], SEED)], machines(("amd-zen2", "bf16-b"), ("cpu", "fp32-a fp32-b"))):
        report = hardware(benches)
        assert not report.tables and not report.figures and not report.accuracies


def test_machines_that_share_no_software_make_no_claims_of_it() -> None:
    """As a CPU and a virtual GPU."""
    report = hardware(machines(("amd-zen2", "bf16-b fp32-b"), ("intel-haswell", "int8-a fp32-a")))
    assert "claim.contradicted.other_hardware" not in report.figures
    assert report.accuracies["replay.unseen_hardware.macro_accuracy"].value > 0.9


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_where_every_platform_computes_as_on_another_machine_nobody_need_be_unknown() -> None:
    rows = synthetic.signatures("one", ["fp32-a", "bf16-b"], ("amd-zen2",))
    facts = synthetic.MACHINES["intel-haswell"]
    copies = [replace(s, header=replace(s.header, facts=facts)) for s in rows]
    report = hardware([Bench.of(synthetic.library_of("one", [*rows, *copies]), SEED)])
    assert {r["question"] for r in report.tables["hardware"]} == {"named, given its signatures"}
    assert "replay.unseen_hardware.auroc" not in report.figures
    assert report.figures["claim.contradicted.other_hardware"] == 0


def test_without_its_signatures_a_machine_s_answers_agree_with_nobody() -> None:
    both = "bf16-b fp32-b int8-a"
    report = hardware(machines(("amd-zen2", both), ("intel-haswell", both)))
    rows = {(r["hardware"], r["question"]): r for r in report.tables["hardware"]}
    assert len(rows) == 4 and all(r["value"] > 0.9 for r in rows.values())
    assert report.figures["claim.contradicted.other_hardware"] == 0


def test_classes_of_one_machine_span_nothing(world: World) -> None:
    assert spans(world.libraries) == []
    rows = spans([synthetic.library("one", ["fp32-a", "bf16-b"], ("amd-zen2", "intel-haswell", "cpu"))])
    # "cpu" is the machine whose patterns the others' `fp32-a` has
    assert [r["hardware"] for r in rows] == ["amd-zen2 cpu intel-haswell"]
