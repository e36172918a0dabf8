"""Runs, metrics and the registry: the one room that imports MLflow (late, because it costs a second)."""

from hspi.tracking.audits import attach, histories, log_audit, log_check, read_history
from hspi.tracking.evaluation import log_evaluation
from hspi.tracking.registry import champion, publish
from hspi.tracking.runs import log_trials
from hspi.tracking.training import log_detector, log_training, training_run

__all__ = [
    "attach",
    "champion",
    "histories",
    "log_audit",
    "log_check",
    "log_detector",
    "log_evaluation",
    "log_training",
    "log_trials",
    "publish",
    "read_history",
    "training_run",
]
