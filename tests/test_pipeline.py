"""The files that hold the pipeline together, and (slow) the whole of it on small parameters."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import Tree, free_port, script
from hspi import quiet, tracking
from hspi.cli import main
from hspi.platforms import catalogue, machine

ROOT = Path(__file__).parent.parent
SHIPPED = ("src/", "docs/")  # what git holds
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


# ---------------------------------------------------------------- dvc.yaml


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_calls_one_verb_that_the_command_line_knows(stage: str) -> None:
    program, verb, *options = shlex.split(STAGES[stage]["cmd"])
    assert program == "hspi"
    command = main.commands[verb]
    known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    assert {o for o in options if o.startswith("--")} <= known


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_reads_parameters_and_sources_that_exist(stage: str) -> None:
    for name in STAGES[stage].get("params", []):
        found = PARAMS
        for part in name.split("."):
            found = found[part]
    for path in STAGES[stage].get("deps", []):
        assert not path.startswith(SHIPPED) or (ROOT / path).exists(), f"{stage} depends on {path}"


def test_what_a_stage_reads_some_stage_or_file_makes() -> None:
    outs = [next(iter(o)) if isinstance(o, dict) else o for s in STAGES for o in outputs(s)]
    for stage in STAGES:
        for path in STAGES[stage].get("deps", []):
            made = any(path.startswith(o) or o.startswith(f"{path}/") for o in outs)
            versioned = (ROOT / f"{path}.dvc").exists() or any((ROOT / path).glob("*.dvc"))
            assert made or path.startswith(SHIPPED) or versioned, f"nobody makes {path}"


def outputs(stage: str) -> list[Any]:
    return [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]


def test_git_ignores_whatever_a_stage_makes() -> None:
    """Else DVC would edit .gitignore files at the first run, and a fresh clone would be dirty."""
    paths = [next(iter(o)) if isinstance(o, dict) else o for s in STAGES for o in outputs(s)]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(ignored.stdout.split()) == sorted(paths)


# ---------------------------------------------------------------- Makefile, constraints, quiet


def make_plan(*words: str) -> str:
    plan = subprocess.run(["make", "-n", "-B", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return plan.stdout


def test_demo_installs_pinned_versions_then_runs_the_pipeline_then_the_verdict() -> None:
    plan = make_plan("demo")
    steps = ["-m venv", "-c constraints.txt", "dvc pull", "scripts/demo.py", "dvc repro", "hspi demo", "hspi whoami"]
    found = [plan.find(step) for step in steps]
    assert -1 not in found and found == sorted(found)


def test_mlflow_serves_at_the_port_that_is_asked_for_and_says_where_to_look() -> None:
    for words, port in (["mlflow"], "5000"), (["mlflow", "PORT=5050"], "5050"):
        plan = make_plan(*words)
        assert f"--port {port} " in plan and f"HSPI_MLFLOW_PAGES=http://127.0.0.1:{port} " in plan


def test_what_ships_is_pulled_whole() -> None:
    (pull, *_) = [line for line in make_plan("data").splitlines() if "dvc pull" in line]
    shipped = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "data").rglob("*.dvc"))
    assert len(shipped) > 1 and set(shipped) <= set(pull.split())


def test_ci_runs_everything_that_is_promised() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"make ([\w-]+)", script) == ["test", "lint", "slow", "demo-smoke"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_makefile_and_package_ask_for_the_same_quiet() -> None:
    exported = dict(re.findall(r"^export (\w+) [:?]= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name: exported.get(name) for name in quiet.SETTINGS} == quiet.SETTINGS
    assert exported["PREFECT_HOME"].endswith("/.prefect")


def test_quiet_settings_are_defaults_only() -> None:
    environment = {"PREFECT_LOGGING_LEVEL": "DEBUG"}
    quiet.be_quiet(environment)
    assert environment["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert environment["OMP_WAIT_POLICY"] == "passive"


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_constraints_satisfy_every_requirement_that_they_meet() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name == "hspi" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        pinned = pins().get(canonicalize_name(requirement.name))
        assert pinned, f"{requirement.name} is not pinned: run  make constraints"
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def test_torch_is_pinned_to_the_release_that_the_makefile_names() -> None:
    (named,) = re.findall(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pins()["torch"] == named


def test_constraints_hold_no_build_that_only_one_index_knows() -> None:
    assert not [f"{name}=={version}" for name, version in pins().items() if "+" in version]
    assert not [name for name in pins() if name.startswith("nvidia-") or name == "xgboost"]


# ---------------------------------------------------------------- the whole, small


def test_smoke_parameters_are_valid_and_small() -> None:
    from hspi import params

    small = script("smoke").reduce(PARAMS)
    built = params._build(params.Params, small, "params.yaml")
    assert 3 <= len(built.demo.collect) <= 4 and len(built.models) == 2
    assert set(built.demo.collect) <= set(PARAMS["demo"]["collect"]) and set(small) == set(PARAMS)
    assert built.use == built.demo.use, "so that the demo finds nothing to change in the copy"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_stage_runs_from_the_shipped_state_and_then_none_does(smoke: Tree) -> None:
    assert json.loads((smoke.path / "reports/registry.json").read_text())["champion"] == 1
    again = smoke.run("dvc", "repro")
    assert "Running stage" not in again and "up to date" in again
    status = smoke.run("git", "status", "--short", "-uall").splitlines()
    assert {line[3:] for line in status} <= {"dvc.lock", *smoke.datasets()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_metrics_and_plots_are_shown(smoke: Tree) -> None:
    assert "replay.probes.macro_accuracy" in smoke.run("dvc", "metrics", "show")
    smoke.run("dvc", "plots", "show")
    assert "reliability" in (smoke.path / "dvc_plots" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_another_platform_extends_this_machines_dataset_and_is_collected_alone(smoke: Tree) -> None:
    here = machine.hardware_here(catalogue.get("torch-bf16-eager")).id
    shutil.rmtree(smoke.path / "data/signatures" / here / "torch-bf16-eager", ignore_errors=True)  # it may ship
    before = {path: path.stat().st_mtime_ns for path in (smoke.path / "data/signatures").rglob("*.parquet")}
    words = ["--platform", "torch-fp32", "--platform", "torch-bf16-eager", "--progress", "none"]
    smoke.run("hspi", "collect", *words)
    after = {path: path.stat().st_mtime_ns for path in (smoke.path / "data/signatures").rglob("*.parquet")}
    new = {path.parents[1].name for path in after.keys() - before.keys()}
    assert new == {"torch-bf16-eager"} and before.items() <= after.items()
    dry = smoke.run("dvc", "repro", "--dry")
    for path in after.keys() - before.keys():
        path.unlink()
    assert re.findall(r"Running stage '(.*)'", dry)[0] == "featurize"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fresh_clone_pulls_what_ships_without_network_and_then_nothing_is_missing(clone: Tree) -> None:
    pull = ["dvc", "pull", "data/zoo.dvc", *clone.datasets()]
    clone.run(*pull)
    assert "Everything is up to date" in clone.run(*pull)
    rows = json.loads(clone.run("hspi", "signatures", "list", "--json"))
    assert rows and {row["state"] for row in rows} == {"pulled"}
    assert sum(row["size"] for row in rows) < 120e6
    assert clone.run("git", "status", "--short") == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (ROOT / "dvc.lock").exists(), reason="needs the state that ships, dvc.lock")
def test_a_fresh_clone_is_up_to_date_with_the_state_that_ships(clone: Tree) -> None:
    """`dvc pull` asks for all that dvc.lock names but what is only made again here; that may be missing."""
    clone.run("dvc", "pull")
    shown = clone.run("dvc", "repro", "--allow-missing")
    assert "Running stage" not in shown and "up to date" in shown
    assert "replay.probes.macro_accuracy" in clone.run("dvc", "metrics", "show")
    assert clone.run("git", "status", "--short") == ""


@pytest.fixture
def clone(tmp_path: Path) -> Tree:
    """What anyone gets who has no network but for the clone itself."""
    tree = Tree(tmp_path / "clone")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree.path)], check=True)
    tree.environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return tree


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_experiment_in_a_temporary_copy_logs_to_this_store(smoke: Tree) -> None:
    smoke.run("git", "add", "-A")
    smoke.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "lock")
    shown = smoke.run("dvc", "exp", "run", "--temp", "-S", "evaluation.seed=2")
    assert "Ran experiment" in shown
    with tracking.store.open_store(smoke.path) as client:
        assert len(client.search_model_versions(f"name = '{tracking.registry.MODEL}'")) == 2


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_run_in_mlflow_holds_what_the_files_hold(smoke: Tree) -> None:
    run_id = json.loads((smoke.path / "models/run.json").read_text())["run_id"]
    with tracking.store.open_store(smoke.path) as client:
        data = client.get_run(run_id).data
    tables = tracking.evaluation.platform_rows(smoke.path / "reports/tables")
    written = tracking.evaluation.metrics_of(json.loads((smoke.path / "reports/metrics.json").read_text()), tables)
    assert {name: data.metrics.get(name) for name in written} == pytest.approx(written)
    assert any(tag.startswith("dvc.md5.data/") for tag in data.tags)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_moved_checkout_serves_its_champion(smoke: Tree, tmp_path: Path) -> None:
    """Over HTTP, from the registry, as anyone would; the answer is the detector's own."""
    from hspi.tracking.served_model import answered, example

    moved = Tree(tmp_path / "moved")
    shutil.copytree(smoke.path / "mlruns", moved.path / "mlruns")
    shutil.copytree(smoke.path / "src", moved.path / "src")
    detector = tracking.champion(moved.path)
    question = example(detector, next(iter(detector.libraries)))
    moved.environment["MLFLOW_TRACKING_URI"] = "sqlite:///mlruns/mlflow.db"
    port = str(free_port())
    command = ["mlflow", "models", "serve", "-m", "models:/hspi-detector@champion", "--env-manager", "local"]
    with moved.serving(*command, "--port", port, ready=f"http://127.0.0.1:{port}/ping"):
        body = json.dumps({"dataframe_split": question.to_dict(orient="split", index=False)}).encode()
        request = Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        (answer,) = json.load(urlopen(request))["predictions"]
    assert answer == answered(detector, question).to_dict(orient="records")[0]
