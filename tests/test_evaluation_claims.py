"""What becomes of claims under the protocol, row by row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import synthetic
from hspi.detectors.grounds import Grounds
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.evaluation.claims import Judged, Rates, _parted
from synthetic import SEED, World

TREES = {"n_estimators": 15, "max_depth": 3}
FP32_A, FP32_B = 3, 4


def test_rates_are_by_platform_and_batch_class_and_the_worst_has_its_bound() -> None:
    rates = Rates()
    rates.add(("p", "b1"), np.zeros(1000, bool))
    rates.add(("p", "b3"), np.arange(500) < 4)
    rates.add(("p", "b3"), np.zeros(500, bool))
    assert rates.total == (4, 2000) and rates.rate == 0.002
    who, worst, upper = rates.worst
    assert who == ("p", "b3") and worst == 0.004 and worst < upper < 0.01
    assert np.isnan(Rates().rate)


@pytest.fixture(scope="module")
def judged(world: World) -> Any:
    """Rows of a bench, as a fold of the protocol judges them."""
    bench = Bench.of(world.libraries[0], SEED)
    verifier = fit_verifier([bench], parameters=TREES)
    levels = calibrate(verifier, [bench])
    grounds = Grounds.of(bench.data, bench.classes.label)

    def one(platform: int, setting: int, apart: bool = False, held: Grounds = grounds) -> Judged:
        fold = SimpleNamespace(verifier=verifier)
        return Judged(fold, levels, bench, (platform, setting), 40, apart).fit_by(held)  # type: ignore[arg-type]

    return SimpleNamespace(one=one, grounds=grounds, label=bench.classes.label, bench=bench)


NOT_COARSER = np.zeros(40, bool)


def contradicted(judged: Any, seen: Judged, claimed: int, grounds: Grounds | None = None) -> float:
    found = seen.contradicts(grounds or judged.grounds, claimed, judged.label[claimed], 0.01, NOT_COARSER)
    return float(found.mean())


def test_a_steady_platform_fits_its_own_signatures_and_another_one_s_claim_falls(judged: Any) -> None:
    seen = judged.one(FP32_A, 2)
    assert seen.p.shape == (40, 5) and seen.fits[:, FP32_A].all() and seen.fits.sum() == 40
    assert [contradicted(judged, seen, c) for c in (FP32_A, FP32_B, 1)] == [0, 1, 1]


def test_a_restless_platform_s_claim_of_another_format_falls_and_of_its_own_does_not(judged: Any) -> None:
    seen = judged.one(0, 2)
    assert [contradicted(judged, seen, c) for c in (0, 2, 1, FP32_A)] == [0, 0, 0, 1]


@pytest.mark.parametrize("platform", [0, 1, FP32_A, FP32_B, 5])
def test_a_true_claim_holds_where_its_batch_class_is_held_out(judged: Any, platform: int) -> None:
    parted = _parted(judged.bench, judged.grounds, (platform, 1))
    seen = judged.one(platform, 1, apart=True, held=parted)
    assert not seen.same[:, platform].any() or platform in (0, 2, 5)
    assert contradicted(judged, seen, platform, parted) == 0


def test_residuals_that_exclude_the_format_contradict_what_is_excluded_alone(judged: Any) -> None:
    seen = judged.one(0, 2)
    coarser = np.arange(40) < 10
    label = judged.label
    assert seen.contradicts(judged.grounds, 1, label[1], 0.01, coarser).tolist() == coarser.tolist()
    assert not seen.contradicts(judged.grounds, 0, label[0], 0.01, coarser).any(), "the claim itself fits"


def test_a_batch_class_that_is_held_out_stands_in_no_library(world: World) -> None:
    bench = Bench.plain(world.libraries[0], SEED, (20,))
    grounds = Grounds.of(bench.data, bench.classes.label)
    parted = _parted(bench, grounds, (FP32_A, 2))
    assert parted is not None and not parted.complete[FP32_A] and parted.complete[FP32_B]
    one = [s for s in synthetic.signatures("one", ["fp32-a", "bf16-b"]) if s.header.nuisance.name == "b1"]
    lone = Bench.plain(synthetic.library_of("one", one), SEED, (20,))
    assert _parted(lone, Grounds.of(lone.data, lone.classes.label), (0, 0)) is None, "nothing would be left"
