"""Flows against real DVC repositories; (slow) a deployment on a real server and worker."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Tree

sys.path.insert(0, str(ROOT / "flows"))

import steps

STAGES = """
stages:
  good: {cmd: echo 1 > good.txt, outs: [good.txt]}
  bad: {cmd: exit 3, outs: [bad.txt]}
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    return tmp_path


def test_a_target_is_brought_up_to_date(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps.repro.fn("good")
    assert (repository / "good.txt").read_text() == "1\n"
    assert "Running stage" in capsys.readouterr().out


def test_a_stage_that_fails_is_no_io_and_says_which(repository: Path) -> None:
    with pytest.raises(steps.StageFailed, match="dvc repro bad"):
        steps.repro.fn("bad")


def test_a_lock_that_another_process_holds_is_worth_another_try(repository: Path) -> None:
    import zc.lockfile

    lock = zc.lockfile.LockFile(str(repository / ".dvc" / "tmp" / "lock"))
    try:
        with pytest.raises(steps.TransientFailure, match="Unable to acquire lock"):
            steps.repro.fn("good")
    finally:
        lock.close()


def test_stages_side_by_side_all_finish(repository: Path) -> None:
    """Four processes of DVC at once: whoever meets another's lock reports I/O, and the next try succeeds."""
    stages = "\n".join(f"  s{i}: {{cmd: sleep 0.2; echo {i} > s{i}.txt, outs: [s{i}.txt]}}" for i in range(4))
    (repository / "dvc.yaml").write_text(f"stages:\n{stages}\n")

    def until_done(target: str) -> None:
        for _ in range(10):
            try:
                return steps.repro.fn(target)
            except steps.TransientFailure:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(until_done, [f"s{i}" for i in range(4)]))
    assert set(yaml.safe_load((repository / "dvc.lock").read_text())["stages"]) == {"s0", "s1", "s2", "s3"}


def test_only_io_is_retried_and_nothing_is_cached() -> None:
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Failed

    for task in (steps.repro, steps.pull, steps.track):
        assert task.retries > 0 and task.cache_policy == NO_CACHE
        condition = task.retry_condition_fn
        assert condition(task, None, Failed(data=steps.TransientFailure("lock")))
        assert not condition(task, None, Failed(data=steps.StageFailed("bad")))
    assert steps.collect_apart.cache_policy == NO_CACHE


def test_a_dataset_is_versioned_and_a_lock_is_worth_another_try(repository: Path) -> None:
    import zc.lockfile

    (repository / "data/signatures/amd-zen3").mkdir(parents=True)
    with pytest.raises(steps.StageFailed, match="must hold a folder of amd-zen4"):
        steps.track.fn("amd-zen4")
    lock = zc.lockfile.LockFile(str(repository / ".dvc" / "tmp" / "lock"))
    try:
        with pytest.raises(steps.TransientFailure, match="Unable to acquire lock"):
            steps.track.fn("amd-zen3")
    finally:
        lock.close()


def test_collecting_runs_apart_and_versions_the_dataset_of_each_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow itself, its tasks replaced: what cannot run here is left out, and one dataset is versioned once."""
    import collect as module
    from hspi.platforms import catalogue, machine

    lacking = next(p.id for p in catalogue.CATALOGUE.values() if not machine.availability(p).runnable)
    done: list[tuple[str, str]] = []

    class Stand:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, *given: str) -> None:
            done.append((self.name, *given))  # type: ignore[arg-type]

        def map(self, given: list[str]) -> Stand:
            done.extend((self.name, one) for one in given)
            return self

        def result(self) -> None: ...

    for name in ("pull", "collect_apart", "track"):
        monkeypatch.setattr(module, name, Stand(name))
    assert module.collect.fn(["torch-fp32", lacking, "torch-bf16"]) == ["torch-fp32", "torch-bf16"]
    here = machine.hardware_here(catalogue.get("torch-fp32")).id
    collected = [("collect_apart", "torch-fp32"), ("collect_apart", "torch-bf16")]
    assert done == [("pull", "data/zoo.dvc"), *collected, ("track", here)]


def test_without_names_the_flow_collects_what_the_demo_does() -> None:
    wanted = yaml.safe_load((ROOT / "params.yaml").read_text())["demo"]["collect"]
    assert steps.demo_of_params(str(ROOT / "params.yaml")) == wanted


def test_each_deployment_names_a_flow_that_is_there() -> None:
    from prefect import Flow
    from prefect.flows import load_flow_from_entrypoint

    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        path, name = deployment["entrypoint"].split(":")
        flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
        assert isinstance(flow, Flow) and flow.name == name  # a flow may have a deployment for each kind of hardware
        assert deployment["name"].startswith(name)


def test_collecting_is_deployed_to_a_pool_for_each_kind_of_hardware() -> None:
    from hspi.platforms.catalogue import CATALOGUE

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    collecting = [d for d in deployments if d["entrypoint"] == "flows/collect.py:collect"]
    assert len({d["work_pool"]["name"] for d in collecting}) == len(collecting) == 2
    devices = {CATALOGUE[p].device for d in collecting for p in d.get("parameters", {}).get("platforms", [])}
    assert devices == {"cuda"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_deployment_runs_on_a_real_server_and_worker(smoke: Tree, orchestrator: str) -> None:
    """One platform's signatures are gone; the deployed pipeline collects it, and all that follows, again."""
    platform = yaml.safe_load((smoke.path / "params.yaml").read_text())["demo"]["collect"][0]
    (folder,) = own_dataset(smoke).glob(platform)
    shutil.rmtree(folder)
    smoke.run("dvc", "add", str(own_dataset(smoke).relative_to(smoke.path)))
    smoke.run("prefect", "--no-prompt", "deploy", "--all")
    with smoke.serving("prefect", "worker", "start", "--pool", "hspi-cpu", ready=f"{orchestrator}/health"):
        shown = smoke.run("prefect", "deployment", "run", "pipeline/pipeline", "--watch")
    artifacts = smoke.run("prefect", "artifact", "ls", "-o", "json")
    assert "prefect.flow-run.Completed" in shown
    assert {a["key"] for a in json.loads(artifacts)} >= {"pair-matrix", "metrics", "mlflow-run"}
    assert list(folder.rglob("*.parquet"))
    assert "up to date" in smoke.run("dvc", "status")


def own_dataset(smoke: Tree) -> Path:
    """The folder of this machine's signatures."""
    from hspi.platforms import catalogue, machine

    return smoke.path / "data" / "signatures" / machine.hardware_here(catalogue.get("torch-fp32")).id
