"""The reference against a second implementation: NumPy in long double, written from the architectures' definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy.special import erf

from hspi import zoo
from hspi.errors import DataError
from hspi.reference.logits import likeliest, reference_logprobs

VOCAB = 96
HEAD = 16
COMMON = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON |= {"intermediate_size": 80, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, num_key_value_heads=2, head_dim=HEAD),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=HEAD, tie_word_embeddings=True),
    "gemma": lambda: transformers.GemmaConfig(**COMMON, num_key_value_heads=1, head_dim=HEAD, pad_token_id=2),
    "neox": lambda: transformers.GPTNeoXConfig(**COMMON),
}
EXACT = np.longdouble


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zoo.ModelRef]:
    """A tiny random model of each family, in bf16, with every vector (norms, biases) away from its initial value."""
    refs = {}
    for name, make in CONFIGS.items():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(make(), dtype=torch.float32)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.2)
        folder = tmp_path_factory.mktemp(name)
        model.to(torch.bfloat16).save_pretrained(folder)
        refs[name] = zoo.resolve(str(folder))
    return refs


@pytest.fixture(scope="module")
def contexts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCAB, n) for n in (9, 12, 7, 12)]


# --- the second implementation ---


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EXACT(eps)) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + EXACT(eps)) * weight + bias


def rotate(x: np.ndarray, dims: int) -> np.ndarray:
    """Turns the pairs (i, i + dims/2) of the first `dims` entries by position · 10000^(-2i/dims). x: (L, heads, d)."""
    half = dims // 2
    angle = np.arange(len(x), dtype=EXACT)[:, None] * EXACT(10000) ** (-np.arange(half, dtype=EXACT) * 2 / dims)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:dims]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., dims:]], -1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of (L, heads, d) on (L, kv_heads, d): (L, heads · d)."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(EXACT(q.shape[-1]))
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    return np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(len(q), -1)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / EXACT(np.pi)) * (x + EXACT(0.044715) * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + erf((x / np.sqrt(EXACT(2))).astype(np.float64)))


def gated_family(name: str, w: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    one = 1 if name == "gemma" else 0  # Gemma's norms store the distance from one
    activation = gelu_tanh if name == "gemma" else silu
    x = w["model.embed_tokens.weight"][ids] * (np.sqrt(EXACT(COMMON["hidden_size"])) if name == "gemma" else 1)
    for i in range(COMMON["num_hidden_layers"]):
        layer = {k.removeprefix(f"model.layers.{i}."): v for k, v in w.items() if f".layers.{i}." in k}
        h = rms_norm(x, one + layer["input_layernorm.weight"])
        q, k, v = ((h @ layer[f"self_attn.{p}_proj.weight"].T).reshape(len(ids), -1, HEAD) for p in "qkv")
        if name == "qwen3":
            q, k = rms_norm(q, layer["self_attn.q_norm.weight"]), rms_norm(k, layer["self_attn.k_norm.weight"])
        x = x + attend(rotate(q, HEAD), rotate(k, HEAD), v) @ layer["self_attn.o_proj.weight"].T
        h = rms_norm(x, one + layer["post_attention_layernorm.weight"])
        gate = activation(h @ layer["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    x = rms_norm(x, one + w["model.norm.weight"])
    return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def neox(w: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    x = w["gpt_neox.embed_in.weight"][ids]
    for i in range(COMMON["num_hidden_layers"]):
        layer = {k.removeprefix(f"gpt_neox.layers.{i}."): v for k, v in w.items() if f".layers.{i}." in k}

        def linear(h: np.ndarray, part: str, layer: dict[str, np.ndarray] = layer) -> np.ndarray:
            return h @ layer[f"{part}.weight"].T + layer[f"{part}.bias"]

        def norm(part: str, x: np.ndarray = x, layer: dict[str, np.ndarray] = layer) -> np.ndarray:
            return layer_norm(x, layer[f"{part}.weight"], layer[f"{part}.bias"])

        qkv = linear(norm("input_layernorm"), "attention.query_key_value").reshape(len(ids), -1, 3, HEAD)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        rotary = HEAD // 4
        attention = linear(attend(rotate(q, rotary), rotate(k, rotary), v), "attention.dense")
        mlp = linear(gelu_erf(linear(norm("post_attention_layernorm"), "mlp.dense_h_to_4h")), "mlp.dense_4h_to_h")
        x = x + attention + mlp
    x = layer_norm(x, w["gpt_neox.final_layer_norm.weight"], w["gpt_neox.final_layer_norm.bias"])
    return x @ next(w[k] for k in ("lm_head.weight", "embed_out.weight") if k in w).T


def exact_logprobs(name: str, ref: zoo.ModelRef, ids: np.ndarray) -> np.ndarray:
    w = {k: v.double().numpy().astype(EXACT) for k, v in load_file(ref.path / "model.safetensors").items()}
    logits = neox(w, ids) if name == "neox" else gated_family(name, w, ids)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# --- tests ---


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_an_independent_evaluation_to_float64_precision(name, models, contexts):
    found = reference_logprobs(models[name], contexts, positions=5)
    assert found.shape == (4, 5, VOCAB)
    assert found.dtype == np.float64
    for row, ids in zip(found, contexts, strict=True):
        exact = exact_logprobs(name, models[name], ids)[-5:]
        assert np.max(np.abs((row - exact) / exact)) < 1e-12


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_weights_alone_would_not_be_enough(name, models, contexts):
    """Why the rule over every cast is there: plain transformers in float64 errs a thousand times more."""
    ids = contexts[1]
    with torch.inference_mode():
        logits = zoo.load_model(models[name].path, "fp64", "eager")(torch.from_numpy(ids)[None]).logits[0]
        plain = torch.log_softmax(logits, -1).numpy()
    exact = exact_logprobs(name, models[name], ids)
    ours = reference_logprobs(models[name], [ids], len(ids))[0]
    assert np.abs(plain - exact).max() > 1000 * np.abs(ours - exact).max()


def test_leaves_torch_as_it_was(models, contexts):
    reference_logprobs(models["llama"], contexts, 1)
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(2).float().dtype == torch.float32


def test_company_changes_nothing_beyond_rounding(models, contexts):
    together = reference_logprobs(models["qwen3"], contexts, 2)
    alone = np.concatenate([reference_logprobs(models["qwen3"], [c], 2) for c in contexts])
    np.testing.assert_allclose(together, alone, rtol=1e-13)


@pytest.mark.parametrize(
    ("bad", "positions"),
    [([], 1), ([np.array([1, 2])], 3), ([np.array([1, 2])], 0), ([np.array([VOCAB])], 1), ([np.array([-1])], 1)],
)
def test_contexts_that_do_not_fit_are_refused(bad, positions, models):
    with pytest.raises(DataError, match=r"^[^\n]+ but got [^\n]+$"):
        reference_logprobs(models["llama"], bad, positions)


def test_slots_are_the_likeliest_tokens_of_the_reference() -> None:
    reference = np.array([[-3.0, -1.0, -1.0, -0.5]])
    np.testing.assert_array_equal(likeliest(reference, 3), [[3, 1, 2]])
