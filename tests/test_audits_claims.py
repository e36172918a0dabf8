"""Claims of software, of hardware and of both, in whole audits among the platforms of two machines, with no server."""

from __future__ import annotations

from typing import Any

import pytest

import audit_world as world
from hspi.audits.run import Request
from hspi.errors import ConfigError
from hspi.verdict import Verdict

ZEN3, ZEN4 = "amd-zen3", "amd-zen4"
REQUEST = {"base_url": "http://127.0.0.1:1/v1", "served": "toy", "weights": "toy"}


def audit(serves: str | world.Formula, claim: str | None, hardware: str | None = None, **more: Any) -> Verdict:
    formula = world.EVERYONE[serves] if isinstance(serves, str) else serves
    return world.verdict_on(formula, claim, claim_hardware=hardware, among=world.fleet(), **more)


@pytest.mark.parametrize("served", world.FLEET)
def test_every_platform_of_two_machines_is_found(served: str) -> None:
    found = audit(served, None)
    assert (found.outcome, found.members) == ("identified", [served])


# ---------------------------------------------------------------- software alone


@pytest.mark.parametrize(
    ("software", "tested"),
    [
        ("fp32", [f"{ZEN3}/fp32", f"{ZEN4}/fp32", f"{ZEN4}/fp32-avx2"]),
        ("bf16", [f"{ZEN3}/bf16", f"{ZEN4}/bf16"]),
        ("fp32-engine", [f"{ZEN3}/fp32-engine"]),
        ("int8", [f"{ZEN4}/int8"]),
        ("fp32-avx2", [f"{ZEN4}/fp32-avx2"]),
    ],
)
def test_a_claim_of_software_is_tested_on_every_hardware_and_holds_on_each(software: str, tested: list[str]) -> None:
    for served in tested:
        found = audit(served, software)
        assert (found.outcome, found.exit_code, found.tested) == ("consistent", 0, tested), found.why
        assert found.members == [served] and found.claim == software


def test_a_claim_of_software_never_falls_to_its_hardware_or_isa() -> None:
    """Not to a machine that nobody collected, to none in a batch class that nobody collected, nor to a cap."""
    serves = [world.STRANGER, *[f for f in world.FLEET.values() if f.software == "fp32"]]
    serves += [world.uncollected(f, 0.55) for f in serves]
    for formula in serves:
        for order in range(4):
            assert audit(formula, "fp32", seed=order).outcome != "contradicted"
    capped = audit(f"{ZEN4}/fp32", "fp32-avx2")
    assert capped.outcome == "inconclusive" and capped.claim_p_value is not None and capped.claim_p_value <= 0.01


@pytest.mark.parametrize("software", ["fp32", "fp32-engine", "bf16", "int8"])
def test_a_false_claim_of_software_falls_on_whichever_hardware(software: str) -> None:
    true = {software, *(["fp32-avx2"] if software == "fp32" else [])}
    for served in [s for s, formula in world.FLEET.items() if formula.software not in true]:
        found = audit(served, software)
        assert (found.outcome, found.answer) == ("contradicted", served), found.why
        assert len(found.tested) == 1 or "hardware" not in found.failed_factors


# ---------------------------------------------------------------- hardware, alone and with software


@pytest.mark.parametrize(
    ("claim", "hardware", "outcome", "tested"),
    [
        ("fp32", None, "consistent", 3),
        (f"{ZEN4}/fp32", None, "consistent", 1),
        (f"{ZEN3}/fp32", None, "contradicted", 1),
        (None, ZEN4, "consistent", 4),
        (None, ZEN3, "contradicted", 3),
        (None, "amd-*", "consistent", 7),
        (None, "intel-*", "inconclusive", 0),
        ("fp32", "amd-*", "consistent", 2),
        ("fp32", "*-zen4", "consistent", 1),
        ("fp32", ZEN3, "contradicted", 1),
        ("fp32", "intel-*", "inconclusive", 0),
    ],
)
def test_software_hardware_and_both_are_three_claims_with_three_answers(
    claim: str | None, hardware: str | None, outcome: str, tested: int
) -> None:
    found = audit(f"{ZEN4}/fp32", claim, hardware)
    assert (found.outcome, len(found.tested)) == (outcome, tested), found.why
    assert found.answer == f"{ZEN4}/fp32"
    if outcome == "contradicted":
        assert found.failed_factors["hardware"] == [ZEN3, ZEN4] and f"those of {ZEN4}/fp32" in found.why
    if not tested:
        assert found.claim_p_value is None and "was not tested" in found.why
        assert "tested        no candidate is what is claimed" in found.lines()


def test_a_batch_class_that_nobody_collected_is_no_other_machine() -> None:
    for serves in (f"{ZEN3}/fp32", f"{ZEN4}/bf16"):
        for unrest in (0.45, 0.55, 1.0):
            formula = world.uncollected(world.FLEET[serves], unrest)
            for claim, hardware in ((serves, None), (None, formula.machine)):
                assert audit(formula, claim, hardware).outcome == "inconclusive"


# ---------------------------------------------------------------- what nobody can test


@pytest.mark.parametrize("served", [f"{ZEN4}/fp32", f"{ZEN3}/bf16"])
def test_a_claim_that_nobody_can_test_says_what_was_and_what_was_not(served: str) -> None:
    found = audit(served, "amd-zen5/fp32" if "fp32" in served else "amd-zen5/bf16")
    assert (found.outcome, found.exit_code, found.answer, found.tested) == ("inconclusive", 3, served, [])
    assert f"no candidate is {found.claim}, so the claim itself was not tested" in found.why
    assert "its number format" in found.why and "is not contradicted" in found.why and found.probes >= 32


@pytest.mark.parametrize("served", [f"{ZEN3}/bf16", f"{ZEN4}/int8"])
def test_a_claim_that_nobody_can_test_falls_on_a_coarser_number_format(served: str) -> None:
    for formula in (world.FLEET[served], world.uncollected(world.FLEET[served], 0.55)):
        found = audit(formula, "amd-zen5/fp32")
        assert (found.outcome, found.exit_code, found.claim_p_value) == ("contradicted", 1, None)
        assert f"the number format {formula.dtype}, none the claimed fp32" in found.why
        assert audit(formula, None, "amd-zen5").outcome == "inconclusive", "hardware alone has no number format"


# ---------------------------------------------------------------- asking for it


def test_a_request_takes_one_claim_and_names_its_folder_after_it() -> None:
    named = {
        (None, None): "toy",
        ("torch-bf16", None): "toy-torch-bf16",
        ("amd-zen4/torch-bf16", None): "toy-amd-zen4-torch-bf16",
        ("torch-bf16", "amd-zen4"): "toy-amd-zen4-torch-bf16",
        (None, "nvidia-h100-*"): "toy-nvidia-h100----",
    }
    for (claim, hardware), folder in named.items():
        assert Request(**REQUEST, claim=claim, claim_hardware=hardware).folder.name == folder
    for wrong, why in (
        ({"claim": "amd-zen4/x", "claim_hardware": "amd-*"}, "one hardware"),
        ({"claim": ""}, "empty"),
        ({"claim_format": "bf16", "claim_hardware": "amd-*"}, "must stand alone"),
        ({"claim_format": "bf16", "claim": "x"}, "must stand alone"),
    ):
        with pytest.raises(ConfigError, match=why):
            Request(**REQUEST, **wrong)
