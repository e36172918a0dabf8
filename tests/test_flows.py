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
                return steps.repro.fn(target, alone=True)
            except steps.TransientFailure:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(until_done, [f"s{i}" for i in range(4)]))
    assert set(yaml.safe_load((repository / "dvc.lock").read_text())["stages"]) == {"s0", "s1", "s2", "s3"}


def test_only_io_is_retried_and_nothing_is_cached() -> None:
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Failed

    for task in (steps.repro, steps.pull):
        assert task.retries > 0 and task.cache_policy == NO_CACHE
        condition = task.retry_condition_fn
        assert condition(task, None, Failed(data=steps.TransientFailure("lock")))
        assert not condition(task, None, Failed(data=steps.StageFailed("bad")))


def test_each_deployment_names_a_flow_that_is_there() -> None:
    from prefect import Flow
    from prefect.flows import load_flow_from_entrypoint

    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        path, name = deployment["entrypoint"].split(":")
        flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
        assert isinstance(flow, Flow) and flow.name == deployment["name"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_deployment_runs_on_a_real_server_and_worker(smoke: Tree, orchestrator: str) -> None:
    """One platform's signatures are gone; the deployed pipeline collects it, and all that follows, again."""
    platform = yaml.safe_load((smoke.path / "params.yaml").read_text())["platforms"][0]
    shutil.rmtree(smoke.path / "data" / "signatures" / platform)
    smoke.run("prefect", "--no-prompt", "deploy", "--all")
    with smoke.serving("prefect", "worker", "start", "--pool", "hspi-cpu", ready=f"{orchestrator}/health"):
        shown = smoke.run("prefect", "deployment", "run", "pipeline/pipeline", "--watch")
    artifacts = smoke.run("prefect", "artifact", "ls", "-o", "json")
    assert "prefect.flow-run.Completed" in shown
    assert {a["key"] for a in json.loads(artifacts)} >= {"pair-matrix", "metrics", "mlflow-run"}
    assert list((smoke.path / "data" / "signatures" / platform).rglob("*.parquet"))
    assert "up to date" in smoke.run("dvc", "status")
