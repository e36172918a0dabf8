"""The store on a real SQLite database and real files; served for real in the slow part."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hspi import tracking
from hspi.errors import DataError
from hspi.tracking.lineage import dvc_md5s, evaluation_set_hash

PAIRS = """level,split,model,platform_a,platform_b,accuracy,n
replay,probes,llama,torch-bf16,ort-fp32,1.0,300
replay,probes,qwen3,torch-bf16,ort-fp32,0.9,100
replay,probes,llama,torch-bf16,torch-fp32,0.5,10
residual,unseen_model,llama,torch-bf16,ort-fp32,0.7,10
"""
GOOD = {"replay.probes.macro_accuracy": 0.9, "replay.probes.macro_accuracy.1x20": 0.8}


@pytest.fixture
def root(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(migrated / "mlruns", tmp_path / "mlruns")
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    (tmp_path / "reports" / "tables" / "pair_accuracy.csv").write_text(PAIRS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Train = Callable[..., dict[str, str]]


@pytest.fixture
def train(root: Path) -> Train:
    """Logs a run whose model is a folder with one file; nothing here needs it to answer."""

    def log(content: str = "{}", **more: Any) -> dict[str, str]:
        folder = root / "models" / "detector"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "facts.json").write_text(content)
        return tracking.log_training(folder, {"trees": {"depth": 4}}, {"loss": 0.5}, {"data/zoo": "abc"}, **more)

    return log


def locations(root: Path) -> list[str]:
    columns = ["experiments.artifact_location", "runs.artifact_uri", "logged_models.artifact_location"]
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as db:
        found: list[str] = []
        for table, column in (c.split(".") for c in [*columns, "model_versions.storage_location"]):
            found += [row[0] for row in db.execute(f"SELECT {column} FROM {table}")]
    return found


def test_a_run_holds_parameters_metrics_and_the_md5s_of_its_data(root: Path, train: Train) -> None:
    run = train()
    assert json.loads((root / "models/run.json").read_text()) == run
    with tracking.store.open_store(root) as client:
        data = client.get_run(run["run_id"]).data
    assert data.params == {"trees.depth": "4"}
    assert data.metrics == {"loss": 0.5}
    assert data.tags["dvc.md5.data/zoo"] == "abc"


def test_names_and_notes_say_what_a_run_is_about(root: Path, train: Train) -> None:
    """What people see first on MLflow's pages."""
    wanted = {"platforms": ["a", "b"], "models": ["one"]}
    md5s = {"data/zoo": "z", "data/signatures": "s", "data/signatures/a": "a", "src/hspi": "c"}
    train()
    run = tracking.log_training("models/detector", {"params": wanted}, {}, md5s)
    version = tracking.registry.register(run, GOOD, "0123456789abcdef")["version"]
    with tracking.store.open_store(root) as client:
        found = client.get_run(run["run_id"])
        files = [f.path for f in client.list_artifacts(run["run_id"])]
        note = client.get_model_version(tracking.registry.MODEL, str(version)).description
        notes = [e.tags.get("mlflow.note.content", "") for e in client.search_experiments() if e.name == "hspi"]
    assert found.info.run_name == "detector, 2 platforms, 1 models"
    assert {t for t in found.data.tags if t.startswith("dvc.")} == {"dvc.md5.data/zoo", "dvc.md5.data/signatures"}
    assert "dvc_md5s.json" in files
    assert "0.9 32 × top-20" in note and "0123456789ab" in note and "champion" in notes[0]


def test_no_path_in_the_database_is_absolute(root: Path, train: Train) -> None:
    tracking.registry.register(train(), GOOD, "set")
    assert all(path.startswith("mlruns/artifacts") for path in locations(root))


def test_the_model_holds_no_pickle_and_says_what_it_needs(root: Path, train: Train) -> None:
    train()
    files = [p for p in (root / "mlruns" / "artifacts").rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"MLmodel", "served_model.py", "facts.json", "requirements.txt"}
    assert not [p for p in files if p.suffix in {".pkl", ".pickle", ".joblib"} or b"\x80\x04\x95" in p.read_bytes()]
    needs = next(p for p in files if p.name == "requirements.txt").read_text()
    assert "xgboost-cpu==" in needs and "numpy==" in needs


def test_a_moved_checkout_still_finds_its_champion(root: Path, train: Train, tmp_path_factory: Any) -> None:
    tracking.registry.register(train('{"first": 1}'), GOOD, "set")
    moved = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.move(root / "mlruns", moved / "mlruns")
    path = tracking.registry.champion_path(moved)
    assert path.is_relative_to(moved)
    assert (path / "facts.json").read_text() == '{"first": 1}'


def test_opening_the_store_leaves_mlflow_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow hands its URIs to child processes by the environment; ours must not reach them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///of-the-user.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with tracking.store.open_store(root):
        assert os.environ["MLFLOW_REGISTRY_URI"] == tracking.store.store_uri(root)
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///of-the-user.db"
    assert "MLFLOW_REGISTRY_URI" not in os.environ
    assert not (root / "of-the-user.db").exists() and not (root / "mlflow.db").exists()


