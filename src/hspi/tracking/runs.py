"""What all runs share: how one is made and filled. And the trials of a study."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hspi.files import version
from hspi.tracking.lineage import code_tags
from hspi.tracking.store import experiment_id, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # metrics that MLflow takes in one call


class Trial(Protocol):
    """What a trial of a study must show; Optuna's FrozenTrial does."""

    number: int
    params: dict[str, Any]
    state: Any
    intermediate_values: dict[int, float]

    @property
    def value(self) -> float | None: ...


def log_trials(trials: Iterable[Trial], study: str, *, root: str | Path = ".") -> int:
    """Trials as runs nested below the study's own run. Those logged before are left alone. Returns how many are new."""
    with open_store(root) as client:
        experiment = experiment_id(client)
        of_study = f"tags.`hspi.study` = '{study}'"
        parents = client.search_runs([experiment], f"{of_study} AND tags.`hspi.stage` = 'tune'")
        tags = {"hspi.study": study, "mlflow.runName": f"tune {study}", **code_tags(root)}
        parent = parents[0].info.run_id if parents else new_run(client, "tune", tags)
        known = client.search_runs([experiment], f"{of_study} AND tags.`hspi.stage` = 'trial'", max_results=50_000)
        logged = {run.data.tags["hspi.trial"] for run in known}
        new = [t for t in trials if t.state.is_finished() and str(t.number) not in logged]
        for trial in new:
            _log_trial(client, trial, parent, study)
        if new or not parents:
            client.set_terminated(parent)
    return len(new)


def _log_trial(client: MlflowClient, trial: Trial, parent: str, study: str) -> None:
    tags = {"mlflow.parentRunId": parent, "hspi.study": study, "hspi.trial": str(trial.number)}
    tags["mlflow.runName"] = f"trial {trial.number}" + ("" if trial.value is None else f": {trial.value:.5g}")
    run_id = new_run(client, "trial", {**tags, "hspi.state": trial.state.name})
    metrics = {} if trial.value is None else {"value": trial.value}
    log_batches(client, run_id, metrics=metrics, params=flat(trial.params))
    for step, value in trial.intermediate_values.items():
        client.log_metric(run_id, "intermediate", value, step=step)
    client.set_terminated(run_id, "FAILED" if trial.state.name == "FAIL" else "FINISHED")


def new_run(
    client: MlflowClient,
    stage: str,
    tags: Mapping[str, str],
    *,
    experiment: str | None = None,
    started: int | None = None,
) -> str:
    """The id of a new run, named as its stage unless `tags` name it. started: milliseconds since 1970, or now."""
    own = {"hspi.stage": stage, "hspi.version": version("hspi"), "mlflow.user": _user()}
    own |= {"mlflow.source.name": f"hspi {stage}", "mlflow.source.type": "LOCAL"}
    own |= {"mlflow.runName": stage, **tags}
    return str(client.create_run(experiment or experiment_id(client), started, own).info.run_id)


def _user() -> str:
    """Who runs this; empty where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def log_batches(
    client: MlflowClient, run_id: str, *, metrics: Mapping[str, float | None], params: Mapping[str, Any] | None = None
) -> None:
    """Metrics and parameters in batches that MLflow takes; a metric that is None is left out."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    rows = [Metric(name, float(value), now, 0) for name, value in metrics.items() if value is not None]
    for start in range(0, len(rows), _BATCH):
        client.log_batch(run_id, metrics=rows[start : start + _BATCH])
    settings = [Param(name, str(value)) for name, value in (params or {}).items()]
    for start in range(0, len(settings), 100):
        client.log_batch(run_id, params=settings[start : start + 100])


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    out: dict[str, Any] = {}
    for name, value in nested.items():
        out.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return out
