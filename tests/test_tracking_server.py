"""A team's MLflow server in place of the local store; and a model that is served where nothing of this project is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import Tree, free_port
from hspi import tracking
from hspi.history import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SIGNATURE = "data/signatures/amd-zen3/torch-bf16/llama/text.b1.parquet"


@pytest.fixture
def team(smoke: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """A copy of the small tree without a store of its own, whose tools know a server on loopback."""
    tree = Tree(tmp_path / "tree")
    shutil.copytree(smoke.path, tree.path, symlinks=True, ignore=shutil.ignore_patterns("mlruns", ".git", ".cache"))
    url = f"http://127.0.0.1:{free_port()}"
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        f"{tmp_path}/files",
    ]
    tree.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with tree.serving(*command, ready=f"{url}/health"):
        tree.environment["MLFLOW_TRACKING_URI"] = url
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield tree


def test_search_training_registry_and_champion_go_to_the_server_that_is_named(team: Tree) -> None:
    for verb in ("tune", "train", "register"):
        team.run("hspi", verb)
    registered = json.loads((team.path / "reports/registry.json").read_text())
    run = json.loads((team.path / "models/run.json").read_text())
    assert registered["champion"] == 1 and registered["run_id"] == run["run_id"]
    with tracking.store.open_store(team.path) as client:
        stages = [r.data.tags["hspi.stage"] for r in client.search_runs([run["experiment_id"]])]
        found, version = client.get_run(run["run_id"]), client.get_model_version_by_alias("hspi-detector", "champion")
        files = {f.path for f in client.list_artifacts(run["run_id"])}
    assert {s: stages.count(s) for s in set(stages)} == {"tune": 2, "trial": 4, "train": 1}
    assert version.run_id == run["run_id"] and version.tags["hspi.honesty"] == "met"
    assert {"metrics.json", "pair_matrix.json", "tables"} <= files
    assert found.data.metrics["system/cpu_utilization_percentage"] >= 0, "watched while it trained"
    assert found.data.metrics["_headline/32x20 accuracy"] == registered["metrics"]["replay.probes.macro_accuracy"]
    assert "amd-zen3/torch-bf16" in team.run("hspi", "verdict", SIGNATURE)
    kept = list((team.path / ".cache/hspi/detectors").glob("*"))
    assert len(kept) == 1, "the champion was fetched from the server, and is kept"
    assert {f.name for f in (team.path / "mlruns").glob("*")} <= {".lock"}


def test_a_history_of_audits_is_on_the_server_too(team: Tree) -> None:
    entries = [Entry(f"2026-01-0{day}T00:00:00+00:00", f"f{day}", "identified", "a/b", ("a/b",)) for day in (1, 2)]
    for entry in reversed(entries):
        tracking.log_check("key", {"endpoint": "e"}, entry, None, root=team.path)
    assert tracking.read_history("key", root=team.path) == entries
    (row,) = json.loads(team.run("hspi", "history", "--json"))
    assert (row["endpoint"], row["audits"], row["state"]) == ("e", 2, "a/b")
    assert {f.name for f in (team.path / "mlruns").glob("*")} <= {".lock"}


# ---------------------------------------------------------------- the model alone


def needed(requirements: Path) -> set[str]:
    """Distributions that pip would install for the file, at the versions that are here."""
    found: set[str] = set()
    todo = [(Requirement(line), "") for line in requirements.read_text().split()]
    while todo:
        wanted, extra = todo.pop()
        if (wanted.marker and not wanted.marker.evaluate({"extra": extra})) or f"{wanted.name}[{extra}]" in found:
            continue
        distribution = metadata.distribution(wanted.name)
        assert wanted.specifier.contains(distribution.version, prereleases=True), wanted
        for of_extra in ("", *wanted.extras):
            mark = f"{distribution.name.lower()}[{of_extra}]"
            if mark not in found:
                found.add(mark)
                todo += [(Requirement(text), of_extra) for text in distribution.requires or ()]
    return {name.partition("[")[0] for name in found}


def clean_environment(folder: Path, requirements: Path) -> Path:
    """A Python whose packages are those that the requirements bring, and no other: links to the files that are
    installed here, in place of half a gigabyte from an index. Returns the interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in needed(requirements):
        files = metadata.distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


ASK = """
import json, sys
import mlflow
from mlflow.models import Model
loaded = mlflow.pyfunc.load_model(sys.argv[1])
question = Model.load(sys.argv[1]).load_input_example(sys.argv[1])
answer = loaded.predict(question).to_dict(orient="records")
import hspi
print(json.dumps({"answer": answer, "code": hspi.__file__}))
"""


def test_the_champion_answers_in_an_environment_of_its_requirements_alone(smoke: Tree, tmp_path: Path) -> None:
    from hspi.tracking.served_model import answered, example

    detector = tracking.champion(smoke.path)
    path = tracking.registry.champion_path(smoke.path)
    model = next(p for p in path.parents if (p / "MLmodel").exists())
    python = clean_environment(tmp_path / "venv", model / "requirements.txt")
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [str(python), "-I", "-c", ASK, str(shutil.copytree(model, tmp_path / "model"))]
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["code"]).is_relative_to(tmp_path / "model" / "code"), "the code that came with the model"
    expected = answered(detector, example(detector, next(iter(detector.libraries)))).to_dict(orient="records")
    assert found["answer"] == expected
    missing = subprocess.run([str(python), "-I", "-c", "import torch"], capture_output=True, check=False)
    assert missing.returncode, "what is not required is not there"