def test_pair_metrics_average_models_by_their_samples(root: Path, train: Train) -> None:
    run = train()
    assert tracking.runs.log_evaluation(run["run_id"], {**GOOD, "claim.false_alarm.0.01": 0.0}, "reports/tables")
    with tracking.store.open_store(root) as client:
        metrics = client.get_run(run["run_id"]).data.metrics
        tables = [f.path for f in client.list_artifacts(run["run_id"], "tables")]
    assert metrics["pair.torch-bf16/ort-fp32.accuracy"] == pytest.approx(0.975)
    assert metrics["pair.residual.unseen_model.torch-bf16/ort-fp32.accuracy"] == 0.7
    assert metrics["platform.torch-bf16.min_pair_accuracy"] == 0.5
    assert metrics["platform.ort-fp32.min_pair_accuracy"] == pytest.approx(0.975)
    assert metrics["claim.false_alarm.0.01"] == 0.0
    assert tables == ["tables/pair_accuracy.csv"]


def test_thousands_of_pairs_are_logged(root: Path, train: Train) -> None:
    names = [f"p{i}" for i in range(60)]
    rows = [f"replay,probes,m,{a},{b},0.5,10" for a in names for b in names if a < b]
    (root / "reports/tables/pair_accuracy.csv").write_text(
        "level,split,model,platform_a,platform_b,accuracy,n\n" + "\n".join(rows)
    )
    run = train()
    tracking.runs.log_evaluation(run["run_id"], GOOD, "reports/tables")
    with tracking.store.open_store(root) as client:
        metrics = client.get_run(run["run_id"]).data.metrics
    assert sum(name.startswith("pair.") for name in metrics) == len(rows) > 1000


def test_logging_an_evaluation_again_changes_nothing(root: Path, train: Train) -> None:
    run = train()
    assert tracking.runs.log_evaluation(run["run_id"], GOOD, "reports/tables")
    assert not tracking.runs.log_evaluation(run["run_id"], GOOD, "reports/tables")
    with tracking.store.open_store(root) as client:
        assert len(client.get_metric_history(run["run_id"], "replay.probes.macro_accuracy")) == 1


def better(by: float = 0.0, one: float = 0.0) -> dict[str, float]:
    return dict(zip(GOOD, (0.9 + by, 0.8 + one), strict=True))


def test_the_first_is_champion_and_registering_again_changes_nothing(root: Path, train: Train) -> None:
    run = train()
    first = tracking.registry.register(run, GOOD, "set")
    again = tracking.registry.register(run, GOOD, "set")
    assert first["promoted"] and first["champion"] == first["version"] == 1
    assert again["version"] == again["champion"] == 1
    with tracking.store.open_store(root) as client:
        assert len(client.search_model_versions("name = 'hspi-detector'")) == 1


@pytest.mark.parametrize(
    ("metrics", "wins"),
    [
        (better(0.01), True),
        (better(0.0, 0.01), True),
        (better(0.0, 0.0), False),
        (better(-0.01, 0.1), False),
    ],
    ids=["better", "tie, better at one probe", "same", "worse"],
)
def test_only_a_better_one_becomes_champion(root: Path, train: Train, metrics: dict[str, float], wins: bool) -> None:
    tracking.registry.register(train("{}"), GOOD, "set")
    second = tracking.registry.register(train("[]"), metrics, "set")
    assert second["version"] == 2
    assert second["champion"] == (2 if wins else 1)
    assert second["promoted"] is wins
    assert (tracking.registry.champion_path(root) / "facts.json").read_text() == ("[]" if wins else "{}")


def test_on_another_evaluation_set_both_detectors_are_scored_anew(root: Path, train: Train) -> None:
    """What they scored elsewhere, and under a stricter protocol, counts for neither."""
    tracking.registry.register(train("{}"), GOOD, "set")
    second = train("[]")
    held = tracking.registry.register(second, better(0.05), "other set")
    assert held["champion"] == 1 and "another set" in held["reason"]

    asked: list[str] = []

    def rescoring(champions: float, challengers: float) -> Callable[[Path], dict[str, float]]:
        def rescore(detector: Path) -> dict[str, float]:
            asked.append((detector / "facts.json").read_text())
            return better({"{}": champions, "[]": challengers}[asked[-1]])

        return rescore

    for champions, challengers in ((0.07, 0.06), (0.07, 0.07)):
        kept = tracking.registry.register(second, better(0.09), "other set", rescore=rescoring(champions, challengers))
        assert kept["champion"] == 1 and not kept["promoted"] and "does not beat" in kept["reason"]
    won = tracking.registry.register(second, better(-0.05), "other set", rescore=rescoring(0.01, 0.02))
    assert won["champion"] == 2 and won["promoted"] and sorted(asked) == sorted(["{}", "[]"] * 3)
    again = tracking.registry.register(second, better(-0.05), "other set", rescore=rescoring(1, 0))
    assert again["champion"] == 2 and len(asked) == 6, "the champion itself is not challenged by itself"


