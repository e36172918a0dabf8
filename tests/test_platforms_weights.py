"""Weights come from safetensors alone: whatever else lies in a model's folder, no way of loading unpickles it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hspi import zoo
from hspi.errors import ConfigError, ModelError, PlatformError
from hspi.platforms.catalogue import get
from hspi.platforms.convert import convert
from hspi.platforms.opening import open_adapter
from hspi.reference.hypotheses import HYPOTHESES, predicted
from hspi.reference.logits import reference_logits
from hspi.zoo import ModelRef
from test_platforms_adapters import VOCABULARY, contexts, make_model

Load = Callable[[Path, Path], object]


def opened(platform: str) -> Load:
    return lambda model, out: open_adapter(get(platform), model).logprobs(contexts(4), 1)


def converted(kind: str) -> Load:
    """What the adapters of that engine read; in this process, where a pickle would be seen."""
    return lambda model, out: convert(kind, model, out)


def ref(model: Path) -> ModelRef:
    return ModelRef("tiny", model, "0", VOCABULARY, "LlamaForCausalLM")


def foretold(model: Path, out: Path) -> object:
    return predicted(ref(model), contexts(4), np.zeros((1, 3), np.int32), HYPOTHESES[:1])


WAYS: dict[str, Load] = {
    "torch": opened("torch-fp32"),
    "torch bf16": opened("torch-bf16"),
    "quantized": opened("torch-int8-x86"),
    "emulated": opened("emulated-fp8-e3m4"),
    "virtual GPU": opened("vgpu-h100-bf16-k1"),
    "ONNX": converted("onnx"),
    "CTranslate2": converted("ctranslate2"),
    "reference": lambda model, out: reference_logits(ref(model), contexts(4), 1),
    "hypotheses": foretold,
}
SLOW = {"ONNX"}  # where it goes on to the end


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", "llama")


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.mark, "w")


@pytest.fixture
def trap(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model for pickles to be put in; `torch.load` is the careless one that it used to be."""
    import torch

    careful = torch.load
    monkeypatch.setattr(torch, "load", lambda f, *a, **_: careful(f, weights_only=False))
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def put(trap: Path, name: str) -> None:
    import torch

    torch.save({"model.embed_tokens.weight": Bomb(trap.parent / "mark")}, trap / name)


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def only(trap: Path) -> None:
    (trap / "model.safetensors").unlink()
    put(trap, "pytorch_model.bin")


def other_name(trap: Path) -> None:
    (trap / "model.safetensors").rename(trap / "other.safetensors")
    put(trap, "pytorch_model.bin")


def shards(trap: Path, index: str) -> None:
    (trap / "model.safetensors").rename(trap / "other.safetensors")
    put(trap, "shard.bin")
    found = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "shard.bin"}}
    (trap / index).write_text(json.dumps(found))


def named_by_config(trap: Path) -> None:
    put(trap, "adapter_model.bin")
    change(trap / "config.json", transformers_weights="adapter_model.bin")


def adapter(trap: Path) -> None:
    put(trap, "adapter_model.bin")
    (trap / "adapter_config.json").write_text('{"peft_type": "LORA"}')


INSTEAD: dict[str, Callable[[Path], None]] = {
    "alone": only,
    "safetensors of another name": other_name,
    "shards": lambda trap: shards(trap, "pytorch_model.bin.index.json"),
    "shards under safetensors' index": lambda trap: shards(trap, "model.safetensors.index.json"),
    "named by config.json": named_by_config,
    "adapter": adapter,
}


@pytest.mark.parametrize("pickle", INSTEAD)
@pytest.mark.parametrize("way", WAYS)
def test_a_pickle_in_the_place_of_weights_is_refused(way: str, pickle: str, trap: Path, tmp_path: Path) -> None:
    INSTEAD[pickle](trap)
    with pytest.raises((ModelError, PlatformError), match=r"^[^\n]+$"):
        WAYS[way](trap, tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("way", [pytest.param(w, marks=[pytest.mark.slow] if w in SLOW else []) for w in WAYS])
def test_a_pickle_beside_the_weights_is_left_alone(way: str, trap: Path, tmp_path: Path) -> None:
    put(trap, "pytorch_model.bin")
    WAYS[way](trap, tmp_path)
    assert not (tmp_path / "mark").exists()


def test_the_trap_snaps(trap: Path, tmp_path: Path) -> None:
    import torch

    put(trap, "pytorch_model.bin")
    torch.load(trap / "pytorch_model.bin", weights_only=True)
    assert (tmp_path / "mark").exists()


def test_shards_in_safetensors_are_read(tiny: Path, tmp_path: Path) -> None:
    whole = zoo.load_model(tiny, "bf16", "sdpa")
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = zoo.load_model(tmp_path, "bf16", "sdpa").state_dict()
    assert all(found[name].equal(weight) for name, weight in whole.state_dict().items())


def test_shards_from_outside_the_folder_are_refused(trap: Path) -> None:
    (trap / "model.safetensors").rename(trap.parent / "elsewhere.safetensors")
    shutil.copy(trap.parent / "elsewhere.safetensors", trap / "unused.safetensors")
    found = {"metadata": {}, "weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (trap / "model.safetensors.index.json").write_text(json.dumps(found))
    with pytest.raises(ModelError, match=r"must take all weights from its \*\.safetensors, but it names .*elsewhere"):
        zoo.load_model(trap, "fp32", "sdpa")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}'])
def test_a_broken_index_is_one_line(text: str, trap: Path) -> None:
    (trap / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"^[^\n]+ must [^\n]+$"):
        zoo.load_model(trap, "fp32", "sdpa")


def test_what_loading_needs_is_one_line(trap: Path) -> None:
    with pytest.raises(ConfigError, match=r"^dtype must be one of fp64, fp32, bf16, fp16, but got 'fp8'$"):
        zoo.load_model(trap, "fp8", "sdpa")
    with pytest.raises(PlatformError, match=r"^attention 'flash_attention_2' must be installed, but: [^\n]+$"):
        zoo.load_model(trap, "bf16", "flash_attention_2")
    (trap / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"^[^\n]+ must hold a causal language model, but: [^\n]+$"):
        zoo.load_model(trap, "fp32", "sdpa")
