"""MLflow's store: `mlruns/` at the root of the checkout.

It is made on demand and migrated before anyone opens it, because several processes that open an empty database crash.
Every path in it is relative to the root, so that a checkout may be moved or copied; calls change to the root while
they work, for the same reason.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hspi.errors import DataError
from hspi.quiet import be_quiet, complaint

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT, AUDITS = "hspi", "hspi-audits"
ABOUT = {  # what people read in the list of experiments
    EXPERIMENT: "Detectors: searches, trainings and their evaluation. The best is hspi-detector@champion.",
    AUDITS: "Endpoints held against their claims, by `hspi audit`, and again and again by `hspi monitor`.",
}
_STORE = Path("mlruns")
_URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_LOCATIONS = (  # every column of MLflow's database that holds a path
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def store_root(root: str | Path = ".") -> Path:
    """The checkout whose `mlruns/` is meant: `dvc exp run --temp` works in a copy that is thrown away."""
    path = Path(root).resolve()
    for parent in path.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return path


def store_uri(root: str | Path = ".") -> str:
    """MLflow's tracking and registry URI of the store below `root`."""
    return f"sqlite:///{store_root(root) / _STORE / 'mlflow.db'}"


@contextmanager
def open_store(root: str | Path = ".") -> Iterator[MlflowClient]:
    """A client of the store, which is made if it is not there. The working directory is its root meanwhile."""
    be_quiet()
    base = store_root(root)
    _make_store(base)
    import mlflow

    before = {name: os.environ.get(name) for name in _URIS}
    mlflow.set_tracking_uri(store_uri(base))
    mlflow.set_registry_uri(store_uri(base))
    try:
        with chdir(base):
            yield mlflow.MlflowClient()
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():  # MLflow sets them for child processes and leaves them behind
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _make_relative(base)


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """The id of an experiment, which is made if it is not there; the store is made with ours."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    tags = {"mlflow.note.content": ABOUT[name]} if name in ABOUT else None
    try:
        return client.create_experiment(name, str(_STORE / "artifacts"), tags)
    except MlflowException:  # another process made it meanwhile
        found = client.get_experiment_by_name(name)
        if not found:
            raise
        return str(found.experiment_id)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    from filelock import FileLock

    (root / _STORE).mkdir(parents=True, exist_ok=True)
    with FileLock(root / _STORE / ".lock", timeout=300):
        yield


def _make_store(root: Path) -> None:
    database = root / _STORE / "mlflow.db"
    if database.exists():
        return
    with locked(root):
        if database.exists():
            return
        fresh = database.with_name("mlflow.db.tmp")
        fresh.unlink(missing_ok=True)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{fresh}"]
        if why := complaint(command):
            raise DataError(f"MLflow must be able to make {database}, but: {why}")
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{fresh}", str(root / _STORE / "artifacts"))
        from mlflow.entities import ExperimentTag

        note = ExperimentTag("mlflow.note.content", ABOUT[EXPERIMENT])
        store.create_experiment(EXPERIMENT, str(root / _STORE / "artifacts"), [note])
        store.engine.dispose()
        _make_relative(root, fresh)
        fresh.replace(database)


def _make_relative(root: Path, database: Path | None = None) -> None:
    """Cut whatever stands before `mlruns/` in the paths of the database: MLflow makes them absolute."""
    with closing(sqlite3.connect(database or root / _STORE / "mlflow.db", timeout=60)) as db, db:
        for table, column in _LOCATIONS:
            db.execute(
                f"UPDATE {table} SET {column} = substr({column}, instr({column}, '/mlruns/artifacts') + 1) "
                f"WHERE {column} LIKE '%/mlruns/artifacts%'"
            )
