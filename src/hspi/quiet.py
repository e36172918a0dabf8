"""Other people's tools: settings that keep them quiet, offline and on their own cores, and what they complain of.

The settings are defaults alone: whatever the user's environment says stands. Call `be_quiet` before torch, MLflow, DVC
or Prefect is imported. The Makefile exports the same names.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow takes "true" and ignores "1"
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # with it, a first start prints "database is locked" tracebacks
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # the default, 20 s, is short on two busy cores
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's: small products by many threads take 20 times as long where cores are shared
    "OMP_WAIT_POLICY": "passive",  # threads that spin make XGBoost many times slower when the cores are shared
}

NOISY = ("torchao", "torch.utils._pytree")  # on import they speak of GPU parts that a CPU build lacks


def be_quiet(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the environment leaves open. Prefect's files go to .prefect in the working directory."""
    for name, value in {**SETTINGS, "PREFECT_HOME": str(Path.cwd() / ".prefect")}.items():
        environment.setdefault(name, value)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def complaint(command: Sequence[str], **options: Any) -> str:
    """Run a command, with `options` of subprocess.run; the last line on its stderr, or nothing where it succeeded."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return (done.stderr.strip().splitlines() or ["it said nothing"])[-1] if done.returncode else ""
