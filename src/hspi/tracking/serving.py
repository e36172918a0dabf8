"""How MLflow answers with a bundle. Only `served_model.py` imports this, inside MLflow, so nothing is late here.

No `from __future__ import annotations`: MLflow reads the types of `predict` themselves.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Predictor(Protocol):
    def predict(self, frame: pd.DataFrame) -> pd.DataFrame: ...


def serve_with(load: Callable[[Path], Predictor]) -> None:
    """Tell MLflow to load the model's `bundle` artefact with `load` and to answer with its `predict`."""

    class Served(PythonModel):
        def load_context(self, context: Any) -> None:
            self.bundle = load(Path(context.artifacts["bundle"]))

        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
            return self.bundle.predict(model_input)

    set_model(Served())
