"""CTranslate2, on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.errors import PlatformError
from hspi.platforms.batches import BatchAdapter, Logits
from hspi.platforms.convert import converted
from hspi.platforms.record import Platform

COMPUTE_TYPES = {"fp32": "float32", "int8": "int8_float32", "bf16": "bfloat16", "fp16": "float16"}


class CTranslate2Adapter(BatchAdapter):
    """The model in CTranslate2. Raises PlatformError when the CPU backend refuses the compute type."""

    def __init__(self, platform: Platform, model_path: Path, threads: int = 1) -> None:
        import ctranslate2

        asked = COMPUTE_TYPES[platform.number_format]
        self._ct2 = ctranslate2
        folder = str(converted("ctranslate2", model_path))
        try:
            self._generator = ctranslate2.Generator(folder, compute_type=asked, inter_threads=1, intra_threads=threads)
        except ValueError as error:
            raise PlatformError(f"CTranslate2 must compute in {asked}, but: {error}") from error
        if self._generator.compute_type != asked:
            raise PlatformError(f"CTranslate2 must compute in {asked}, but chose {self._generator.compute_type}")
        self.vocab_size = self._forward(np.zeros((1, 1), dtype=np.int64)).shape[-1]

    def _forward(self, ids: npt.NDArray[np.int64]) -> Logits:
        batch = self._ct2.StorageView.from_array(ids.astype(np.int32))
        lengths = self._ct2.StorageView.from_array(np.full(len(ids), ids.shape[1], dtype=np.int32))
        return np.array(self._generator.forward_batch(batch, lengths), dtype=np.float32)

    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        return self._forward(ids)[:, -keep:]

    def facts(self) -> dict[str, str]:
        return {"device": self._generator.device, "compute_type": self._generator.compute_type}
