"""Which model is meant: one of the zoo that ships, a folder on disk, or an id on the hub. Imports no torch until asked.

Every way ends in a `ModelRef`: a local folder with config.json and *.safetensors, and the hash of their bytes. Weights
in pickle files are never read.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hspi.errors import ModelError, UnknownName
from hspi.files import digest, root

HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]  # weights, config and tokenizer, but no pickle


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A model that ships: its class in transformers, and what it adds to the zoo."""

    id: str
    family: str
    special: str


ZOO = {
    m.id: m
    for m in (
        ZooModel("llama", "LlamaForCausalLM", "grouped-query attention (4 heads on 2), separate output matrix"),
        ZooModel("qwen3", "Qwen3ForCausalLM", "grouped-query attention with normalised queries and keys, tied"),
        ZooModel("gemma", "GemmaForCausalLM", "one key-value head, scaled and tied embeddings, tanh GELU"),
        ZooModel("neox", "GPTNeoXForCausalLM", "LayerNorm and biases, parallel residual, partial rotary"),
    )
}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model on this disk. `weights_hash` is the sha256 (hex) of config.json and every safetensors file, by name."""

    id: str
    path: Path
    weights_hash: str
    vocab_size: int
    family: str


def resolve(model: str) -> ModelRef:
    """From a zoo id, a folder or a hub id (`org/name`) to a model on this disk; the hub is asked in the last case only.

    Raises UnknownName when `model` is none of the three, ModelError when the folder is absent or holds no model, or
    the hub cannot be reached.
    """
    if model in ZOO:
        path = root() / "data" / "zoo" / model
        if not (path / "config.json").is_file():
            raise ModelError(f"zoo model {model!r} must be in {path}, but it is not: run  dvc pull data/zoo.dvc")
        return _reference(model, path)
    path = Path(model).expanduser()
    if model and path.is_dir():
        return _reference(model, path.resolve())
    if path.is_absolute() or model.startswith((".", "~")):
        raise ModelError(f"a model's folder must exist, but {model} does not")
    if HUB_ID.fullmatch(model):
        return _reference(model, _download(model))
    raise UnknownName("model", model, [*ZOO, "a folder", "a hub id org/name"])


def list_models() -> list[dict[str, Any]]:
    """A plain record for each model of the zoo; `weights_hash` is None where the files are not pulled yet."""
    rows = []
    for model in ZOO.values():
        path = root() / "data" / "zoo" / model.id
        there = (path / "config.json").is_file()
        row = {**asdict(model), "path": str(path), "weights_hash": None, "vocab_size": None}
        if there:
            ref = _reference(model.id, path)
            row |= {"weights_hash": ref.weights_hash, "vocab_size": ref.vocab_size}
        rows.append(row)
    return rows


def load_tokenizer(ref: ModelRef) -> Any:
    """The model's own tokenizer, from its folder alone. Raises ModelError."""
    _quieten()
    try:
        if (ref.path / "tokenizer.json").is_file():  # whole in itself, and AutoTokenizer imports every model's code
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(ref.path, local_files_only=True)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(ref.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"{ref.path} must hold a tokenizer, but: {_one_line(e)}") from e


def load_model(ref: ModelRef, dtype: str = "float32", attention: str = "eager") -> Any:
    """The model in eval mode on the CPU; `dtype` as torch names it, `attention` as transformers does.

    Raises ModelError.
    """
    import torch

    _quieten()
    from transformers import AutoModelForCausalLM

    try:
        kind = getattr(torch, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            ref.path, dtype=kind, attn_implementation=attention, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as e:
        raise ModelError(f"{ref.path} must hold a causal language model, but: {_one_line(e)}") from e
    return model.eval()


def _reference(name: str, path: Path) -> ModelRef:
    config_file = path / "config.json"
    weights = sorted(path.glob("*.safetensors"))
    if not config_file.is_file() or not weights:
        raise ModelError(f"a model's folder must hold config.json and *.safetensors, but {path} does not")
    try:
        config = json.loads(config_file.read_text())
        text_config = config.get("text_config", config)  # where a model of several modes keeps its language part
        vocab_size, family = int(text_config["vocab_size"]), str(config["architectures"][0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise ModelError(f"config.json must name vocab_size and architectures, but in {path}: {_one_line(e)}") from e
    digest = hashlib.sha256()
    for file in (config_file, *weights):
        stat = file.stat()
        digest.update(f"{file.name}:{_file_hash(file, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return ModelRef(name, path, digest.hexdigest(), vocab_size, family)


@lru_cache(maxsize=256)
def _file_hash(file: Path, mtime_ns: int, size: int) -> str:
    return digest(file)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except Exception as e:  # the client raises its own, the transport's and the operating system's errors
        raise ModelError(f"hub model {hub_id!r} must be reachable or in the local cache, but: {_one_line(e)}") from e


def _quieten() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
