"""Claims of software, of hardware and of both: how they are read, and which candidates are what they say."""

from __future__ import annotations

import pytest

from hspi.errors import ConfigError
from hspi.platforms.catalogue import get
from hspi.platforms.claim import Claim
from hspi.platforms.record import Platform

CANDIDATES = [
    *(get(name).on("amd-zen3") for name in ("torch-bf16", "torch-bf16-avx2", "torch-bf16-eager", "torch-fp32-avx2")),
    *(get(name).on("amd-zen4") for name in ("torch-bf16", "torch-bf16-avx512")),
    get("vllm-bf16").on("nvidia-h100-pcie"),
    get("vllm-bf16").on("nvidia-h100-sxm"),
]


def covered(claim: str | None, hardware: str | None = None) -> list[str]:
    parsed = Claim.parse(claim, hardware)
    assert parsed is not None
    return [CANDIDATES[i].id for i in parsed.covers(CANDIDATES)]


@pytest.mark.parametrize(
    ("claim", "hardware", "found", "text"),
    [
        ("torch-bf16", None, Claim("torch-bf16"), "torch-bf16"),
        ("amd-zen4/torch-bf16", None, Claim("torch-bf16", "amd-zen4"), "amd-zen4/torch-bf16"),
        (None, "nvidia-h100-*", Claim("", "nvidia-h100-*"), "nvidia-h100-*/*"),
        ("torch-bf16", "amd-*", Claim("torch-bf16", "amd-*"), "amd-*/torch-bf16"),
        ("amd-zen4/torch-bf16", "amd-zen4", Claim("torch-bf16", "amd-zen4"), "amd-zen4/torch-bf16"),
        ("vgpu:ampere+ada:bf16", None, Claim("vgpu:ampere+ada:bf16"), "vgpu:ampere+ada:bf16"),
    ],
)
def test_a_claim_is_read_as_it_is_written(claim: str, hardware: str, found: Claim, text: str) -> None:
    assert Claim.parse(claim, hardware) == found and str(found) == text


def test_without_a_word_there_is_no_claim() -> None:
    assert Claim.parse(None) is None


@pytest.mark.parametrize(
    ("claim", "hardware", "why"),
    [
        ("amd-zen4/torch-bf16", "amd-zen3", "one hardware, but it names 'amd-zen4' and 'amd-zen3'"),
        ("", None, "software, hardware or both"),
        ("/", None, "software, hardware or both"),
        (None, "", "software, hardware or both"),
    ],
)
def test_a_claim_of_two_machines_or_of_nothing_is_refused(claim: str, hardware: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Claim.parse(claim, hardware)


def test_software_alone_is_claimed_on_any_hardware_and_under_any_cap() -> None:
    """A capped platform answers as the software would on a CPU that has no more."""
    expected = ["amd-zen3/torch-bf16", "amd-zen3/torch-bf16-avx2", "amd-zen4/torch-bf16", "amd-zen4/torch-bf16-avx512"]
    assert covered("torch-bf16") == expected
    assert covered("torch-bf16-eager") == ["amd-zen3/torch-bf16-eager"], "another attention is other software"


def test_a_cap_that_is_claimed_is_that_cap() -> None:
    assert covered("torch-bf16-avx2") == ["amd-zen3/torch-bf16-avx2"]


def test_software_of_the_catalogue_is_known_where_candidates_have_its_cap_alone() -> None:
    assert covered("torch-fp32") == ["amd-zen3/torch-fp32-avx2"]


def test_with_hardware_a_claim_is_of_that_software_there_alone() -> None:
    assert covered("amd-zen3/torch-bf16") == ["amd-zen3/torch-bf16"], "a cap is not what is claimed"
    assert covered("amd-zen5/torch-bf16") == []
    assert covered("vllm-bf16", "nvidia-h100-*") == ["nvidia-h100-pcie/vllm-bf16", "nvidia-h100-sxm/vllm-bf16"]


def test_hardware_alone_is_claimed_with_any_software() -> None:
    assert covered(None, "amd-zen4") == ["amd-zen4/torch-bf16", "amd-zen4/torch-bf16-avx512"]
    assert covered("amd-zen4/") == covered(None, "amd-zen4")
    assert covered(None, "nvidia-h100-*") == ["nvidia-h100-pcie/vllm-bf16", "nvidia-h100-sxm/vllm-bf16"]
    assert covered(None, "intel-*") == []


def test_unknown_software_is_nobody_s_and_has_no_record() -> None:
    claim = Claim("mystery-engine")
    assert claim.covers(CANDIDATES) == [] and claim.record(CANDIDATES) is None


def test_a_record_comes_from_the_candidates_first() -> None:
    own = Platform("torch-fp16", "elsewhere").on("rig")
    assert Claim("torch-fp16").record([own]) is own
    assert Claim("torch-fp16").record(CANDIDATES) == get("torch-fp16")
    assert Claim("", "amd-zen3").record(CANDIDATES) is None
