"""Virtual GPUs: the conformance suite, the records against the bits, and products against their definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hspi.errors import ConfigError, PlatformError, UnknownName
from hspi.numerics.architectures import GPUS
from hspi.numerics.batched import matmul_batched
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import matmul
from hspi.platforms.catalogue import CATALOGUE, get
from hspi.platforms.opening import open_adapter
from hspi.platforms.virtual.catalogue import VIRTUAL, alike, arithmetic_class, family, virtual
from hspi.platforms.virtual.plans import PLANS, PlanBook
from test_platforms_adapters import ARCHITECTURES, check_conformance, contexts, make_model

LENGTHS = (64, 128, 16, 12)  # of K in the tiny models, attention over a context of 12 included
IDS = ("vgpu-h100-bf16-k2", "vgpu-t4-fp16-rev", "vgpu-mi300x-tf32-k1", "vgpu-l40s-fp8-k1", "vgpu-mi300x-fp8t-i4")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, name) for name in ARCHITECTURES}


def answers(model, platform):
    adapter = open_adapter(platform if not isinstance(platform, str) else get(platform), model)
    return adapter.logprobs(contexts(12, 12), 2)


def test_the_catalogue_holds_ten_gpus_of_nine_generations_and_eight_plans():
    assert len(GPUS) >= 10 and len(set(GPUS.values())) == 9 and len(PLANS) >= 8
    assert {p.device.removeprefix("virtual ") for p in VIRTUAL} == set(GPUS)
    assert all(CATALOGUE[p.id] is p and p.provenance == "emulated" for p in VIRTUAL)
    families = {family(p) for p in VIRTUAL}
    assert len(VIRTUAL) == len(families) * len(PLANS)
    assert "vgpu-a100-bf16-k1" in CATALOGUE and "vgpu-v100-bf16-k1" not in CATALOGUE


def test_conformance(models):
    check_conformance(get(IDS[0]), open_adapter(get(IDS[0]), models["llama"]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("id", IDS)
def test_conformance_of_every_number_type_on_every_architecture(id, architecture, models):
    check_conformance(get(id), open_adapter(get(id), models[architecture]))


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_every_model_class_of_the_zoo_says_what_plain_torch_says(architecture, models):
    far = np.abs(answers(models[architecture], "vgpu-a100-fp16-k1") - answers(models[architecture], "torch-fp32"))
    assert 0 < far.max() < 0.1


def test_gpus_that_share_arithmetic_answer_alike_and_others_do_not(models):
    bits = {g: answers(models["llama"], virtual(g, "tf32", "k4")).tobytes() for g in ("A100", "L40S", "H100", "B200")}
    for a in bits:
        for b in bits:
            assert (bits[a] == bits[b]) == alike(virtual(a, "tf32", "k4"), virtual(b, "tf32", "k4"), LENGTHS)
    assert bits["A100"] != bits["H100"]


def test_classes_follow_from_the_records():
    named = {d: {arithmetic_class(p) for p in VIRTUAL if f"-{d}-" in p.id} for d in ("fp16", "bf16", "tf32", "fp8")}
    assert named["fp16"] == {"volta", "turing+ampere+ada", "hopper+blackwell", "cdna1", "cdna2", "cdna3"}
    assert named["bf16"] == {"ampere+ada", "hopper+blackwell", "cdna1", "cdna2", "cdna3"}
    assert named["tf32"] == {"ampere+ada", "hopper+blackwell", "cdna3"}
    assert named["fp8"] == {"ada", "hopper", "blackwell", "cdna3"}


def test_plans_that_come_to_the_same_walk_are_alike():
    one, two = virtual("A100", "bf16", "k1"), virtual("A100", "bf16", "k2")
    assert alike(one, two, [16]) and not alike(one, two, [64])
    turing, ampere = virtual("T4", "fp16", "rev"), virtual("A100", "fp16", "rev")
    assert not alike(turing, ampere, [64])  # instructions of 8 and of 16, in reverse
    assert alike(virtual("T4", "fp16", "k1"), virtual("A100", "fp16", "k1"), LENGTHS)


def test_a_book_gives_each_product_its_plan(models):
    plain = get("vgpu-a100-tf32-k1")  # fp32 storage hides no bit
    book = PlanBook("k1", {"lm_head": "k4"})
    option = {"default": "k1", "lm_head": "k4"}
    assert PlanBook.of(option) == book and book.plan_of("lm_head").split_k == 4
    varied = dataclasses.replace(plain, id="varied", options={**plain.options, "plan": option})
    adapter = open_adapter(plain, models["llama"])
    before = adapter.logprobs(contexts(12, 12), 2)
    assert set(adapter.products) == {"64x64", "32x64", "128x64", "64x128", "lm_head", "qk", "pv"}
    adapter.book = book
    after = adapter.logprobs(contexts(12, 12), 2)
    assert (after != before).any() and after.tobytes() == answers(models["llama"], varied).tobytes()
    assert len(adapter.places) == 2 * 7 + 1, "seven weights in each layer, and the output matrix"
    adapter.book = PlanBook("k1", {adapter.places[0]: "k4"})
    one = adapter.logprobs(contexts(12, 12), 2)
    assert (one != before).any() and (one != after).any(), "one weight of one layer has a plan of its own"
    with pytest.raises(UnknownName, match="kernel plan"):
        PlanBook("no such plan")


def test_a_linear_layer_is_the_matrix_unit_s_product_rounded_once(models):
    import torch

    adapter = open_adapter(get("vgpu-h100-bf16-k1"), models["llama"])
    torch.manual_seed(0)
    x, w, bias = (torch.randn(s).bfloat16() for s in ((2, 3, 96), (40, 96), (40,)))
    expected = torch.from_numpy(matmul(x.reshape(6, 96), w.T, "hopper", "bf16")) + bias.float()
    assert torch.equal(adapter.linear(x, w, bias), expected.bfloat16().reshape(2, 3, 40))


def test_fused_attention_agrees_with_the_plain_one(models):
    import torch

    adapter = open_adapter(get("vgpu-a100-fp16-k1"), models["llama"])
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 12, 16).half(), torch.randn(1, 2, 12, 16).half(), torch.randn(1, 2, 12, 16).half()
    plain = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True
    )
    assert (adapter.attention(q, k, v, is_causal=True, enable_gqa=True).float() - plain).abs().max() < 5e-3


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_batch_of_products_has_the_bits_of_each(plan):
    rng, fmt = np.random.default_rng(0), format_of("bf16")
    a, b = (round_to(rng.standard_normal(s).astype(np.float32), fmt) for s in ((3, 35, 72), (3, 72, 70)))
    found = matmul_batched(a, b, "ampere", "bf16", plan)
    each = [matmul(x, y, "ampere", "bf16", plan=plan) for x, y in zip(a, b, strict=True)]
    assert found.tobytes() == np.stack(each).tobytes()
    a[1, 0, 0] = np.inf
    again = matmul_batched(a, b, "ampere", "bf16", plan)
    assert again[0].tobytes() == found[0].tobytes() and not np.isfinite(again[1, 0]).any()


def test_a_product_that_is_not_known_is_refused(models):
    import torch

    from hspi.platforms.virtual.gpu import _mode

    adapter = open_adapter(get("vgpu-a100-bf16-k1"), models["llama"])
    with _mode(adapter), pytest.raises(PlatformError, match="einsum"):
        torch.einsum("ij,jk->ik", torch.zeros(2, 2), torch.zeros(2, 2))


def test_a_type_that_the_hardware_lacks_is_named(models):
    wrong = dataclasses.replace(get("vgpu-v100-fp16-k1"), dtype="bf16")
    with pytest.raises(ConfigError, match="volta must be one of fp16"):
        open_adapter(wrong, models["llama"])
