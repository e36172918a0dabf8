"""One suite over every adapter: what a model answers, whatever serves it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hspi.errors import DataError, ModelError, PlatformError
from hspi.platforms.catalogue import get
from hspi.platforms.machine import availability, cpu_flags
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Adapter

VOCABULARY = 320
ARCHITECTURES = ("llama", "qwen3", "gemma", "neox")
# Exporting to ONNX takes seconds, so those engines wait for the slow suite.
OPENED = (
    *("torch-fp32", "torch-fp32-eager", "torch-fp32-medium", "torch-bf16", "torch-int8-x86"),
    *("emulated-mxint8", "emulated-fp8-e3m4", "ct2-fp32", "ct2-int8"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ort-fp32", "ort-int8", "openvino-fp32")),
    # Servers in environments of their own, where those stand.
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llamacpp-f32", "llamacpp-q8_0", "vllm-fp32")),
)

# How far padding and company may move a log-probability, by what is rounded on the way.
TOLERANCES = {"bf16": 0.1, "fp16": 0.02, "int8": 0.5}


def tolerance(platform):
    loose = [TOLERANCES.get(kind, 0.0) for kind in (platform.dtype, platform.quantization)]
    return max(0.1 if platform.options.get("matmul_precision") else 2e-4, *loose)


def make_model(folder, architecture, head_dim=16):
    """A tiny model with random weights, as a transformers folder in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, GemmaConfig, GPTNeoXConfig, LlamaConfig, Qwen3Config

    size = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    grouped = {"intermediate_size": 128, "num_key_value_heads": 2, "head_dim": head_dim}
    config = {
        "llama": lambda: LlamaConfig(**size, **grouped),
        "qwen3": lambda: Qwen3Config(**size, **grouped),
        "gemma": lambda: GemmaConfig(**size, **grouped),
        "neox": lambda: GPTNeoXConfig(**size, intermediate_size=256),
    }[architecture]()
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(5)  # so that the answers are far from uniform
    model.to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_tokenizer(folder):
    """Of bytes and one merge: servers want one, though they are asked by ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*("<pad>", "<s>", "</s>"), *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    os.environ["HSPI_CACHE"] = str(folder / "cache")
    found = {name: make_model(folder / name, name) for name in ARCHITECTURES}
    yield found | {"wide": make_model(folder / "wide", "llama", head_dim=32)}
    del os.environ["HSPI_CACHE"]


@pytest.fixture(scope="session", params=OPENED)
def served(request, models):
    platform = get(request.param)
    if not (can := availability(platform)).runnable:
        pytest.skip(can.why_not)
    return platform, open_adapter(platform, suited(platform, models))


def suited(platform, models):
    """vLLM's attention on CPUs wants heads of 32 and more."""
    return models["wide" if platform.engine == "vllm" else "llama"]


def contexts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, n) for n in lengths]


def check_conformance(platform, adapter):
    """What must hold of an adapter; the subprocess suite runs it too."""
    close = tolerance(platform)
    assert isinstance(adapter, Adapter) and adapter.vocab_size == VOCABULARY
    even = contexts(12, 12, 12)
    answer = adapter.logprobs(even, 4)
    assert answer.shape == (3, 4, VOCABULARY) and answer.dtype == np.float32
    assert np.isfinite(answer).all() and answer.std() > 0.1
    np.testing.assert_allclose(np.exp(answer, dtype=np.float64).sum(-1), 1, atol=1e-5)
    assert adapter.logprobs(even, 4).tobytes() == answer.tobytes()

    np.testing.assert_allclose(adapter.logprobs(even, 1)[:, 0], answer[:, -1], atol=close)
    np.testing.assert_allclose(adapter.logprobs(even[::-1], 4)[::-1], answer, atol=close)
    prefix = [c[:-1] for c in even]
    np.testing.assert_allclose(adapter.logprobs(prefix, 1)[:, -1], answer[:, -2], atol=close)

    mixed = contexts(5, 13, 9, seed=1)
    for row, context in zip(adapter.logprobs(mixed, 3), mixed, strict=True):
        np.testing.assert_allclose(row, adapter.logprobs([context], 3)[0], atol=close)

    chosen = adapter.greedy(mixed, 2)
    assert chosen.shape == (3, 2) and chosen.dtype == np.int64
    first = adapter.logprobs(mixed, 1)[:, 0]
    np.testing.assert_array_equal(chosen[:, 0], first.argmax(-1))
    facts = adapter.facts()
    assert facts and all(isinstance(v, str) for v in facts.values())


