"""Runs, metrics and the registry: the one room that imports MLflow (late, because it costs a second)."""

from hspi.tracking.audits import attach, histories, log_audit, log_check, read_history
from hspi.tracking.registry import CHAMPION, MODEL, champion, champion_path, known_run, publish, register
from hspi.tracking.runs import log_evaluation, log_training, log_trials
from hspi.tracking.store import open_store, store_root, store_uri

__all__ = [
    "CHAMPION",
    "MODEL",
    "attach",
    "champion",
    "champion_path",
    "histories",
    "known_run",
    "log_audit",
    "log_check",
    "log_evaluation",
    "log_training",
    "log_trials",
    "open_store",
    "publish",
    "read_history",
    "register",
    "store_root",
    "store_uri",
]
