"""The rule of contradiction, branch by branch: whose fit speaks against which claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

import synthetic
from hspi.detectors.grounds import DISTANCE, EQUAL, FITS, LIKE, MISSING, SCALE, STRAYS, Grounds, against_format
from hspi.detectors.number_format import Formats
from hspi.evidence.replay import PAIR_FEATURES
from hspi.platforms.catalogue import get
from hspi.platforms.record import Platform

# In the order of the tests' vectors; every one a class of its own, unless a test says otherwise.
PLATFORMS = (
    get("torch-bf16").on("amd-zen3"),  # what is claimed
    get("torch-bf16").on("amd-zen4"),  # the same software on another machine
    get("torch-bf16-avx2").on("amd-zen3"),  # … held to another ISA
    get("torch-bf16-eager").on("amd-zen3"),  # another kernel
    get("openvino-bf16").on("amd-zen3"),  # another engine
    get("torch-fp16").on("amd-zen3"),  # another number format
    get("torch-bf16").on("amd-zen5"),  # unsteady: of the same software
    Platform("other-bf16", "other", dtype="bf16").on("amd-zen3"),  # unsteady: another engine, the same format
    get("torch-int8-x86").on("amd-zen3"),  # unsteady: another format
    get("ct2-int8").on("amd-zen3"),  # steady and quantized as that one is
)
CLAIMED, ELSEWHERE, CAPPED, KERNEL, ENGINE, FORMAT, RESTLESS_TWIN, RESTLESS_ENGINE, RESTLESS_FORMAT, STIFF = range(10)
N = len(PLATFORMS)
STEADY = tuple(i < RESTLESS_TWIN or i == STIFF for i in range(N))
GROUNDS = Grounds(PLATFORMS, tuple(range(N)), STEADY, STEADY)
OTHERS = {KERNEL, ENGINE, FORMAT, RESTLESS_FORMAT, STIFF}


def rivals(grounds: Grounds, claimed: list[int], hardware: bool) -> set[int]:
    return set(np.flatnonzero(grounds.rivals(claimed, hardware)).tolist())


def fits(*who: int) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(N), who)


# ---------------------------------------------------------------- whose fit counts


def test_another_format_engine_or_kernel_speaks_against_a_claim() -> None:
    for hardware in (False, True):
        assert rivals(GROUNDS, [CLAIMED], hardware) >= {KERNEL, ENGINE, FORMAT}


def test_an_unsteady_rival_speaks_across_number_formats_alone() -> None:
    found = rivals(GROUNDS, [CLAIMED], True)
    assert RESTLESS_FORMAT in found and not {RESTLESS_ENGINE, RESTLESS_TWIN} & found


def test_an_unsteady_rival_of_its_format_speaks_against_a_steady_quantized_claim_that_names_its_hardware() -> None:
    """Its error of quantizing stays in every batch class, where the order of a float's sums is all that it has."""
    assert RESTLESS_FORMAT in rivals(GROUNDS, [STIFF], hardware=True)
    assert RESTLESS_FORMAT not in rivals(GROUNDS, [STIFF], hardware=False)
    restless = replace(GROUNDS, steady=tuple(x and i != STIFF for i, x in enumerate(STEADY)))
    assert RESTLESS_FORMAT not in rivals(restless, [STIFF], hardware=True)


def test_a_claim_without_hardware_never_falls_to_hardware_or_isa() -> None:
    assert rivals(GROUNDS, [CLAIMED], hardware=False) == OTHERS
    assert rivals(GROUNDS, [CLAIMED, ELSEWHERE, CAPPED], hardware=False) == OTHERS


def test_a_claim_with_hardware_falls_to_it_where_no_batch_class_is_missing() -> None:
    assert rivals(GROUNDS, [CLAIMED], hardware=True) == OTHERS | {ELSEWHERE, CAPPED}
    assert rivals(GROUNDS.without(CLAIMED), [CLAIMED], hardware=True) == OTHERS
    assert rivals(GROUNDS.without(ELSEWHERE), [CLAIMED], hardware=True) == OTHERS | {ELSEWHERE, CAPPED}, (
        "what a rival may answer besides what it was seen to answer is nothing to the claim"
    )


