"""Hypotheses foretell what rounding does, the right one explains it at any size, and grids are told at any scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hspi import zoo
from hspi.detectors.number_format import format_of
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.explained import (
    CLASS_FEATURES,
    EXPLAINED_STATISTICS,
    FORMAT_FEATURES,
    FORMATS,
    all_statistics,
    class_features,
    explained_statistics,
    format_features,
    grid_distance,
)
from hspi.platforms.quantized import linear_layers, round_float8, round_mx
from hspi.platforms.record import Platform
from hspi.reference.hypotheses import HYPOTHESES, NAMES, normal_quantiles, predicted, rounded
from hspi.reference.logits import SLOTS, normaliser
from hspi.reference.store import cached_predictions

P, VOCAB = 24, 96
WEIGHT_FORMATS = [h.name for h in HYPOTHESES if h.format != "bf16"]


@pytest.fixture(scope="module", params=[False, True], ids=["own-head", "tied"])
def ref(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> zoo.ModelRef:
    """A tiny random Llama, its output matrix its own or the embedding's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=request.param, initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return zoo.resolve(str(path))


@pytest.fixture(scope="module")
def contexts() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, VOCAB, (P, 6)))


def observed(logits: np.ndarray, plain: np.ndarray, foretold: np.ndarray) -> Aligned:
    """Answers with these logits, beside a reference with those; every token of the vocabulary's first SLOTS."""
    order = np.argsort(-plain, axis=1)[:, :SLOTS]
    lse = normaliser(plain)
    answered = (logits - normaliser(logits)[:, None]).astype(np.float32)
    values = np.take_along_axis(answered, order, axis=1)
    rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1).astype(np.uint8)
    raw = -np.sort(-values, axis=1)
    return Aligned(
        "m", [Platform("x", "none", "emulated")], ["b"], [("text", i) for i in range(len(plain))],
        order.astype(np.int32), np.take_along_axis(plain, order, axis=1) - lse[:, None],
        values[None, None], rank[None, None], raw[None, None], lse, np.take_along_axis(foretold, order[None], axis=2),
    )  # fmt: skip


def answers(ref: zoo.ModelRef, contexts: list[np.ndarray], change: object = None) -> np.ndarray:
    model = zoo.load_model(ref.path, "fp32", "eager")
    if callable(change):
        change(model)
    with torch.inference_mode():
        return model(torch.from_numpy(np.stack(contexts))).logits[:, -1].double().numpy()


def weights_through(rounder: object) -> object:
    def change(model: torch.nn.Module) -> None:
        for layer in linear_layers(model).values():
            layer.weight.data = torch.from_numpy(rounder(layer.weight.data.numpy()))  # type: ignore[operator]

    return change


def features_of(data: Aligned) -> dict[str, float]:
    mean = explained_statistics(data, 0, 0, 20).mean(axis=0)
    return dict(zip(FORMAT_FEATURES, format_features(mean).tolist(), strict=True))


def explaining(found: dict[str, float]) -> list[str]:
    return [f for f in FORMATS if found[f"explained_{f}"] == 1]


@pytest.fixture(scope="module")
def foretold(ref: zoo.ModelRef, contexts: list[np.ndarray]) -> np.ndarray:
    return predicted(ref, contexts, np.tile(np.arange(VOCAB, dtype=np.int32), (P, 1)))


@pytest.mark.parametrize(
    ("rounder", "named"),
    [
        (lambda w: round_float8(w, "float8_e4m3fn"), "fp8-e4m3"),
        (lambda w: round_float8(w, "float8_e3m4"), "fp8-e3m4"),
        (lambda w: round_mx(w, "mxint8"), "mxint8"),
        (lambda w: np.round(w / (s := np.abs(w).max(1, keepdims=True) / 127)) * s, "int8"),
        (lambda w: np.clip(np.round(w / (s := np.abs(w).max(1, keepdims=True) / 7.5)), -8, 7) * s, "int4"),
    ],
    ids=["e4m3", "e3m4", "mxint8", "int8", "int4"],
)
def test_weights_rounded_by_other_code_are_explained_by_their_own_format(
    rounder: object, named: str, ref: zoo.ModelRef, contexts: list[np.ndarray], foretold: np.ndarray
) -> None:
    plain = answers(ref, contexts)
    found = features_of(observed(answers(ref, contexts, weights_through(rounder)), plain, foretold))
    assert explaining(found) == [named]
    assert found["grid_bf16"] == found["grid_fp16"] == pytest.approx(0.2)


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("scale", [1.0, 1 / 64])
def test_a_share_knows_no_scale(name: str, scale: float, foretold: np.ndarray) -> None:
    """The residual is the foretold one, with a little noise of its own, times a size that means nothing."""
    rng = np.random.default_rng(1)
    plain = rng.normal(scale=3, size=(P, VOCAB))
    delta = foretold[NAMES.index(name)].astype(float)
    noise = 0.1 * delta.std() * rng.normal(size=delta.shape)
    found = features_of(observed(plain + scale * (delta + noise), plain, foretold))
    assert explaining(found) == [next(h.format for h in HYPOTHESES if h.name == name)]


