"""OpenVINO, on its CPU plugin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.errors import PlatformError
from hspi.platforms.batches import BatchAdapter, Logits
from hspi.platforms.convert import converted
from hspi.platforms.record import Platform

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoAdapter(BatchAdapter):
    """The ONNX export in OpenVINO. The precision is always asked for: the plugin prefers bf16 where the CPU has it.

    Raises PlatformError when the plugin quietly chose another precision.
    """

    def __init__(self, platform: Platform, model_path: Path, threads: int = 1) -> None:
        import openvino

        precision = PRECISIONS[platform.dtype]
        core = openvino.Core()
        model = core.read_model(converted("onnx", model_path) / "model.onnx")
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            self._model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise PlatformError(f"OpenVINO must compile for {precision}, but: {_last_line(error)}") from error
        chosen = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if chosen != precision:
            raise PlatformError(f"OpenVINO must compute in {precision} on this CPU, but chose {chosen}")
        self._device = self._model.get_property("EXECUTION_DEVICES")[0]
        self._name = core.get_property("CPU", "FULL_DEVICE_NAME")
        self.vocab_size = self._model.outputs[0].partial_shape[-1].get_length()

    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        logits = self._model([ids])[0]
        return np.asarray(logits, dtype=np.float32)[:, -keep:]

    def facts(self) -> dict[str, str]:
        return {"device": self._device, "device_name": self._name}


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1]
