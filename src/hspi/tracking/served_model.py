"""What MLflow runs when it loads or serves the detector: this code and the bundle's files, never a pickle.

MLflow runs a copy of this file and nothing imports it, so that nothing is late here. No `from __future__ import
annotations`: MLflow reads the types of `predict` themselves.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from hspi.bundle import Bundle


class Served(PythonModel):
    def load_context(self, context: Any) -> None:
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return self.bundle.predict(model_input)


set_model(Served())
