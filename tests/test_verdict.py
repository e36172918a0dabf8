"""What a verdict promises: valid p-values, sets that cover, answers that follow from both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import audit_world as world
from hspi.detectors.calibration import Calibration, fit_temperature
from hspi.detectors.detector import decide
from hspi.detectors.virtual_families import Families
from hspi.errors import DataError
from hspi.evidence.observation import Observation
from hspi.platforms.claim import Claim
from hspi.signatures.top_k import top_k
from hspi.verdict import EXITS, UNKNOWN, Verdict

NAMES, MEMBERS = ("a", "b", "c"), (("a", "a2"), ("b",), ("c",))
TOLD = Families((0, 1, 2), NAMES, MEMBERS, ("",) * 3, ("a", "a2", "b", "c"), (0, 0, 1, 2), (False,) * 3)
KNOWN = Calibration({"8x20": list(np.linspace(2, 5, 199))}, temperature=1.0, unknown_logit=-1.0)


def judged(scores: list[float], calibration: Calibration = KNOWN, **more: object) -> Verdict:
    common = {"probes": 8, "top_k": 20, "model": "m"}
    return decide(np.array(scores), TOLD, calibration, **{**common, **more})  # type: ignore[arg-type]


# ---------------------------------------------------------------- p-values and sets


@pytest.mark.parametrize("n", [9, 99, 400])
def test_p_values_of_exchangeable_scores_are_valid(n: int) -> None:
    rng = np.random.default_rng(n)
    runs = 4000
    scores = rng.standard_t(2, (runs, n + 1))
    p = np.array([Calibration({"1x1": sorted(s[:-1])}).p_value(s[-1], 1, 1) for s in scores])
    for alpha in (0.01, 0.05, 0.1, 0.3, 0.7):
        slack = 3 * np.sqrt(alpha * (1 - alpha) / runs)
        assert (p <= alpha).mean() <= alpha + slack, "super-uniform: a true claim is rejected at most this often"
        assert (p <= alpha).mean() >= alpha - 1 / (n + 1) - slack, "and not much less often"


def test_ties_do_not_break_validity() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (4000, 50)).astype(float)
    p = np.array([Calibration({"1x1": sorted(s[:-1])}).p_value(s[-1], 1, 1) for s in scores])
    assert all((p <= a).mean() <= a + 0.015 for a in (0.05, 0.2, 0.5))


def test_the_set_covers_the_truth() -> None:
    """Also where the detector is bad: the scores of wrong classes are as high as those of right ones."""
    rng = np.random.default_rng(1)
    alpha, runs, covered = 0.1, 3000, 0
    for _ in range(runs):
        known = Calibration({"8x20": sorted(rng.normal(size=60))})
        found = judged(rng.normal(size=3).tolist(), known, alpha=alpha)
        covered += "b" in found.set_at
    assert covered / runs >= 1 - alpha - 3 * np.sqrt(alpha * (1 - alpha) / runs)


@given(st.integers(1, 64), st.integers(1, 64))
def test_levels_are_those_of_the_nearest_size_that_is_not_larger(probes: int, top_k: int) -> None:
    sizes = {"32x20": [9.0], "8x20": [8.0], "8x5": [7.0], "1x5": [6.0]}
    chosen = Calibration(sizes).size(probes, top_k)
    n, k = map(int, chosen.split("x"))
    if probes >= 1 and top_k >= 5:
        assert n <= probes and k <= top_k
        assert n == max(a for a in (32, 8, 1) if a <= probes and (top_k >= 20 or a != 32))
    else:
        assert chosen == "1x5"


def test_p_value_counts_scores_that_are_as_low() -> None:
    known = Calibration({"1x1": [1.0, 2.0, 2.0, 3.0]})
    np.testing.assert_allclose(known.p_value(np.array([0.0, 1.0, 2.0, 9.0, -np.inf]), 1, 1), [0.2, 0.4, 0.8, 1.0, 0.2])


def test_an_empty_calibration_judges_nothing() -> None:
    with pytest.raises(DataError, match="hold scores"):
        judged([1, 2, 3], Calibration())


# ---------------------------------------------------------------- posterior and temperature


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=5), st.floats(0.3, 20), st.floats(-50, 50))
def test_the_posterior_is_one_and_follows_the_scores(scores: list[float], temperature: float, unknown: float) -> None:
    post = Calibration({}, temperature, unknown).posterior(np.array([scores]))[0]
    assert post.sum() == pytest.approx(1) and (post >= 0).all()
    everything = np.array([*scores, unknown])
    order = np.argsort(everything)
    assert (np.diff(post[order]) >= -1e-12).all()


def test_classes_without_a_signature_get_nothing() -> None:
    post = KNOWN.posterior(np.full(3, -np.inf))
    np.testing.assert_array_equal(post, [0, 0, 0, 1])


def test_the_fitted_temperature_is_the_one_that_the_scores_were_heated_with() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 4))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (rng.random((len(logits), 1)) < chance.cumsum(axis=1)).argmax(axis=1)
    for heat in (0.5, 1.0, 4.0):
        assert fit_temperature(heat * logits, truth) == pytest.approx(heat, rel=0.06)


# ---------------------------------------------------------------- decisions


def test_a_clear_winner_is_named_with_its_members() -> None:
    found = judged([4.0, -9.0, -9.0])
    assert (found.answer, found.members, found.set_at, found.outcome) == ("a", ["a", "a2"], ["a"], "identified")
    assert sum(found.posterior.values()) == pytest.approx(1) and set(found.posterior) == {*NAMES, UNKNOWN}


def test_what_fits_nothing_is_unknown() -> None:
    far = judged([-20.0, -30.0, -40.0])
    assert (far.answer, far.members, far.set_at, far.outcome) == (UNKNOWN, [], [UNKNOWN], UNKNOWN)
    # the posterior alone would name it, but no right candidate ever scored this low
    low = judged([1.5, -30.0, -40.0])
    assert low.posterior["a"] > 0.9 and low.answer == UNKNOWN


def test_two_that_fit_are_inconclusive() -> None:
    assert judged([4.0, 3.9, -9.0]).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("served", "claim", "outcome"),
    [
        ("cpu/bf16", "bf16", "consistent"),
        ("cpu/int8", "cpu/int8", "consistent"),
        ("cpu/bf16", "bf16-eager", "contradicted"),  # another kernel's very values
        ("cpu/bf16", "int8", "contradicted"),
        ("cpu/int8", "cpu/fp32", "contradicted"),
        ("cpu/fp32-engine", "fp32", "inconclusive"),  # it is excluded, but what answers so is unsteady
        ("cpu/bf16", "amd-zen3/bf16", "inconclusive"),  # nobody can test it
        ("cpu/int8", "amd-zen3/bf16", "contradicted"),  # by its number format
        ("amd-zen5/fp32", "fp32", "inconclusive"),  # hardware that nobody collected
    ],
)
def test_files_and_endpoints_come_to_one_outcome(served: str, claim: str, outcome: str) -> None:
    formula = world.EVERYONE[served]
    probes = [("tokens", p.id) for p in world.material("http://h").probes[:32]]
    ids, values = top_k(world.answers(formula, 17)[[i for _, i in probes]], 20)
    of_file = world.detector().judge(Observation("toy", probes, ids, values), claim=Claim.parse(claim))
    of_endpoint = world.verdict_on(formula, claim)
    for found in (of_file, of_endpoint):
        assert found.outcome == outcome == found.to_dict()["outcome"], found.why
        assert found.exit_code == {"consistent": 0, "contradicted": 1, "inconclusive": 3}[outcome]
        excluded = found.claim_p_value is not None and found.claim_p_value <= found.alpha
        if found.claim_p_value is not None:
            assert excluded == (outcome != "consistent")
    assert of_file.tested == of_endpoint.tested and of_file.claim == of_endpoint.claim == claim


def test_outcomes_without_a_claim_have_their_exit_codes() -> None:
    assert [EXITS[o] for o in ("identified", "unknown", "inconclusive")] == [0, 3, 3]


def test_a_claim_of_what_nobody_knows_is_an_error() -> None:
    seen = Observation("toy", [("tokens", 0)], *top_k(world.answers(world.FORMULAS["cpu/bf16"], 0)[:1], 20))
    with pytest.raises(DataError, match=r"known, such as bf16, .*, but got 'h100'"):
        world.detector().judge(seen, claim=Claim("h100"))


def test_calibrations_are_saved_as_json(tmp_path: Path) -> None:
    odd = Calibration({"1x5": [-np.inf, 0.1 + 0.2]}, 1.5, -0.25)
    path = tmp_path / "c.json"
    path.write_text(odd.to_json())
    assert Calibration.read(path) == odd
    for text in ("", "{", "[1]", '{"colour": 1}'):
        path.write_text(text)
        with pytest.raises(DataError, match="saved calibration"):
            Calibration.read(path)
    with pytest.raises(DataError):
        Calibration.read(tmp_path / "absent.json")
