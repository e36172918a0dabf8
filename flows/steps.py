"""What every flow is made of: DVC targets as tasks, and artefacts for people.

Flows stand outermost. They say what runs where and when, and retry I/O; what is up to date, DVC decides, so no task
has a cache of its own.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hspi.errors import DataError, HspiError
from hspi.evaluation.pairs import pair_matrix
from hspi.quiet import be_quiet
from hspi.signatures.side_by_side import at_once
from hspi.signatures.side_by_side import collect_apart as collect_in_a_process
from hspi.signatures.store import track as version_dataset
from hspi.tracking.pages import run_link

be_quiet()  # before Prefect reads its settings

from prefect import flow, task  # noqa: E402
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner  # noqa: E402

__all__ = [
    "collect_apart",
    "demo_of_params",
    "failed_with",
    "flow",
    "options_of",
    "publish_artifacts",
    "pull",
    "repro",
    "side_by_side",
    "track",
]

_TRANSIENT = (
    "Unable to acquire lock",
    "is busy, it is being blocked by",
    "failed to pull",
    "failed to connect",
    "timed out",
)


class TransientFailure(OSError):
    """A lock that another DVC process holds, or a remote that did not answer: worth another try."""


class StageFailed(HspiError):
    """A stage ended with an error of its own; trying again would fail again."""


def failed_with(kind: type[Exception]) -> Callable[[Any, Any, Any], bool]:
    """A task's retry condition: it ended with such an error."""

    def holds(task: Any, run: Any, state: Any) -> bool:
        try:
            state.result()
        except kind:
            return True
        except Exception:
            return False
        return False

    return holds


def _dvc(*arguments: str) -> None:
    """Run DVC beside this interpreter, its output shown as it comes. Raises TransientFailure or StageFailed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    last = ""
    with subprocess.Popen(
        command, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in io.TextIOWrapper(process.stdout, errors="replace", newline=""):  # keeps a bar's carriage returns
            print(line, end="", flush=True)
            last = line.strip() if line.startswith("ERROR") else last
    if process.returncode:
        kind = TransientFailure if any(sign in last for sign in _TRANSIENT) else StageFailed
        raise kind(f"`dvc {' '.join(arguments)}` must succeed, but: {last or process.returncode}")


_io: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 20,
    "retry_delay_seconds": 3,
    "retry_condition_fn": failed_with(OSError),
}


@task(task_run_name="dvc pull {target}", **_io)
def pull(target: str) -> None:
    """Fetch what DVC versions from its remote."""
    _dvc("pull", "--quiet", target)


@task(task_run_name="dvc repro {target}", **_io)
def repro(target: str) -> None:
    """Bring a DVC stage up to date, and every stage before it."""
    _dvc("repro", target)


@task(task_run_name="hspi collect {platform}", cache_policy=NO_CACHE)
def collect_apart(platform: str) -> None:
    """Signatures of one platform of this machine, by a process of its own; it goes on where another one stopped."""
    collect_in_a_process(platform)


@task(task_run_name="dvc add {hardware}", **_io)
def track(hardware: str) -> None:
    """Version this machine's dataset."""
    try:
        version_dataset(hardware)
    except DataError as error:
        kind = TransientFailure if any(sign in str(error) for sign in _TRANSIENT) else StageFailed
        raise kind(str(error)) from error


def side_by_side() -> TaskRunner[PrefectFuture[Any]]:
    """A runner for tasks that wait for single-threaded child processes: as many at once as the cores carry."""
    runner: Any = ThreadPoolTaskRunner(max_workers=at_once())
    return runner


def options_of(verb: str, *own: str) -> dict[str, Any]:
    """The words of this process, taken as those of `hspi VERB`, as parameters of the flow of that name: `options` holds
    what the flow has no parameter for. own: further parameters that the flow has.
    """
    from hspi.cli import main

    found = main.commands[verb].make_context(verb, sys.argv[1:]).params
    named = {"base_url", "model", "weights", "claim", "claim_format", "alpha", *own}
    found["model"], found["params"] = found.pop("served"), found.pop("params_file")
    found["out"] = found.get("root", found.get("out"))
    given = {name: str(v) if isinstance(v, Path) else v for name, v in found.items() if v is not None}
    more = {name: v for name, v in given.items() if name not in named and name in REQUEST}
    return {**{name: v for name, v in given.items() if name in named}, "options": more}


REQUEST = ("max_tokens", "max_cost", "price", "concurrency", "order", "candidates", "detector", "params")


def demo_of_params(path: str = "params.yaml") -> list[str]:
    """The platforms that params.yaml's demo collects."""
    from hspi import params

    return params.load(path).demo.collect


def publish_artifacts(reports: str | Path = "reports", run_file: str | Path = "models/run.json") -> None:
    """The matrix of pairs as a table, the headline metrics as a page, and links to MLflow and the registry."""
    reports = Path(reports)
    create_table_artifact(
        key="pair-matrix",
        table=pair_matrix(reports / "tables" / "pair_accuracy.csv"),
        description="Accuracy of telling each pair of platforms apart, probes and nuisance held out; chance is 0.5",
    )
    metrics = json.loads((reports / "metrics.json").read_text("utf-8"))
    lines = [f"| {name} | {value} |" for name, value in sorted(metrics.items())]
    page = "\n".join(["| metric | value |", "|---|---|", *lines])
    create_markdown_artifact(
        key="metrics", markdown=page, description="Every figure of the evaluation, held out as it is named"
    )
    run = json.loads(Path(run_file).read_text("utf-8"))
    create_link_artifact(key="mlflow-run", link=run_link(run), description="The run in MLflow (`make mlflow` opens it)")
