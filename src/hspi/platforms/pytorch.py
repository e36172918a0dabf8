"""transformers on PyTorch, on a CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.platforms.batches import BatchAdapter, Logits
from hspi.platforms.record import Platform
from hspi.zoo import load_model


class PyTorchAdapter(BatchAdapter):
    """One model in PyTorch, as `platform` says. No attention mask is passed: padding stands on the right.

    `platform.options`: `matmul_precision` (torch.set_float32_matmul_precision), `sdpa` (the only attention backend
    allowed), `quantizer` (see `quantized.QUANTIZERS`); on a GPU also `reduced_precision` (of split sums),
    `deterministic`, `blas` (cublas or cublaslt).
    Raises ModelError when the folder holds no causal language model.
    """

    def __init__(self, platform: Platform, model_path: Path, threads: int = 1) -> None:
        import torch

        self._torch, self._platform, self._threads = torch, platform, threads
        self._device = platform.device if platform.device == "cuda" else "cpu"
        model = load_model(model_path, platform.dtype, platform.attention)
        self.vocab_size = int(model.config.vocab_size)
        if quantizer := platform.options.get("quantizer"):
            from hspi.platforms.quantized import quantize

            model = quantize(model, quantizer)
        self._model = model.to(self._device)
        if platform.compile:
            _compile_layers(self._model)

    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        torch = self._torch
        with torch.inference_mode(), self._settings():
            batch = torch.from_numpy(ids).to(self._device)
            logits = self._model(input_ids=batch, use_cache=False, logits_to_keep=keep).logits
            return logits.to(torch.float32).cpu().numpy()

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Process-wide switches, held for one call, so that two adapters may share a process."""
        options, stack = self._platform.options, ExitStack()
        with stack:
            for switch in _switches(self._torch, options, self._threads, self._device):
                stack.enter_context(switch)
            if backend := options.get("sdpa"):
                from torch.nn import attention

                stack.enter_context(attention.sdpa_kernel(attention.SDPBackend[backend]))
            yield

    def facts(self) -> dict[str, str]:
        torch = self._torch
        facts = {"device": self._device, "torch_cpu_capability": torch.backends.cpu.get_cpu_capability()}
        if self._device == "cuda":
            major, minor = torch.cuda.get_device_capability()
            facts |= {
                "gpu": torch.cuda.get_device_name(),
                "gpu_compute_capability": f"{major}.{minor}",
                "gpu_multiprocessors": str(torch.cuda.get_device_properties(0).multi_processor_count),
                "cuda": str(torch.version.cuda),
                "cudnn": str(torch.backends.cudnn.version()),
            }
        return facts


@contextmanager
def _held(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    """A global setting at `value`, and as it was before afterwards."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def _switches(torch: Any, options: dict[str, Any], threads: int, device: str) -> Iterator[AbstractContextManager[None]]:
    precision = options.get("matmul_precision", "highest")
    yield _held(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision)
    yield _held(torch.get_num_threads, torch.set_num_threads, threads)
    if device != "cuda":
        return
    deterministic = options.get("deterministic", False)
    yield _held(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, deterministic)
    matmul = torch.backends.cuda.matmul
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        yield _held(
            partial(getattr, matmul, name), partial(setattr, matmul, name), options.get("reduced_precision", True)
        )
    blas = torch.backends.cuda.preferred_blas_library
    yield _held(blas, blas, options.get("blas", "cublas"))


def _compile_layers(model: Any) -> None:
    """Compiles each decoder layer in place. They share one graph, so compiling takes a layer's time, not a model's."""
    from torch import nn

    for layers in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for layer in layers:
            layer.compile(dynamic=True)
