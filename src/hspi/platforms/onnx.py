"""ONNX Runtime, on its CPU execution provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.platforms.batches import BatchAdapter, Logits
from hspi.platforms.convert import converted
from hspi.platforms.record import Platform

QUANTIZED = {"none": "onnx", "int8": "onnx-int8", "int4": "onnx-int4"}


class OnnxAdapter(BatchAdapter):
    """The model exported to ONNX. `platform.options`: `optimize` (bool: its graph optimizer)."""

    def __init__(self, platform: Platform, model_path: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not platform.options.get("optimize", True):
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        file = converted(QUANTIZED[platform.quantization.partition("-")[0]], model_path) / "model.onnx"
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])

    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        (logits,) = self._session.run(None, {"ids": ids})
        return np.asarray(logits, dtype=np.float32)[:, -keep:]

    def facts(self) -> dict[str, str]:
        return {"device": "cpu", "provider": self._session.get_providers()[0]}
