"""MLflow's store: what MLFLOW_TRACKING_URI names (and MLFLOW_REGISTRY_URI, for the registry), or else `mlruns/` at the
root of the checkout.

The latter is made on demand and migrated before anyone opens it, because several processes that open an empty database
crash. Every path in it is relative to the root, so that a checkout may be moved or copied; calls change to the root
while they work, for the same reason.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, closing, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hspi.errors import ConfigError, DataError
from hspi.quiet import be_quiet, complaint
from hspi.tracking.pages import OF_TRAININGS

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT, AUDITS = "hspi", "hspi-audits"
ABOUT = {  # what people read in the list of experiments
    EXPERIMENT: "Detectors: searches, trainings and their evaluation. The best is hspi-detector@champion.",
    AUDITS: "Endpoints held against their claims, by `hspi audit`, and again and again by `hspi monitor`.",
}
_STORE = Path("mlruns")
_TRACKING, _REGISTRY, _SQLITE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "sqlite:///"
_LOCATIONS = (  # every column of MLflow's database that holds a path
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def about(experiment: str) -> dict[str, str]:
    """The tags that an experiment of this name has: what it holds, and of which kind its pages are."""
    return OF_TRAININGS | ({"mlflow.note.content": ABOUT[experiment]} if experiment in ABOUT else {})


def store_root(root: str | Path = ".") -> Path:
    """The checkout whose `mlruns/` is meant: `dvc exp run --temp` works in a copy that is thrown away."""
    path = Path(root).resolve()
    for parent in path.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return path


def store_uri(root: str | Path = ".") -> str:
    """MLflow's tracking and registry URI of the store below `root`."""
    return f"{_SQLITE}{store_root(root) / _STORE / 'mlflow.db'}"


def is_local(root: str | Path = ".") -> bool:
    """Whether the store below `root` is meant: no other is named, or that one by its own name."""
    named = os.environ.get(_TRACKING, "")
    own = store_uri(root).removeprefix(_SQLITE)
    return not named or (named.startswith(_SQLITE) and str(Path(named.removeprefix(_SQLITE)).resolve()) == own)


def tracking_uri(root: str | Path = ".") -> str:
    return store_uri(root) if is_local(root) else os.environ[_TRACKING]


def store_exists(root: str | Path = ".") -> bool:
    """False where looking would make an empty one below `root`."""
    return not is_local(root) or (store_root(root) / _STORE / "mlflow.db").exists()


def shown(uri: str) -> str:
    """A URI as it may be printed: without user and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def open_store(root: str | Path = ".") -> Iterator[MlflowClient]:
    """A client of the store. One below `root` is made if it is not there, and `root` is the working directory then.

    Raises ConfigError if the store that MLFLOW_TRACKING_URI names does not answer, DataError for what MLflow refuses.
    """
    be_quiet()
    base, local, tracking = store_root(root), is_local(root), tracking_uri(root)
    if local:
        _make_store(base)
    else:
        _answering(tracking)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        with _meant(tracking, os.environ.get(_REGISTRY, "") or tracking), chdir(base) if local else nullcontext():
            yield MlflowClient()
    except MlflowException as error:
        raise DataError(f"MLflow at {shown(tracking)} must do as asked, but: {_first_line(error)}") from error
    finally:
        if local:
            _make_relative(base)


def own_is_open() -> bool:
    """Whether the store that is open is the one below its root, where the working directory is then."""
    import mlflow

    return mlflow.get_tracking_uri() == store_uri()


@contextmanager
def _meant(tracking: str, registry: str) -> Iterator[None]:
    """MLflow's URIs in this process. It would hand them to children by the environment, which stays the user's."""
    import mlflow

    before = {name: os.environ.get(name) for name in (_TRACKING, _REGISTRY)}

    def name(tracking: str | None, registry: str | None) -> None:
        mlflow.set_tracking_uri(tracking)  # type: ignore[arg-type]
        mlflow.set_registry_uri(registry)  # type: ignore[arg-type]
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value

    name(tracking, registry)
    try:
        yield
    finally:
        name(None, None)


@cache
def _answering(uri: str) -> None:
    """Ask once, with one retry in place of MLflow's seven, which take minutes. Raises ConfigError."""
    from mlflow import MlflowClient

    try:
        with patience({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}):
            MlflowClient(uri, uri).search_experiments(max_results=1)
    except Exception as error:  # each kind of store raises its library's own
        raise ConfigError(
            f"{_TRACKING} must name a store that answers, but {shown(uri)}: {_first_line(error)}"
        ) from error


@contextmanager
def patience(settings: Mapping[str, str]) -> Iterator[None]:
    """MLflow's settings for a while, as far as the user's environment leaves them open."""
    own = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _first_line(error: Exception) -> str:
    return shown((str(error).strip().splitlines() or [repr(error)])[0])[:300]


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """The id of an experiment, which is made if it is not there. Pages know it as one of trainings."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if not found:
        try:
            where = str(_STORE / "artifacts") if own_is_open() else None  # another has a place of its own for files
            return str(client.create_experiment(name, where, about(name)))
        except MlflowException:  # another process made it meanwhile
            found = client.get_experiment_by_name(name)
            if not found:
                raise
    for tag, value in about(name).items():
        if tag not in found.tags:
            client.set_experiment_tag(found.experiment_id, tag, value)
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

        tags = [ExperimentTag(*tag) for tag in about(EXPERIMENT).items()]
        store.create_experiment(EXPERIMENT, str(root / _STORE / "artifacts"), tags)
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
