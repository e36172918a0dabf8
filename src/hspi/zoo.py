"""Which model is meant: one of the zoo that ships, a folder on disk, or an id on the hub. Imports no torch until asked.

Every way ends in a `ModelRef`: a local folder with config.json and *.safetensors, and the hash of their bytes. Weights
in pickle files are never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hspi.errors import ConfigError, ModelError, PlatformError, UnknownName
from hspi.files import digest, read_json, root

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
    """A model on this disk; `weights_hash` as the function of that name gives it."""

    id: str
    path: Path
    weights_hash: str
    vocab_size: int
    family: str

    @property
    def asked_as(self) -> str:
        """What `resolve` finds the same model by, without the hub."""
        return self.id if self.id in ZOO else str(self.path)


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


DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load_model(path: Path, dtype: str, attention: str) -> Any:
    """The causal language model of a folder, in eval mode on the CPU; safetensors files are all that it can read.

    dtype: a key of `DTYPES`; attention: as transformers names it. Raises ConfigError on another dtype, ModelError
    where the folder holds no such model, PlatformError where the attention needs a package that is not here.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    _refuse_other_weights(path)
    import torch
    from safetensors import SafetensorError

    _quieten()
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, DTYPES[dtype]),
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except ImportError as e:
        raise PlatformError(f"attention {attention!r} must be installed, but: {_one_line(e)}") from e
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{path} must hold a causal language model, but: {_one_line(e)}") from e
    return model.eval().requires_grad_(False)


def _refuse_other_weights(path: Path) -> None:
    """transformers reads any file that config.json or an index names, and an adapter's, `use_safetensors` or not."""
    files = [f.name for f in _weight_files(path)[1:]]
    indexes = sorted(path.glob("*.safetensors.index.json"))
    try:
        named = {name for index in indexes for name in read_json(index)["weight_map"].values()} - {*files}
        chosen = read_json(path / "config.json").get("transformers_weights")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} must hold a readable config.json and index, but: {_one_line(e)}") from e
    if chosen not in (None, *files, *(index.name for index in indexes)):
        named.add(chosen)
    if (path / "adapter_config.json").exists():
        named.add("adapter_config.json")
    if named:
        raise ModelError(f"{path} must take all weights from its *.safetensors, but it names {sorted(map(str, named))}")


def weights_hash(path: Path) -> str:
    """The sha256 (hex) of config.json and every safetensors file, by name. Raises ModelError where either lacks."""
    total = hashlib.sha256()
    for file in _weight_files(path):
        stat = file.stat()
        total.update(f"{file.name}:{_file_hash(file, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return total.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    """config.json, then the safetensors files in the order of their names."""
    weights = sorted(path.glob("*.safetensors"))
    if not weights or not (path / "config.json").is_file():
        raise ModelError(f"a model's folder must hold config.json and *.safetensors, but {path} does not")
    return [path / "config.json", *weights]


def _reference(name: str, path: Path) -> ModelRef:
    config_file = _weight_files(path)[0]
    try:
        config = json.loads(config_file.read_text())
        text_config = config.get("text_config", config)  # where a model of several modes keeps its language part
        vocab_size, family = int(text_config["vocab_size"]), str(config["architectures"][0])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise ModelError(f"config.json must name vocab_size and architectures, but in {path}: {_one_line(e)}") from e
    return ModelRef(name, path, weights_hash(path), vocab_size, family)


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
    """Silences what transformers says on import about GPU parts of torchao, and its progress bars."""
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
