"""What people read on MLflow's pages: names, descriptions, links and the view of the table of runs."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from hspi.tracking import pages
from hspi.tracking.notes import description, detector_name, differences, made_of

HONEST = {f"claim.false_alarm.{alpha}{of}": 0.0 for alpha in ("0.01", "0.05") for of in ("", ".worst", ".worst.upper")}
CODE = {"mlflow.source.git.commit": "a53f54d0123", "hspi.git.dirty": "false"}
TUNED = {"tuned": {"verifier": {"max_depth": 6, "eta": 0.1}}, "params": {"evaluation": {"seed": 1}, "models": ["a"]}}


def view_of(metrics: list[str]) -> dict[str, list[str]]:
    """As MLflow's pages read the tag."""
    ((name, tag),) = pages.figures_view(metrics).items()
    assert name == "mlflow.sharedViewState.hspi-figures" and len(tag) <= 20_000
    saved = json.loads(tag)
    assert isinstance(saved["name"], str) and isinstance(saved["createdAt"], int)
    state = saved["state"]
    assert state.startswith("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;")))))


def test_the_view_of_runs_begins_with_the_description_and_the_figures_in_their_order() -> None:
    view = view_of(["_headline/32x20 accuracy", "accuracy/amd-zen3/torch-bf16"])
    columns = [
        "attributes.`Description`",
        "metrics.`_headline/32x20 accuracy`",
        "metrics.`accuracy/amd-zen3/torch-bf16`",
    ]
    assert view["selectedColumns"] == columns
    assert view["columnOrder"] == ["attributes.`Run Name`", *columns]
    assert set(view["columnWidths"]) == set(view["columnOrder"])


def test_of_very_many_platforms_the_view_has_as_many_as_mlflow_keeps() -> None:
    many = [f"accuracy/hardware-{i * 7919:x}/software-{i * 104729:x}" for i in range(10_000)]
    shown = view_of(["_headline/32x20 accuracy", *many])["selectedColumns"]
    assert shown[1] == "metrics.`_headline/32x20 accuracy`" and 100 < len(shown) < 10_000


def test_links_open_the_pages_of_trainings_on_the_server_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HSPI_MLFLOW_PAGES"):
        monkeypatch.delenv(name, raising=False)
    run = {"experiment_id": "1", "run_id": "r"}
    rest = "/#/experiments/1/runs/r?workflowType=machine_learning"
    assert pages.run_link(run) == f"http://127.0.0.1:5000{rest}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://db/mlflow")
    assert pages.run_link(run) == f"http://127.0.0.1:5000{rest}", "a database has no pages"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.team")
    assert pages.run_link(run) == f"https://mlflow.team{rest}", "no password in a link"
    monkeypatch.setenv("HSPI_MLFLOW_PAGES", "http://proxy/")
    assert pages.run_link(run) == f"http://proxy{rest}"
    links = [pages.table_link("1"), pages.compare_link("1", ["a", "b"]), pages.model_link("hspi-detector", 2)]
    assert all("workflowType=machine_learning" in link for link in links)


def test_where_to_look_names_the_experiments_of_this_store(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = pages.where_to_look()
    assert [line.split()[0] for line in lines] == ["detectors", "registry", "audits"] and "/experiments/1/" in lines[0]


def test_a_name_says_what_differs_from_the_detector_before() -> None:
    first = made_of(TUNED, ["zen/x", "zen/y"], {"zen": "0123456789"}, CODE)
    assert detector_name(1, first, None) == "detector 1: 2 platforms, 1 machine"
    assert detector_name(2, first, first) == "detector 2: the same again"
    tuned = {**first, "tuned.verifier.max_depth": "7", "tuned.verifier.eta": "0.2", "params.evaluation.seed": "2"}
    assert detector_name(3, tuned, first) == "detector 3: verifier tuned anew, evaluation.seed 2"
    more = made_of(TUNED, ["new/x", "zen/x", "zen/y"], {"zen": "abcdefghij"}, {**CODE, "hspi.git.dirty": "true"})
    assert (
        detector_name(4, more, first) == "detector 4: data.new unversioned, data.zen abcdefgh, platforms 3 and 1 more"
    )
    assert differences(more, first)[-1] == "code a53f54d+"
    assert differences({**first, "params.demo.collect": "x"}, first) == [], "what is collected here trains nothing"


def test_a_description_says_the_headline_and_what_is_missed() -> None:
    good = description({**HONEST, "replay.probes.macro_accuracy": 0.9999, "claim.power.kernel": 0.5})
    assert good.startswith("1 of 8 targets missed; true claims stand.")
    assert "**Missed**\n\n- False claim of another kernel contradicted: 0.5, to reach ≥ 0.95" in good
    assert "- Which class? 32 probes × top-20: 0.9999, to reach ≥ 0.999" in good
    bad = description({**HONEST, "claim.false_alarm.0.05": 0.06}, "code a53f54d")
    assert bad.startswith("1 of 6 targets missed; true claims fall, so no champion.")
    assert bad.endswith("Differs from the detector before: code a53f54d.")
    assert "not measured" in description({"replay.probes.macro_accuracy": 1.0})
