"""Runs: a training with its model, an evaluation with a metric for each pair of platforms, the trials of a study."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hspi.evaluation.pairs import pair_metrics
from hspi.files import version, write_json
from hspi.tracking.lineage import dvc_md5s
from hspi.tracking.store import experiment_id, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REQUIREMENTS = ("numpy", "pandas", "pyarrow", "safetensors", "scikit-learn", "xgboost-cpu")
_BATCH = 1000  # metrics that MLflow takes in one call
_SERVED = Path(__file__).with_name("served_model.py")


class Trial(Protocol):
    """What a trial of a study must show; Optuna's FrozenTrial does."""

    number: int
    params: dict[str, Any]
    state: Any
    intermediate_values: dict[int, float]

    @property
    def value(self) -> float | None: ...


def log_training(
    detector_dir: str | Path,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    data_md5s: Mapping[str, str] | None = None,
    example_of: str | None = None,
    *,
    run_file: str | Path | None = "models/run.json",
    root: str | Path = ".",
    tags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A run with the detector as its model. Returns, and writes to `run_file`, run_id, experiment_id, model_id
    and model_uri.

    `params` may be nested; `data_md5s` defaults to `dvc_md5s(root)`: dvc_md5s.json holds them all, tags those of whole
    datasets. The model is code (`served_model.py`) beside the detector's own files, with the signature that
    an example of the library of `example_of` and the detector's answer to it give.
    """
    detector_dir = Path(detector_dir).resolve()
    run_file = Path(run_file).resolve() if run_file else None
    md5s = dvc_md5s(root) if data_md5s is None else data_md5s
    with open_store(root) as client:
        of_data = {f"dvc.md5.{p}": m for p, m in md5s.items() if _is_dataset(p)}
        run_id = new_run(client, "train", {"mlflow.runName": _detector_name(params), **of_data, **(tags or {})})
        client.log_dict(run_id, dict(md5s), "dvc_md5s.json")
        log_batches(client, run_id, metrics=metrics, params=_flat(params))
        run = {
            "run_id": run_id,
            "experiment_id": experiment_id(client),
            **_log_model(run_id, detector_dir, example_of),
        }
        client.set_terminated(run_id)
    if run_file:
        write_json(run_file, run)
    return run


def _is_dataset(path: str) -> bool:
    """data/zoo, not data/signatures/torch-bf16: a hundred tags would hide what a run is about."""
    return path.startswith("data/") and path.count("/") == 1


def _detector_name(params: Mapping[str, Any]) -> str:
    wanted = params.get("params", {})
    sizes = [f"{len(wanted[name])} {name}" for name in ("platforms", "models") if wanted.get(name)]
    return ", ".join(["detector", *sizes])


def _log_model(run_id: str, folder: Path, example_of: str | None) -> dict[str, str]:
    import mlflow

    from hspi.detectors.detector import Detector
    from hspi.tracking.served_model import answered, example

    signature = asked = None
    if example_of is not None:
        detector = Detector.load(folder)
        asked = example(detector, example_of)
        with warnings.catch_warnings():  # our integers are never missing
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer", UserWarning)
            signature = mlflow.models.infer_signature(asked, answered(detector, asked))
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="detector",
            python_model=str(_SERVED),
            artifacts={"bundle": str(folder)},
            signature=signature,
            input_example=asked,
            pip_requirements=_requirements(),
        )
    return {"model_id": info.model_id, "model_uri": info.model_uri}


def log_evaluation(
    run_id: str,
    metrics: Mapping[str, float],
    tables_dir: str | Path,
    figures_dir: str | Path | None = None,
    *,
    root: str | Path = ".",
) -> bool:
    """Metrics, those of every pair of platforms, tables and figures into a run. False if they are there already."""
    tables, figures = Path(tables_dir).resolve(), Path(figures_dir).resolve() if figures_dir else None
    everything = {**metrics, **pair_metrics(tables / "pair_accuracy.csv")}
    mark = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    with open_store(root) as client:
        if client.get_run(run_id).data.tags.get("hspi.evaluation") == mark:
            return False
        log_batches(client, run_id, metrics=everything)
        client.log_artifacts(run_id, str(tables), "tables")
        if figures and figures.is_dir():
            client.log_artifacts(run_id, str(figures), "figures")
        client.set_tag(run_id, "hspi.evaluation", mark)
    return True


def log_trials(trials: Iterable[Trial], study: str, *, root: str | Path = ".") -> int:
    """Trials as runs nested below the study's own run. Those logged before are left alone. Returns how many are new."""
    with open_store(root) as client:
        experiment = experiment_id(client)
        of_study = f"tags.`hspi.study` = '{study}'"
        parents = client.search_runs([experiment], f"{of_study} AND tags.`hspi.stage` = 'tune'")
        tags = {"hspi.study": study, "mlflow.runName": f"tune {study}"}
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
    log_batches(client, run_id, metrics=metrics, params=_flat(trial.params))
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
    own = {"hspi.stage": stage, "hspi.version": version("hspi"), "mlflow.user": os.environ.get("USER", "")}
    own |= {"mlflow.runName": stage, **tags}
    return str(client.create_run(experiment or experiment_id(client), started, own).info.run_id)


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


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in nested.items():
        out.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return out


def _requirements() -> list[str]:
    """What a detector needs, at the versions that are here. hspi itself is installed from its repository."""
    return [f"{name}=={found}" for name in _REQUIREMENTS if (found := version(name))]