def test_a_champion_that_this_version_cannot_read_gives_way_and_a_challenger_that_it_cannot_is_an_error(
    root: Path, train: Train
) -> None:
    def unreadable(content: str) -> Callable[[Path], dict[str, float]]:
        def rescore(detector: Path) -> dict[str, float]:
            if (detector / "facts.json").read_text() == content:
                raise DataError("it reads other features")
            return better(0.01)

        return rescore

    tracking.registry.register(train("{}"), GOOD, "set")
    second = train("[]")
    with pytest.raises(DataError, match="other features"):
        tracking.registry.register(second, GOOD, "other set", rescore=unreadable("[]"))
    won = tracking.registry.register(second, GOOD, "other set", rescore=unreadable("{}"))
    assert won["champion"] == 2 and "cannot be scored" in won["reason"]


def test_registering_needs_the_primary_metrics(root: Path, train: Train) -> None:
    with pytest.raises(DataError, match=r"replay\.probes\.macro_accuracy"):
        tracking.registry.register(train(), {"loss": 1.0}, "set")


def test_no_champion_is_one_clear_line(root: Path) -> None:
    with pytest.raises(DataError, match="must hold hspi-detector@champion"):
        tracking.registry.champion_path(root)


def test_publish_remakes_a_run_that_this_store_does_not_know_once(root: Path, train: Train) -> None:
    train()
    gone = {"run_id": "0" * 32, "model_id": "m-gone", "model_uri": "models:/m-gone"}
    (root / "models/run.json").write_text(json.dumps(gone))
    (root / "reports/metrics.json").write_text(json.dumps(GOOD))
    files = ("models/run.json", "models/detector", "reports/metrics.json", "reports/tables", None)
    results = [tracking.publish(*files, "reports/registry.json", evaluation_set="set") for _ in range(2)]
    assert results[0]["run_id"] == results[1]["run_id"] != gone["run_id"]
    assert json.loads((root / "reports/registry.json").read_text())["version"] == 1
    assert json.loads((root / "models/run.json").read_text()) == gone, "a stage's output is not touched by another"


def test_trials_nest_below_their_study_and_a_resumed_study_adds_the_new_ones(root: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="trees", sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("depth", 0, 1), n_trials=3)
    assert tracking.log_trials(study.trials, "trees") == 3
    study.optimize(lambda trial: trial.suggest_float("depth", 0, 1), n_trials=2)
    assert tracking.log_trials(study.trials, "trees") == 2
    with tracking.store.open_store(root) as client:
        experiment = client.get_experiment_by_name("hspi").experiment_id
        parent = client.search_runs([experiment], "tags.`hspi.stage` = 'tune'")
        trials = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent[0].info.run_id}'")
    assert len(parent) == 1 and len(trials) == 5
    assert parent[0].info.run_name == "tune trees" and any(t.info.run_name.startswith("trial 0: ") for t in trials)
    ended = parent[0].info.end_time
    assert tracking.log_trials(study.trials, "trees") == 0
    with tracking.store.open_store(root) as client:
        assert client.get_run(parent[0].info.run_id).info.end_time == ended, "nothing new, so the search is no longer"
    assert {float(t.data.params["depth"]) for t in trials} == {t.params["depth"] for t in study.trials}


def test_a_temporary_experiment_writes_to_the_checkout_it_came_from(tmp_path: Path) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpab12"
    copy.mkdir(parents=True)
    assert tracking.store.store_root(copy) == tracking.store.store_root(tmp_path) == tmp_path.resolve()


LOCK = """
stages:
  featurize:
    deps: [{path: data/signatures, md5: s1}, {path: src/hspi/evidence, md5: c1}]
    params: {params.yaml: {models: [llama]}}
    outs: [{path: data/features, md5: f1}]
  evaluate:
    deps: [{path: data/features, md5: f1}]
"""


def test_the_evaluation_set_is_its_data_not_its_code(tmp_path: Path) -> None:
    hashes = []
    for text in (LOCK, LOCK.replace("c1", "c2"), LOCK.replace("s1", "s2"), LOCK.replace("llama", "qwen3")):
        (tmp_path / "dvc.lock").write_text(text)
        hashes.append(evaluation_set_hash(tmp_path))
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo.dvc").write_text("outs: [{md5: z1, path: zoo}]")
    assert dvc_md5s(tmp_path)["data/zoo"] == "z1" and dvc_md5s(tmp_path)["data/features"] == "f1"
    (tmp_path / "dvc.lock").unlink()
    with pytest.raises(DataError, match="dvc repro evaluate"):
        evaluation_set_hash(tmp_path)


@pytest.mark.slow
def test_two_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    code = "from hspi import tracking\nwith tracking.store.open_store() as c: print(len(c.search_experiments()))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) for _ in range(2)]
    assert [p.communicate()[0].split() for p in both] == [[b"2"], [b"2"]]
