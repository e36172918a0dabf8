"""A training as a run: open while a detector is fitted, with the machine's load meanwhile, and the detector as its
model in the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hspi.files import version, write_json
from hspi.quiet import be_quiet
from hspi.tracking.lineage import code_tags, dataset_inputs, dvc_md5s, lock_tags
from hspi.tracking.notes import Facts, detector_name, differences, made_of
from hspi.tracking.runs import log_batches, new_run
from hspi.tracking.store import experiment_id, open_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLING = 2.0  # seconds between two looks at the machine; a training of the demo takes half a minute
_REQUIREMENTS = ("numpy", "pandas", "pyarrow", "safetensors", "scikit-learn", "xgboost-cpu")
_SERVED = Path(__file__).with_name("served_model.py")
_PACKAGE = Path(__file__).parents[1]
NUMBER, DIFFERS = "hspi.number", "hspi.differs"  # tags: of detectors in the order of their training
RESTORED = "hspi.restored_from"  # tag of a run that was made again from a detector alone


@contextmanager
def training_run(
    params: Mapping[str, Any],
    platforms: Sequence[str] = (),
    data_md5s: Mapping[str, str] | None = None,
    *,
    root: str | Path = ".",
    tags: Mapping[str, str] | None = None,
    sampling: float | None = SAMPLING,
) -> Iterator[str]:
    """A run that is open while the block fits a detector; yields its id. It ends as FAILED if the block raises.

    `params` may be nested. `platforms` are the full ids that train: the dataset of each of their machines is an input
    of the run. `data_md5s` defaults to `dvc_md5s(root)`: dvc_md5s.json holds them all, tags those of whole datasets.
    sampling: seconds between two records of the machine's load (`system/…`), or None to go without.
    The working directory stays the caller's meanwhile.
    """
    run_id = _opened(params, platforms, dvc_md5s(root) if data_md5s is None else data_md5s, root, tags or {})
    ended = "FAILED"
    try:
        with _watched(run_id, root, sampling):
            yield run_id
        ended = "FINISHED"
    finally:
        with open_store(root) as client:
            client.set_terminated(run_id, ended)


def log_detector(
    run_id: str,
    detector_dir: str | Path,
    metrics: Mapping[str, float],
    example_of: str | None = None,
    *,
    run_file: str | Path | None = "models/run.json",
    root: str | Path = ".",
) -> dict[str, str]:
    """The detector as the model of an open run. Returns, and writes to `run_file`, run_id, experiment_id, model_id and
    model_uri.

    The model is code (`served_model.py`, and this package as it is now) beside the detector's own files, so that an
    environment with its requirements alone serves it; with the signature that an example of the library of
    `example_of` and the detector's answer to it give.
    """
    detector_dir = Path(detector_dir).resolve()
    run_file = Path(run_file).resolve() if run_file else None
    with open_store(root) as client:
        log_batches(client, run_id, metrics=metrics)
        experiment = client.get_run(run_id).info.experiment_id
        run = {"run_id": run_id, "experiment_id": experiment, **_log_model(run_id, detector_dir, example_of)}
    if run_file:
        write_json(run_file, run)
    return run


def log_training(
    detector_dir: str | Path,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    data_md5s: Mapping[str, str] | None = None,
    example_of: str | None = None,
    *,
    platforms: Sequence[str] = (),
    run_file: str | Path | None = "models/run.json",
    root: str | Path = ".",
    tags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """A run for a detector that was fitted before: `training_run` and `log_detector` in one, without system metrics."""
    with training_run(params, platforms, data_md5s, root=root, tags=tags, sampling=None) as run_id:
        return log_detector(run_id, detector_dir, metrics, example_of, run_file=run_file, root=root)


def _opened(
    params: Mapping[str, Any],
    platforms: Sequence[str],
    md5s: Mapping[str, str],
    root: str | Path,
    tags: Mapping[str, str],
) -> str:
    root = Path(root).resolve()  # an open store changes to its own
    code, inputs = code_tags(root), dataset_inputs(platforms, root)
    facts = made_of(params, platforms, {i.dataset.name: i.dataset.digest for i in inputs}, code)
    of_data = {f"dvc.md5.{p}": m for p, m in md5s.items() if _is_dataset(p)}
    with open_store(root) as client:
        named = {} if RESTORED in tags else _named(client, facts)
        run_id = new_run(client, "train", {**named, **of_data, **code, **lock_tags(root), **tags})
        client.log_dict(run_id, dict(md5s), "dvc_md5s.json")
        client.log_inputs(run_id, datasets=inputs)
        log_batches(client, run_id, metrics={}, params=facts)
    return run_id


def _named(client: MlflowClient, facts: Facts) -> dict[str, str]:
    """Tags: number and name of a detector beside the one that was trained before it, and all that differs."""
    trained = f"tags.`hspi.stage` = 'train' AND tags.`{NUMBER}` != ''"
    found = client.search_runs([experiment_id(client)], trained, max_results=1, order_by=["attributes.start_time DESC"])
    before = found[0].data if found else None
    number = int(before.tags[NUMBER]) + 1 if before else 1
    differ = "; ".join(differences(facts, before.params)) if before else ""
    note = f"Not evaluated yet. Differs from the detector before: {differ or 'in nothing'}." if before else ""
    named = {NUMBER: str(number), "mlflow.runName": detector_name(number, facts, before.params if before else None)}
    return named | {DIFFERS: differ, "mlflow.note.content": note or "Not evaluated yet."}


@contextmanager
def _watched(run_id: str, root: str | Path, sampling: float | None) -> Iterator[None]:
    """Load of processor, memory, disk and network as metrics of the run, by a thread of MLflow's."""
    if sampling is None:
        yield
        return
    be_quiet()
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling, tracking_uri=tracking_uri(root))
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _is_dataset(path: str) -> bool:
    """data/zoo, not data/signatures/amd-zen3: those are inputs of the run."""
    return path.startswith("data/") and path.count("/") == 1


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
            code_paths=[str(_PACKAGE)],
            artifacts={"bundle": str(folder)},
            signature=signature,
            input_example=asked,
            pip_requirements=_requirements(),
        )
    return {"model_id": info.model_id, "model_uri": info.model_uri}


def _requirements() -> list[str]:
    """What a detector needs, at the versions that are here. This package is in the model."""
    return [f"{name}=={found}" for name in _REQUIREMENTS if (found := version(name))]