def test_a_claim_of_several_platforms_needs_every_class_of_each() -> None:
    assert rivals(GROUNDS, [CLAIMED, CAPPED], hardware=True) == OTHERS | {ELSEWHERE}
    assert rivals(GROUNDS.without(CAPPED), [CLAIMED, CAPPED], hardware=True) == OTHERS


def test_a_claim_s_own_class_and_what_nobody_tells_from_it_is_no_rival() -> None:
    one_class = replace(GROUNDS, label=tuple(CLAIMED if i in (KERNEL, ELSEWHERE) else i for i in range(N)))
    assert rivals(one_class, [CLAIMED], hardware=True) == (OTHERS | {CAPPED}) - {KERNEL}


@pytest.mark.parametrize("hardware", [False, True])
def test_nobody_is_a_rival_of_a_claim_that_no_candidate_meets(hardware: bool) -> None:
    assert rivals(GROUNDS, [], hardware) == set()
    assert GROUNDS.against([], hardware, np.ones(N, bool), pairs(0.0, scale=9.0)) == ""
    assert not GROUNDS.decides([], hardware, np.ones(N, bool))


# ---------------------------------------------------------------- what fits


def pairs(near: float, missing: float = 0.0, scale: float = 0.0) -> npt.NDArray[np.float32]:
    out = np.zeros((N, len(PAIR_FEATURES)), np.float32)
    out[:, EQUAL], out[:, MISSING], out[:, SCALE] = near, missing, scale
    return out


def test_a_steady_candidate_fits_by_its_values_and_an_unsteady_one_by_the_verifier() -> None:
    all_of_them, nobody = np.ones(N, bool), np.zeros(N, bool)
    steady = np.asarray(STEADY)
    np.testing.assert_array_equal(GROUNDS.fits(pairs(1.0), nobody), steady)
    np.testing.assert_array_equal(GROUNDS.fits(pairs(0.5), all_of_them), ~steady)
    assert GROUNDS.fits(pairs(FITS), all_of_them).all() and not GROUNDS.fits(pairs(0.97), nobody).any()


def test_an_unsteady_candidate_fits_beside_residuals_of_its_own_size_alone() -> None:
    all_of_them = np.ones(N, bool)
    assert GROUNDS.fits(pairs(0.5, scale=LIKE - 0.1), all_of_them)[RESTLESS_FORMAT]
    for scale in (-LIKE - 0.1, LIKE + 0.1, np.nan):
        assert not GROUNDS.fits(pairs(0.5, scale=scale), all_of_them)[RESTLESS_FORMAT]


def test_an_unsteady_rival_must_be_nearer_than_what_is_claimed() -> None:
    """It fits whatever is no farther from it than it is from itself: an honest torch-bf16-eager on a machine that no
    signature came from was said to be torch-int8-qnnpack."""
    seen = pairs(0.5)
    seen[:, DISTANCE] = -0.3
    for own, rival, speaks in ((-0.3, -0.08, False), (-0.3, -0.3, False), (-0.08, -0.3, True), (np.nan, -0.3, True)):
        seen[CLAIMED, DISTANCE], seen[RESTLESS_FORMAT, DISTANCE] = own, rival
        found = GROUNDS.speaks([CLAIMED], False, fits(RESTLESS_FORMAT), seen)
        assert found[RESTLESS_FORMAT] == speaks == found.any()
        assert bool(GROUNDS.against([CLAIMED], False, fits(RESTLESS_FORMAT), seen)) == speaks


def test_nobody_speaks_where_the_claim_s_own_values_came() -> None:
    assert GROUNDS.speaks([CLAIMED], False, fits(KERNEL, CLAIMED), pairs(0.5))[KERNEL]
    assert not GROUNDS.speaks([CLAIMED], False, fits(KERNEL, CLAIMED), pairs(1.0)).any()
    one = pairs(0.5)
    one[CAPPED, EQUAL] = 1.0
    assert not GROUNDS.speaks([CLAIMED, CAPPED], False, fits(KERNEL), one).any()
    assert GROUNDS.speaks([CLAIMED], False, fits(KERNEL), one)[KERNEL]


def test_values_are_the_same_only_where_hardly_any_is_missing() -> None:
    assert Grounds.same(pairs(1.0)).all() and Grounds.same(pairs(1.0, 0.019)).all()
    assert not Grounds.same(pairs(1.0, 0.03)).any() and not Grounds.same(np.full_like(pairs(1.0), np.nan)).any()