def test_noise_is_explained_by_nothing(foretold: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    plain = rng.normal(scale=3, size=(P, VOCAB))
    assert explaining(features_of(observed(plain + 1e-3 * rng.normal(size=plain.shape), plain, foretold))) == []


def test_size_is_in_octaves_of_bf16_s(foretold: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    plain = rng.normal(scale=3, size=(P, VOCAB))
    ruler = foretold[NAMES.index("bf16")].std()
    for octave in (-2, 0, 3):
        noisy = plain + ruler * 2.0**octave * rng.normal(size=plain.shape)
        assert features_of(observed(noisy, plain, foretold))["size"] == octave


@pytest.mark.parametrize("scale", [0.3, 4.0, 50.0])
def test_grids_are_told_at_any_scale_of_logits(scale: float) -> None:
    exact = torch.from_numpy(np.random.default_rng(4).normal(scale=scale, size=(64, 20)))
    stored = {"bf16": exact.bfloat16(), "fp16": exact.half(), "fp32": exact.float()}
    distance = {}
    for kind, values in stored.items():
        logits = -np.sort(-values.double().numpy(), axis=1)
        lse = normaliser(logits)
        raw = (logits - lse[:, None]).astype(np.float32)
        distance[kind] = [grid_distance(raw, lse, *grid).mean() for grid in ((7, -126), (10, -14))]
    assert max(distance["bf16"]) < 0.05  # bf16's steps are whole fp16 steps as well, eight each
    assert distance["fp16"][0] > 0.2 and distance["fp16"][1] < 0.1
    assert min(distance["fp32"]) > 0.2


def test_a_grid_without_what_it_needs_says_so() -> None:
    raw = np.full((2, 3), np.nan, np.float32)
    raw[:, 0] = -1
    np.testing.assert_array_equal(grid_distance(raw, np.array([3.0, np.nan]), 7, -126), [0.25, np.nan])


def test_without_hypotheses_features_are_missing_and_the_rest_is_there(foretold: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    plain = rng.normal(size=(P, VOCAB))
    data = observed(plain + 1e-3 * rng.normal(size=plain.shape), plain, np.full_like(foretold, np.nan))
    statistics = all_statistics(data, 20)
    assert np.isfinite(statistics[..., len(EXPLAINED_STATISTICS) :]).all()
    found = class_features(statistics[0, 0].mean(axis=0))
    assert len(found) == len(CLASS_FEATURES)
    assert all(np.isnan(v) for n, v in zip(FORMAT_FEATURES, found, strict=False) if n.startswith("explained"))


def test_a_model_is_as_it_was_after_every_hypothesis(ref: zoo.ModelRef, contexts: list[np.ndarray]) -> None:
    model = zoo.load_model(ref.path, "fp32", "eager")
    ids = torch.from_numpy(np.stack(contexts))
    with torch.inference_mode():
        before = model(ids).logits
        for hypothesis in HYPOTHESES:
            with rounded(model, hypothesis):
                assert not torch.equal(model(ids).logits, before), hypothesis.name
            assert torch.equal(model(ids).logits, before), hypothesis.name


def test_predictions_are_read_again_without_the_model(
    ref: zoo.ModelRef, contexts: list[np.ndarray], tmp_path: Path
) -> None:
    from dataclasses import replace

    tokens = np.tile(np.arange(8, dtype=np.int32), (P, 1))
    first = cached_predictions(ref, "probes", contexts, tokens, tmp_path)
    again = cached_predictions(replace(ref, path=tmp_path / "gone"), "probes", contexts, tokens, tmp_path)
    assert first.shape == (len(NAMES), P, 8) and first.tobytes() == again.tobytes()
    with pytest.raises(DataError, match="one length"):
        predicted(ref, [contexts[0], contexts[1][:3]], tokens[:2])


def test_nf4_has_the_values_of_the_paper() -> None:
    values = normal_quantiles()
    assert len(values) == 16 and values == sorted(values) and values[0] == -1 and values[7] == 0 and values[15] == 1
    assert values[8] == pytest.approx(0.0796, abs=1e-4) and values[1] == pytest.approx(-0.6962, abs=1e-4)


def test_formats_name_what_rounds() -> None:
    def told(**values: str) -> str:
        return format_of(Platform("x", "pytorch", **values))  # type: ignore[arg-type]

    assert told() == "fp32" and told(dtype="bf16") == "bf16"
    assert told(quantization="int8") == told(quantization="int8-weights", dtype="bf16") == "int8"
    assert told(quantization="fp8-weights") == told(quantization="fp8-e4m3") == "fp8-e4m3"
    assert {h.format for h in HYPOTHESES} == {"int8", "int4", "nf4", "fp8-e4m3", "fp8-e3m4", "mxint8", "bf16"}
