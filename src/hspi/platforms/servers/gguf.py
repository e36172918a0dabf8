"""GGUF files of a model's weights, made once by llama.cpp's own converter in its environment.

They stand at `<cache>/<weights hash>/gguf-<format>-<versions>-<tokenizer>/model.gguf`: the tokenizer is inside the
file, and is no part of the weights' hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hspi.errors import ConfigError, ModelError, PlatformError
from hspi.platforms.convert import cache_folder, made_once
from hspi.quiet import complaint
from hspi.zoo import weights_hash

FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0")
SCRIPT = Path(__file__).parent / "apart" / "llama_convert.py"


def gguf_place(environment: Path, model_path: Path, kind: str) -> Path:
    """Where the file stands, or would. Raises ConfigError on another format, ModelError where there is no model."""
    if kind not in FORMATS:
        raise ConfigError(f"a GGUF format must be one of {', '.join(FORMATS)}, but got {kind!r}")
    tokenizer = model_path / "tokenizer.json"
    weights = weights_hash(model_path)
    if not tokenizer.is_file():
        raise ModelError(f"a GGUF file needs the model's tokenizer.json, but {model_path} holds none")
    made_by = hashlib.sha256(SCRIPT.read_bytes())
    made_by.update(json.dumps(json.loads((environment / "hspi.json").read_text("utf-8"))["versions"]).encode())
    words = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:8]
    return cache_folder() / weights[:16] / f"gguf-{kind}-{made_by.hexdigest()[:8]}-{words}" / "model.gguf"


def gguf_file(environment: Path, model_path: Path, kind: str) -> Path:
    """The weights at `model_path` as a GGUF file; makes it once. Raises PlatformError when conversion fails."""
    file = gguf_place(environment, model_path, kind)
    made_once(file.parent, lambda unfinished: _convert(environment, model_path, kind, unfinished / file.name))
    return file


def _convert(environment: Path, model_path: Path, kind: str, out: Path) -> None:
    if not any(model_path.glob("model*.safetensors")):  # where there are none the converter goes on to pickles
        raise ModelError(f"a GGUF file is made from model*.safetensors, but {model_path} holds none")
    python = environment / "bin" / "python"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    command = [str(python), str(SCRIPT), str(model_path.absolute()), kind, str(out.absolute())]
    why = complaint(command, env=plain)
    if why or not out.is_file():
        raise PlatformError(f"{model_path} must convert to GGUF {kind}, but: {why or 'no file came'}")
