"""Families of virtual GPUs: by the records, and in verdicts on signatures that emulated matrix units gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import synthetic
from hspi import zoo
from hspi.detectors.detector import Detector, decide
from hspi.detectors.virtual_families import Claimed, Families, family_name
from hspi.errors import DataError
from hspi.evidence.aligned import align
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.platforms.catalogue import get
from hspi.platforms.claim import Claim
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Nuisance, Platform
from hspi.platforms.virtual.catalogue import virtual
from hspi.reference.logits import reference_logprobs
from hspi.signatures.batch_classes import BatchClasses
from hspi.signatures.schema import Header, Signature
from hspi.signatures.top_k import top_k
from hspi.verdict import UNKNOWN
from test_platforms_adapters import contexts, make_model

PROBES, TOP_K = 24, 40
LIBRARY = [virtual(g, "tf32", p) for g in ("A100", "L40S", "H100") for p in ("k1", "k2", "k4", "rev")]
NVIDIA_8, NVIDIA_9 = "vgpu:ampere+ada:tf32", "vgpu:hopper+blackwell:tf32"


def classes(*groups: list[str]) -> Classes:
    ids = [p for g in groups for p in g]
    label = [i for i, g in enumerate(groups) for _ in g]
    empty = np.full((len(ids), len(ids)), np.nan)
    return Classes("m", ids, label, empty, empty, empty)


def of(*groups: list[str]) -> Families:
    found = classes(*groups)
    return Families.of(found, [get(i) for i in found.platform_ids])


def test_without_virtual_gpus_families_are_classes():
    found = of(["torch-fp32", "torch-fp32-strict"], ["torch-bf16"])
    assert found.names == ("torch-fp32", "torch-bf16") and found.of_class == (0, 1) and found.plans == ("", "")
    assert found.members == (("torch-fp32", "torch-fp32-strict"), ("torch-bf16",))


def test_plans_of_one_arithmetic_are_one_family_and_others_are_not():
    found = of(
        ["vgpu-a100-bf16-k1"], ["torch-bf16"], ["vgpu-l40s-bf16-k2"], ["vgpu-h100-bf16-k1"], ["vgpu-a100-fp16-k1"]
    )
    assert found.names == (
        "vgpu:ampere+ada:bf16", "torch-bf16", "vgpu:hopper+blackwell:bf16", "vgpu:turing+ampere+ada:fp16",
    )  # fmt: skip
    assert found.of_class == (0, 1, 0, 2, 3) and found.plans == ("k1", "", "k2", "k1", "k1")
    assert found.members[0] == ("vgpu-a100-bf16-k1", "vgpu-l40s-bf16-k2")
    best = found.best(np.array([[0.1, 0.3, 0.9, 0.2, 0.0]]))
    np.testing.assert_array_equal(best.score, [[0.9, 0.3, 0.2, 0.0]])
    np.testing.assert_array_equal(best.best, [[2, 1, 3, 4]])


def test_a_measured_class_that_spans_families_keeps_them_together():
    found = of(["vgpu-h100-bf16-k2"], ["vgpu-a100-bf16-k1"], ["vgpu-a100-bf16-k2", "vgpu-h100-bf16-k1"], ["torch-bf16"])
    assert found.of_class == (0, 0, 0, 1), "they were not told apart, so no answer may name one of the two"
    assert found.names[0] == "vgpu-h100-bf16-k2" and found.plans[2] == "k2 or k1"


# ---------------------------------------------------------------- what a claim comes to


PLACED = [get(i).on(h) for h, i in (("amd-zen3", "torch-bf16"), ("amd-zen4", "torch-bf16"), ("amd-zen3", "torch-fp32"))]
VGPUS = [get(f"vgpu-{g}-bf16-{p}").on(f"virtual-{g}") for g in ("a100", "h100") for p in ("k1", "k2")]


def told(*groups: list[int]) -> tuple[Families, list[Platform]]:
    """Families of classes that hold these candidates, by place."""
    every = [*PLACED, *VGPUS]
    order = [every[i] for g in groups for i in g]
    label = [c for c, g in enumerate(groups) for _ in g]
    empty = np.full((len(order), len(order)), np.nan)
    return Families.of(Classes("m", [p.id for p in order], label, empty, empty, empty), order), order


def test_a_claim_comes_to_candidates_their_classes_and_a_format():
    families, every = told([0], [1], [2], [3], [4], [5], [6])
    found = families.claimed(Claim("torch-bf16"), every)
    assert (found.platforms, found.classes, found.format, found.hardware) == ((0, 1), (0, 1), "bf16", False)
    found = families.claimed(Claim("torch-bf16", "amd-zen4"), every)
    assert (found.platforms, found.classes, found.format, found.hardware) == ((1,), (1,), "bf16", True)
    found = families.claimed(Claim("", "amd-zen3"), every)
    assert (found.platforms, found.format) == ((0, 2), None), "hardware alone claims no number format"
    merged, every = told([0, 1], [2])
    assert merged.claimed(Claim("torch-bf16"), every).classes == (0,)


def test_a_family_of_virtual_gpus_is_claimed_by_its_name_or_by_a_member():
    families, every = told([0], [3], [4], [5], [6])
    assert "vgpu:ampere+ada:bf16" in families.names
    by_name = families.claimed(Claim("vgpu:ampere+ada:bf16"), every)
    assert (by_name.platforms, by_name.format) == ((1, 2), "bf16")
    member = families.claimed(Claim("vgpu-a100-bf16-k2"), every)
    assert member.platforms == (2,) and member.classes == by_name.classes


def test_known_software_that_no_candidate_is_has_its_format_and_unknown_software_is_refused():
    families, every = told([0], [2])
    for claim in (Claim("torch-fp16"), Claim("torch-fp16", "amd-zen3"), Claim("torch-fp16", "nvidia-*")):
        assert families.claimed(claim, every) == Claimed(claim, (), (), "fp16")
    nothing = families.claimed(Claim("", "nvidia-*"), every)
    assert (nothing.platforms, nothing.format, nothing.hardware) == ((), None, True)
    with pytest.raises(DataError, match=r"known, such as torch-bf16, torch-fp32, but got 'torch'"):
        families.claimed(Claim("torch"), every)


def test_factors_are_what_all_that_is_claimed_and_all_that_was_found_differ_in():
    families, every = told([0], [1], [2])
    claimed = families.claimed(Claim("torch-bf16", "amd-zen3"), every)
    assert families.factors(claimed, ["amd-zen4/torch-bf16"], every) == {"hardware": ["amd-zen3", "amd-zen4"]}
    assert families.factors(claimed, ["amd-zen3/torch-fp32"], every) == {"dtype": ["bf16", "fp32"]}
    either = families.claimed(Claim("torch-bf16"), every)
    assert families.factors(either, ["amd-zen4/torch-bf16"], every) == {}
    assert families.factors(either, ["amd-zen3/torch-fp32"], every) == {"dtype": ["bf16", "fp32"]}
    assert families.factors(claimed, [], every) == {}


# ---------------------------------------------------------------- verdicts, on signatures of a tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("family") / "llama", "llama")


@pytest.fixture(scope="module")
def adapter(folder):
    return open_adapter(LIBRARY[0], folder)


def answered(adapter, platform):
    adapter.use(str(platform.options["architecture"]))
    adapter.book = type(adapter.book).of(platform.options["plan"])
    ids, values = top_k(adapter.logprobs(contexts(*[12] * PROBES), 1), TOP_K)
    ids, values = ids.reshape(PROBES, TOP_K), values.reshape(PROBES, TOP_K)
    header = Header(platform, "tiny", "weights", "text", "probes", Nuisance("b1"), positions=1, top_k=TOP_K,
                    batch_classes=BatchClasses({"b1": "1-64"}))  # fmt: skip
    at = np.arange(PROBES, dtype=np.int32)
    return Signature(header, at, np.zeros_like(at), np.full_like(at, 12), ids[:, 0].copy(), ids, values)


@pytest.fixture(scope="module")
def detector(adapter, folder):
    """A detector that was trained on other platforms and other models; virtual GPUs join by their signatures."""
    trained = synthetic.trained(synthetic.world())
    found = [answered(adapter, p) for p in LIBRARY]
    exact = reference_logprobs(zoo.resolve(str(folder)), contexts(*[12] * PROBES), 1)[:, 0]
    data = align("tiny", found, {"text": exact}, stored=TOP_K)
    return replace(trained, libraries={"tiny": Library.measured(data, 1, 20)})


def judged(detector: Detector, adapter, platform, **more):
    return detector.judge(Observation.of(answered(adapter, platform), 20), **more)


@pytest.mark.parametrize(("gpu", "family"), [("A40", NVIDIA_8), ("4090", NVIDIA_8), ("B200", NVIDIA_9)])
@pytest.mark.parametrize("plan", ["k2", "rev"])
def test_the_family_is_named_with_its_plan(detector, adapter, gpu, family, plan):
    """None of these GPUs stands in the library; one that computes alike does."""
    found = judged(detector, adapter, virtual(gpu, "tf32", plan))
    assert (found.answer, found.plan, found.outcome) == (family, plan, "identified")
    assert found.set_at == [family] and set(found.posterior) == {NVIDIA_8, NVIDIA_9, UNKNOWN}
    placed = detector.library("tiny").data.platforms
    assert set(found.members) == {p.id for p in placed if family_name(p) == family}
    like = "h100" if gpu == "B200" else "a100"
    nearest = detector.library("tiny").classes.members_of(f"virtual-{like}/vgpu-{like}-tf32-{plan}")[0]
    assert (found.nearest, found.batch_class) == (nearest, "b1 (1-64)")


def test_a_claim_holds_whatever_the_plan_and_falls_for_another_arithmetic(detector, adapter):
    seen = virtual("A100", "tf32", "k4")
    for claim in ("vgpu-a100-tf32-k1", "vgpu-l40s-tf32-k4", "virtual-l40s/vgpu-l40s-tf32-k1", NVIDIA_8):
        assert judged(detector, adapter, seen, claim=Claim.parse(claim)).outcome == "consistent"
    for claim in ("vgpu-h100-tf32-k4", "virtual-h100/vgpu-h100-tf32-k4", NVIDIA_9):
        assert judged(detector, adapter, seen, claim=Claim.parse(claim)).outcome == "contradicted"
    assert judged(detector, adapter, seen, claim=Claim("", "virtual-h100")).outcome == "contradicted"
    with pytest.raises(DataError, match="software that is known"):
        judged(detector, adapter, seen, claim=Claim("vgpu-mi300x"))


@pytest.mark.parametrize("plan", ["i4", "ch2", "k8t"])
@pytest.mark.parametrize("gpu", ["A100", "H100"])
def test_a_true_claim_never_falls_for_a_plan_that_no_candidate_has(detector, adapter, gpu, plan):
    found = judged(detector, adapter, virtual(gpu, "tf32", plan), claim=Claim(f"vgpu-{gpu.lower()}-tf32-k1"))
    assert found.outcome != "contradicted"
    assert found.answer in {NVIDIA_8 if gpu == "A100" else NVIDIA_9, UNKNOWN}


def test_a_virtual_claim_falls_to_a_known_class_alone(detector, adapter):
    seen, claim = virtual("H100", "tf32", "k2"), Claim("vgpu-a100-tf32-k2")
    known = judged(detector, adapter, seen, claim=claim)
    assert known.outcome == "contradicted" and known.answer == NVIDIA_9
    data = detector.library("tiny").data
    rest = data.only([i for i, p in enumerate(data.platforms) if p.options["plan"] != "k2"])
    unknown = detector.with_library(Library.measured(rest, 1, 20))
    assert judged(unknown, adapter, seen, claim=claim).outcome == "inconclusive", "nobody that is known answers so"
    families = detector.told("tiny")
    far = decide(np.full(families.count, -50.0), families, detector.calibration, probes=8, top_k=20, model="tiny")
    assert (far.answer, far.outcome) == (UNKNOWN, UNKNOWN)
