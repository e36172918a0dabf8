"""The store on a real SQLite database and real files; served for real in the slow part."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import free_port
from hspi import tracking
from hspi.errors import ConfigError, DataError
from hspi.tracking.lineage import dvc_md5s, evaluation_set_hash

BF16, ORT, FP32 = "amd-zen3/torch-bf16", "amd-zen3/ort-fp32", "intel-icelake/torch-fp32"
PAIRS = f"""level,split,model,platform_a,platform_b,accuracy,n
replay,probes,llama,{BF16},{ORT},1.0,300
replay,probes,qwen3,{BF16},{ORT},0.9,100
replay,probes,llama,{BF16},{FP32},0.5,10
residual,unseen_model,llama,{BF16},{ORT},0.7,10
"""
BY_PLATFORM = """hardware,software,provenance,accuracy,ci_low,ci_high,chance,samples,tokens,class,held_out
amd-zen3,torch-bf16,real,0.99,0.97,1.0,0.3,512,32,amd-zen3/torch-bf16,"probes, batch class"
amd-zen3,ort-fp32,real,1.0,0.98,1.0,0.3,512,32,amd-zen3/ort-fp32,"probes, batch class"
intel-icelake,torch-fp32 (2),real,1.0,0.98,1.0,0.3,512,32,intel-icelake/torch-fp32,"probes, batch class"
"""
SCORES = {"replay.probes.macro_accuracy": 0.9, "replay.probes.macro_accuracy.1x20": 0.8}
HONEST = {f"claim.false_alarm.{alpha}{of}": 0.0 for alpha in ("0.01", "0.05") for of in ("", ".worst", ".worst.upper")}
GOOD = {**SCORES, **HONEST}


@pytest.fixture
def root(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(migrated / "mlruns", tmp_path / "mlruns")
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    (tmp_path / "reports" / "tables" / "pair_accuracy.csv").write_text(PAIRS)
    (tmp_path / "reports" / "tables" / "accuracy_by_platform.csv").write_text(BY_PLATFORM)
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
    md5s = {"data/zoo": "z", "data/signatures": "s", "data/signatures/a": "a", "src/hspi": "c"}
    train()
    run = tracking.log_training("models/detector", {"params": {"models": ["one"]}}, {}, md5s, platforms=["a/x", "a/y"])
    version = tracking.registry.register(run, GOOD, "0123456789abcdef")["version"]
    with tracking.store.open_store(root) as client:
        found = client.get_run(run["run_id"])
        files = [f.path for f in client.list_artifacts(run["run_id"])]
        note = client.get_model_version(tracking.registry.MODEL, str(version)).description
        notes = [e.tags.get("mlflow.note.content", "") for e in client.search_experiments() if e.name == "hspi"]
    assert found.info.run_name.startswith("detector 2: data.a unversioned, data.platforms 2, models ['one']")
    assert "trees.depth gone" in found.data.tags["mlflow.note.content"], "the whole difference"
    assert found.data.tags["mlflow.user"] == getpass.getuser()
    assert {t for t in found.data.tags if t.startswith("dvc.")} == {"dvc.md5.data/zoo", "dvc.md5.data/signatures"}
    assert "dvc_md5s.json" in files
    assert "32 probes × top-20: 0.9, to reach ≥ 0.999" in note and "0123456789ab" in note and "champion" in notes[0]


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


def test_opening_the_store_leaves_mlflow_and_the_environment_as_they_were(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow hands its URIs to child processes by the environment; ours must not reach them."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with tracking.store.open_store(root):
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == tracking.store.store_uri(root)
        assert not {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"} & set(os.environ)
    assert mlflow.get_tracking_uri() != tracking.store.store_uri(root) and not (root / "mlflow.db").exists()


def test_a_store_that_the_environment_names_is_the_one(
    root: Path, train: Train, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLFLOW_TRACKING_URI was ignored once: the local store was written, with exit code 0."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(root / "mlruns/mlflow.db", elsewhere / "mlflow.db")
    before = (root / "mlruns/mlflow.db").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
    monkeypatch.setenv("HSPI_CACHE", str(elsewhere / "cache"))
    run = train('{"there": 1}')
    assert tracking.registry.register(run, GOOD, "set")["champion"] == 1
    assert (tracking.registry.champion_path(root) / "facts.json").read_text() == '{"there": 1}'
    assert (root / "mlruns/mlflow.db").read_bytes() == before
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(DataError, match="must hold hspi-detector@champion"):
        tracking.registry.champion_path(root)


def test_the_registry_may_be_another(root: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(root / "mlruns/mlflow.db", root / "registry.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{root}/registry.db")
    tracking.registry.register(train(), GOOD, "set")
    versions = {}
    for name in ("registry.db", "mlruns/mlflow.db"):
        with sqlite3.connect(root / name) as db:
            versions[name] = db.execute("SELECT count(*) FROM model_versions").fetchone()[0]
    assert versions == {"registry.db": 1, "mlruns/mlflow.db": 0}


def test_the_own_store_by_its_own_name_stays_relative(
    root: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    train()
    assert tracking.store.is_local(root) and all(path.startswith("mlruns/artifacts") for path in locations(root))


def test_a_server_that_does_not_answer_is_one_line_without_its_password(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(ConfigError, match="must name a store that answers, but http://127") as error:
        tracking.champion(root)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - started < 30, "MLflow itself tries for minutes"


def test_looking_for_a_champion_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold hspi-detector@champion"):
        tracking.champion(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_is_one_accuracy_for_each_platform_and_few_headlines(root: Path, train: Train) -> None:
    """A metric for each pair would bury the page: those are a table, like intervals, chance and tokens."""
    run = train()
    more = {"replay.probes.macro_accuracy.ci_low": 0.8, "replay.probes.mcc": 0.7}
    assert tracking.log_evaluation(run["run_id"], {**GOOD, **more}, "reports/tables")
    with tracking.store.open_store(root) as client:
        metrics = client.get_run(run["run_id"]).data.metrics
        tables = {f.path for f in client.list_artifacts(run["run_id"], "tables")}
        written = json.loads(Path(client.download_artifacts(run["run_id"], "metrics.json")).read_text())
    first = "claim.false_alarm.0.01.worst"
    assert metrics == {
        "loss": 0.5,
        "_headline/32x20 accuracy": 0.9,
        "_headline/1x20 accuracy": 0.8,
        "_headline/true claims lost": 0.0,
        **{f"detail/{name}": value for name, value in HONEST.items() if name != first},
        "detail/replay.probes.mcc": 0.7,
        "accuracy/amd-zen3/torch-bf16": 0.99,
        "accuracy/amd-zen3/ort-fp32": 1.0,
        "accuracy/intel-icelake/torch-fp32 _2_": 1.0,  # MLflow refuses parentheses
    }
    assert written == {**GOOD, **more}, "every figure is in the run"
    row = {"hardware": "h", "software": "s", "accuracy": 1.0}
    groups = [name.partition("/")[0] for name in tracking.evaluation.metrics_of({**more, **GOOD}, [row])]
    assert groups == sorted(groups) and groups[0] == "_headline", "as they are logged and as MLflow sorts them"
    assert tables == {"tables/pair_accuracy.csv", "tables/accuracy_by_platform.csv"}


def table(root: Path, run: dict[str, str], name: str) -> list[dict[str, Any]]:
    with tracking.store.open_store(root) as client:
        assert name in client.get_run(run["run_id"]).data.tags["mlflow.loggedArtifacts"], "MLflow shows it as a table"
        found = json.loads(Path(client.download_artifacts(run["run_id"], name)).read_text())
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def test_platforms_and_pairs_are_tables_and_another_evaluation_takes_their_place(root: Path, train: Train) -> None:
    run = train()
    for metrics in (GOOD, {**GOOD, "claim.power.kernel": 0.0}):
        assert tracking.log_evaluation(run["run_id"], metrics, "reports/tables")
    first, *rest = table(root, run, "accuracy_by_platform.json")
    assert (first["ci_low"], first["tokens"], first["held_out"]) == (0.97, 32, "probes, batch class") and len(rest) == 2
    pairs = [(row["platform_a"], row["platform_b"], row["accuracy"]) for row in table(root, run, "pairs.json")]
    assert pairs == [(BF16, FP32, 0.5), (BF16, ORT, 0.9)]
    matrix = {row["platform"]: row for row in table(root, run, "pair_matrix.json")}
    assert list(matrix) == [ORT, BF16, FP32] and matrix[FP32][BF16] == "0.5000" and matrix[FP32][ORT] == ""


def test_a_table_of_platforms_without_figures_is_one_clear_line(root: Path, train: Train) -> None:
    path = root / "reports/tables/accuracy_by_platform.csv"
    path.write_text("hardware,software,accuracy\na,b,good\n")
    with pytest.raises(DataError, match="must hold hardware, software and accuracy"):
        tracking.log_evaluation(train()["run_id"], GOOD, "reports/tables")


def dvc_dataset(root: Path, hardware: str, md5: str) -> None:
    path = root / "data/signatures" / f"{hardware}.dvc"
    path.parent.mkdir(parents=True, exist_ok=True)
    out = f"- {{md5: {md5}.dir, size: 900, nfiles: 12, hash: md5, path: {hardware}}}"
    path.write_text(f"desc: of a test\nmeta: {{kind: cpu}}\nouts:\n{out}\n")


def test_every_dataset_is_an_input_by_its_hardware(root: Path, train: Train) -> None:
    md5s = {"amd-zen3": "a" * 32, "intel-icelake": "b" * 32, "never-used": "c" * 32}
    for hardware, md5 in md5s.items():
        dvc_dataset(root, hardware, md5)
    run = train(platforms=[BF16, ORT, FP32, "new-cpu/torch-fp32"])
    tracking.log_evaluation(run["run_id"], GOOD, "reports/tables", evaluation_set="e" * 64)
    with tracking.store.open_store(root) as client:
        inputs = client.get_run(run["run_id"]).inputs.dataset_inputs
    found = {i.dataset.name: (i.dataset.digest, json.loads(i.dataset.source)["uri"], i.tags[0].value) for i in inputs}
    assert found == {
        "amd-zen3": ("a" * 32 + ".dir", "data/signatures/amd-zen3.dvc", "training"),
        "intel-icelake": ("b" * 32 + ".dir", "data/signatures/intel-icelake.dvc", "training"),
        "new-cpu": ("unversioned", "data/signatures/new-cpu", "training"),
        "evaluation set": ("e" * 36, "dvc.lock", "evaluation"),
    }
    profiles = {i.dataset.name: json.loads(i.dataset.profile) for i in inputs}
    assert profiles["amd-zen3"] == {"files": 12, "bytes": 900, "desc": "of a test", "meta": {"kind": "cpu"}}
    assert profiles["evaluation set"] == {name: f"{md5s[name]}.dir" for name in ("amd-zen3", "intel-icelake")}


def test_a_run_names_its_commit_its_lock_and_where_it_comes_from(root: Path, train: Train) -> None:
    def git(*words: str) -> str:
        own = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        return subprocess.run(["git", *own, *words], check=True, capture_output=True, text=True).stdout.strip()

    (root / "dvc.lock").write_text(LOCK)
    (root / "code.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", "code.py", "dvc.lock")
    git("commit", "-qm", "first")
    (root / "dvc.lock").write_text(LOCK.replace("c1", "c2"))
    tags = []
    for text in ("a = 1\n", "a = 2\n"):
        (root / "code.py").write_text(text)
        run = train()
        with tracking.store.open_store(root) as client:
            tags.append(client.get_run(run["run_id"]).data.tags)
    assert {t["mlflow.source.git.commit"] for t in tags} == {git("rev-parse", "HEAD")}
    assert [t["hspi.git.dirty"] for t in tags] == ["false", "true"], "dvc.lock is no difference: its hash is a tag"
    assert {t["dvc.lock"] for t in tags} == {hashlib.sha256((root / "dvc.lock").read_bytes()).hexdigest()}
    assert tags[0]["mlflow.source.name"] == "hspi train" and "dvc.lock.train" not in tags[0]
    (root / "dvc.lock").write_text(LOCK + "  train: {outs: [{path: models/detector, md5: d}]}\n")
    tracking.log_evaluation(run["run_id"], GOOD, "reports/tables")
    with tracking.store.open_store(root) as client:
        known = client.get_run(run["run_id"]).data.tags
    assert known["dvc.lock"] == tags[1]["dvc.lock"] and len(known["dvc.lock.train"]) == 64


def test_a_training_is_watched_while_it_runs(root: Path) -> None:
    detector = root / "models" / "detector"
    detector.mkdir(parents=True)
    (detector / "facts.json").write_text("{}")
    before = Path.cwd()
    with tracking.training_run({"params": {"models": ["one"]}}, [BF16], {}, sampling=0.05) as run_id:
        assert Path.cwd() == before, "what trains reads and writes relative paths"
        time.sleep(0.5)
        run = tracking.log_detector(run_id, "models/detector", {"loss": 0.5})
    assert json.loads((root / "models/run.json").read_text()) == run and run["run_id"] == run_id
    with tracking.store.open_store(root) as client:
        found = client.get_run(run_id)
        samples = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert found.info.status == "FINISHED" and len(samples) > 2
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert all(path.startswith("mlruns/artifacts") for path in locations(root))


def test_a_training_that_fails_is_a_failed_run(root: Path) -> None:
    with pytest.raises(ValueError, match="no trees"), tracking.training_run({}, sampling=0.05) as run_id:
        raise ValueError("no trees")
    with tracking.store.open_store(root) as client:
        assert client.get_run(run_id).info.status == "FAILED"


def test_logging_an_evaluation_again_changes_nothing(root: Path, train: Train) -> None:
    run = train()
    assert tracking.log_evaluation(run["run_id"], GOOD, "reports/tables")
    assert not tracking.log_evaluation(run["run_id"], GOOD, "reports/tables")
    with tracking.store.open_store(root) as client:
        assert len(client.get_metric_history(run["run_id"], "_headline/32x20 accuracy")) == 1


def better(by: float = 0.0, one: float = 0.0) -> dict[str, float]:
    return {**HONEST, **dict(zip(SCORES, (0.9 + by, 0.8 + one), strict=True))}


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


DISHONEST = {**better(0.05), "claim.false_alarm.0.01": 0.0191}


def version(root: Path, number: int) -> Any:
    with tracking.store.open_store(root) as client:
        return client.get_model_version(tracking.registry.MODEL, str(number))


@pytest.mark.parametrize(
    ("miss", "said"),
    [
        ({"claim.false_alarm.0.01": 0.0191}, "at α = 0.01, mean: 0.0191, to reach ≤ 0.01"),
        ({"claim.false_alarm.0.05.worst": 0.06}, "at α = 0.05, worst class: 0.06, to reach ≤ 0.05"),
        ({"claim.false_alarm.0.01.worst.upper": 0.012}, "worst class, upper bound: 0.012, to reach ≤ 0.01"),
        ({"claim.contradicted.held_out_class": 0.001}, "its batch class held out: 0.001, to reach 0"),
        ({"claim.false_alarm.0.01": float("nan")}, "at α = 0.01, mean: nan"),
        ({"claim.false_alarm.0.01": None}, "at α = 0.01, mean: not measured"),
    ],
    ids=["mean", "worst class", "upper bound", "class held out", "no number", "not measured"],
)
def test_a_missed_honesty_target_is_never_champion_and_the_registry_says_why(
    root: Path, train: Train, miss: dict[str, float | None], said: str
) -> None:
    metrics = {name: value for name, value in {**better(0.05), **miss}.items() if value is not None}
    found = tracking.registry.register(train(), metrics, "set")
    assert found["champion"] is None and not found["promoted"] and said in found["reason"]
    assert len(found["honesty"]) == 1 and said in found["honesty"][0]
    registered = version(root, 1)
    assert said in registered.tags["hspi.honesty"] and said in registered.tags["hspi.promotion"]
    assert registered.description.startswith("Not promoted: an honesty target is missed") and not registered.aliases
    with pytest.raises(ConfigError, match="must have a champion, but version 1 missed: True claim"):
        tracking.champion(root)


def test_a_better_but_dishonest_challenger_leaves_the_champion(root: Path, train: Train) -> None:
    tracking.registry.register(train("{}"), GOOD, "set")
    found = tracking.registry.register(train("[]"), DISHONEST, "set")
    assert (found["champion"], found["version"], found["promoted"]) == (1, 2, False)
    assert version(root, 1).description.startswith("Promoted: there was no champion.")


def test_a_champion_that_turns_out_dishonest_is_none_and_an_honest_one_becomes_it(root: Path, train: Train) -> None:
    run = train("{}")
    assert tracking.registry.register(run, GOOD, "set")["champion"] == 1
    assert tracking.registry.register(run, DISHONEST, "other set")["champion"] is None
    assert tracking.registry.register(train("[]"), better(-0.1), "other set")["champion"] == 2
    with tracking.store.open_store(root) as client:  # as an earlier version, which did not look, would have left it
        client.set_registered_model_alias(tracking.registry.MODEL, "champion", "1")
    won = tracking.registry.register(train("[0]"), better(-0.2), "other set")
    assert won["champion"] == 3 and "misses an honesty target" in won["reason"]


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
