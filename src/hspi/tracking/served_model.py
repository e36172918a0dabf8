"""The detector as MLflow loads and serves it: this code and the detector's own files, never a pickle. A table in, a
table out.

MLflow runs a copy of this file, so nothing is late here, and there is no `from __future__ import annotations`: it reads
the types of `predict` themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from hspi.detectors.detector import Detector
from hspi.evidence.observation import Observation


def answered(detector: Detector, frame: pd.DataFrame) -> pd.DataFrame:
    """One verdict for each `sample`.

    Columns in: sample, model, probe_set, probe_id, topk_ids, topk_logprobs (lists). Columns out: sample,
    platform_class ("unknown" where nothing fits), probability, members, number_format.
    """
    rows = []
    for sample, part in frame.groupby("sample", sort=True):
        seen = Observation(
            str(part["model"].iloc[0]),
            [(str(s), int(i)) for s, i in zip(part["probe_set"], part["probe_id"], strict=True)],
            np.stack([np.asarray(v, np.int32) for v in part["topk_ids"]]),
            np.stack([np.asarray(v, np.float32) for v in part["topk_logprobs"]]),
        )
        verdict, formats = detector.judge(seen), detector.formats(seen)
        rows.append(
            {
                "sample": sample,
                "platform_class": verdict.answer,
                "probability": verdict.posterior[verdict.answer],
                "members": " ".join(verdict.members),
                "number_format": max(formats, key=lambda f: formats[f]),
            }
        )
    return pd.DataFrame(rows)


def example(detector: Detector, model: str) -> pd.DataFrame:
    """A real observation of 8 probes × top-20 out of a library, as `answered` wants it."""
    data = detector.library(model).data
    rows = []
    for i in range(8):
        order = np.argsort(data.rank[0, 0, i], kind="stable")[:20]
        name, number = data.probes[i]
        values = data.logprobs[0, 0, i][order].astype(float).tolist()
        asked = {"sample": 0, "model": model, "probe_set": name, "probe_id": number}
        rows.append({**asked, "topk_ids": data.slots[i][order].tolist(), "topk_logprobs": values})
    return pd.DataFrame(rows)


class Served(PythonModel):
    def load_context(self, context: Any) -> None:
        self.detector = Detector.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return answered(self.detector, model_input)


set_model(Served())
