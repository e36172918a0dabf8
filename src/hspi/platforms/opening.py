"""From a platform's record to a model loaded in its engine. Engines are imported here, late, and nowhere else."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from hspi.errors import ConfigError, PlatformError
from hspi.platforms.machine import apply_env, availability
from hspi.platforms.record import Adapter, Platform

ADAPTERS = {
    "pytorch": "hspi.platforms.pytorch:PyTorchAdapter",
    "onnx": "hspi.platforms.onnx:OnnxAdapter",
    "openvino": "hspi.platforms.openvino:OpenVinoAdapter",
    "ctranslate2": "hspi.platforms.ctranslate2:CTranslate2Adapter",
    "virtual-gpu": "hspi.platforms.virtual.gpu:VirtualGpuAdapter",
    "vllm": "hspi.platforms.servers.endpoint:start",
    "llama.cpp": "hspi.platforms.servers.endpoint:start",
}


def import_engine(platform: Platform) -> None:
    """Import what the platform's adapter needs, so that forked processes share it. Loads no model, starts no thread."""
    import_module(ADAPTERS[platform.engine].partition(":")[0])
    if platform.engine == "pytorch":
        import_module("torch")
        import_module("transformers.modeling_utils")


def open_adapter(platform: Platform, model_path: str | Path, threads: int = 1) -> Adapter:
    """Loads the transformers model at `model_path` on `platform`.

    Raises PlatformError when this machine or process cannot run it (MissingExtra names the install command's reason),
    ModelError when the folder holds no model, ConfigError when the engine is unknown.
    """
    if platform.engine not in ADAPTERS:
        raise ConfigError(f"engine must be one of {', '.join(ADAPTERS)}, but got {platform.engine!r}")
    can = availability(platform)
    if not can.runnable:
        raise PlatformError(f"{platform.id} cannot run here: {can.why_not}")
    apply_env(platform)
    module, _, name = ADAPTERS[platform.engine].partition(":")
    return getattr(import_module(module), name)(platform, Path(model_path), threads)