def test_the_ground_names_whose_answers_they_are() -> None:
    assert GROUNDS.against([CLAIMED], False, fits(CLAIMED), None) == ""
    assert GROUNDS.against([CLAIMED], False, fits(ELSEWHERE, CAPPED, RESTLESS_ENGINE), None) == ""
    assert GROUNDS.against([CLAIMED], True, fits(ELSEWHERE), None) == "the answers are those of amd-zen4/torch-bf16"
    assert GROUNDS.against([CLAIMED], False, fits(ENGINE), None) == "the answers are those of amd-zen3/openvino-bf16"


def test_values_of_a_rival_that_nobody_claimed_gave_decide() -> None:
    assert GROUNDS.decides([CLAIMED], False, fits(KERNEL))
    assert not GROUNDS.decides([CLAIMED], False, fits(KERNEL, CLAIMED)), "they are the claim's as well"
    assert GROUNDS.decides([CLAIMED], False, fits(RESTLESS_FORMAT)), (
        "an unsteady one's as well, where it repeats itself"
    )
    assert not GROUNDS.decides([CLAIMED], False, fits(ELSEWHERE)) and GROUNDS.decides([CLAIMED], True, fits(ELSEWHERE))
    many = np.stack([fits(KERNEL), fits(CLAIMED), fits()])
    assert GROUNDS.decides([CLAIMED], False, many).tolist() == [True, False, False]


# ---------------------------------------------------------------- residuals that are far larger


@pytest.mark.parametrize("scale", [STRAYS - 0.1, STRAYS + 0.1, np.nan])
@pytest.mark.parametrize("hardware", [False, True])
def test_residuals_far_larger_than_the_claim_s_speak_against_it_where_it_names_hardware(
    hardware: bool, scale: float
) -> None:
    """Of other hardware nothing is known: the same software may compute in a coarser format there."""
    expected = hardware and scale > STRAYS
    seen = pairs(0.0, scale=scale)
    assert GROUNDS.strays([CLAIMED], hardware, seen) == expected
    why = GROUNDS.against([CLAIMED], hardware, fits(), seen)
    assert why == ("its residuals are far larger: other weights answer, or a much coarser computation" * expected)
    assert GROUNDS.against([CLAIMED], hardware, fits(), None) == "", "a level that sees no residuals says nothing"


def test_residuals_are_held_against_every_platform_that_the_claim_may_mean() -> None:
    seen = pairs(0.0, scale=5.0)
    seen[CAPPED, SCALE] = 0.5
    assert GROUNDS.strays([CLAIMED], True, seen) and not GROUNDS.strays([CLAIMED, CAPPED], True, seen)
    many = np.stack([seen, pairs(0.0)])
    assert GROUNDS.strays([CLAIMED], True, many).tolist() == [True, False]
    assert GROUNDS.strays([CLAIMED], False, many).tolist() == [False, False]


# ---------------------------------------------------------------- the number format


def told(found: str, claimed: str, largest: float = 0.0) -> Formats:
    return Formats({found: (0.95, 0.99), claimed: (0.0, largest)}, size=0.0)


@pytest.mark.parametrize(
    ("formats", "claimed", "speaks"),
    [
        (told("bf16", "fp32"), "fp32", True),
        (told("int8", "bf16"), "bf16", True),
        (told("fp32", "bf16"), "bf16", False),  # finer than it says
        (told("bf16", "fp32", largest=0.02), "fp32", False),  # some block does not rule it out
        (replace(told("bf16", "fp32"), size=9.0), "fp32", False),  # answers of other weights
        (told("bf16", "fp32"), "nf4", False),  # a format that nobody trained on
        (told("bf16", "fp32"), None, False),
        (None, "fp32", False),
    ],
)
def test_residuals_speak_against_a_finer_format_alone(formats: Formats | None, claimed: str, speaks: bool) -> None:
    ground = against_format(formats, claimed)
    assert bool(ground) == speaks
    if speaks and formats:
        assert f"{formats.found}, none the claimed {claimed}" in ground


def test_grounds_come_from_a_library() -> None:
    library = synthetic.library("one")
    found = Grounds.of(library.data, library.classes.label)
    assert found.label == (0, 1, 0, 2, 3, 4) and found.platforms == tuple(library.data.platforms)
    assert found.steady == found.complete == (False, True, False, True, True, False)
