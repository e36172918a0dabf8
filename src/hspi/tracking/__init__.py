"""Runs, metrics and the registry: the one room that imports MLflow (late, because it costs a second)."""

from hspi.tracking.registry import CHAMPION, MODEL, champion, champion_path, known_run, publish, register
from hspi.tracking.runs import log_audit, log_evaluation, log_training, log_trials
from hspi.tracking.store import open_store, store_root, store_uri

__all__ = [
    "CHAMPION",
    "MODEL",
    "champion",
    "champion_path",
    "known_run",
    "log_audit",
    "log_evaluation",
    "log_training",
    "log_trials",
    "open_store",
    "publish",
    "register",
    "store_root",
    "store_uri",
]