def test_conformance(served):
    check_conformance(*served)


@pytest.mark.parametrize(
    ("batch", "positions"), [([], 1), ([[5, 6]], 3), ([[5, 6]], 0), ([[5, VOCABULARY]], 1), ([[-1, 5]], 1)]
)
def test_a_batch_that_cannot_be_served_is_refused(served, batch, positions):
    with pytest.raises(DataError):
        served[1].logprobs([np.array(c) for c in batch], positions)


def test_engines_agree_on_what_the_model_says(served, models):
    platform, adapter = served
    plain = open_adapter(get("torch-fp32"), suited(platform, models)).logprobs(contexts(12, 12), 2)
    far = np.abs(adapter.logprobs(contexts(12, 12), 2) - plain).max()
    assert far < (1e-3 if platform.number_format == "fp32" and not platform.options else 1.5)
    # Coarser numbers show anywhere. Whether fp32 in another engine, kernel or mode has other bits, the CPU decides.
    assert far > 0 or platform.number_format == "fp32"


@pytest.mark.parametrize("id", ["torch-fp32", "torch-fp32-eager", "torch-fp32-medium"])
def test_what_no_bit_may_show_holds_while_the_engine_computes(id, models):
    """Attention and precision of products are as the record says in the call, whatever the CPU makes of them."""
    import torch

    platform, seen = get(id), []
    adapter = open_adapter(platform, models["llama"])
    adapter._model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    adapter.logprobs(contexts(12), 1)
    assert seen == [platform.options.get("matmul_precision", "highest")]
    assert torch.get_float32_matmul_precision() == "highest"
    assert adapter._model.config._attn_implementation == platform.attention


def test_a_folder_without_a_model_is_named(served, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        open_adapter(served[0], tmp_path)


@pytest.mark.slow
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PlatformError, match="must convert to ctranslate2"):
        open_adapter(get("ct2-fp32"), tmp_path)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def in_own_process(platform_id, model, threads=1, **env):
    """Opens the platform in a fresh process and runs the suite there; returns its output."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_platforms_adapters import check_conformance\n"
        "from hspi.platforms.catalogue import get; from hspi.platforms.opening import open_adapter\n"
        "adapter = open_adapter(get(sys.argv[2]), sys.argv[3])\n"
        "check_conformance(get(sys.argv[2]), adapter); print(adapter.facts())"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), platform_id, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="this CPU has nothing that a cap at SSE would take away")
def test_a_cap_reaches_the_engine(models):
    """At SSE: a cap at AVX2 takes nothing from a CPU that has no more."""
    assert "'torch_cpu_capability': 'DEFAULT'" in in_own_process("torch-fp32-sse", models["llama"])


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in cpu_flags(), reason="this CPU has nothing that a cap at SSE would take away")
def test_an_inherited_cap_does_not(models):
    found = in_own_process("torch-fp32", models["llama"], ATEN_CPU_CAPABILITY="default")
    assert "'torch_cpu_capability': 'AVX" in found


REPRESENTATIVE = (  # of every engine, number format and cap that runs in this environment
    *("torch-fp32", "torch-fp32-eager", "torch-fp32-avx2", "torch-fp32-compiled", "torch-bf16", "torch-bf16-eager"),
    *("torch-bf16-avx2", "torch-fp16", "torch-int8-x86", "torchao-int8wo", "torchao-int4wo", "bitsandbytes-nf4"),
    *("ort-fp32", "ort-int4", "openvino-fp32", "openvino-bf16", "ct2-fp32", "ct2-int8", "ct2-int8-avx2"),
    *("emulated-fp8-e4m3", "emulated-mxint8"),
)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(REPRESENTATIVE)), ids=lambda i: REPRESENTATIVE[i])
def test_platforms_each_in_a_process_of_its_own(place, models):
    """In turn over the four families of models: each engine and number format meets them all, in minutes."""
    platform, architecture = get(REPRESENTATIVE[place]), ARCHITECTURES[place % len(ARCHITECTURES)]
    if not (can := availability(platform)).runnable:
        pytest.skip(can.why_not)
    in_own_process(platform.id, models[architecture])
