"""The rule that stops an audit: what the theorem promises, simulated; the fast form against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from hspi.audits.sequential import POWERS, Martingales, bets, crossing, draws, log_mean, log_process, p_values

SCORES = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=30)


def test_each_bet_falls_with_p_and_integrates_to_one() -> None:
    """So that what is won on p-values that are uniform is 1 on the mean."""
    for i, power in enumerate(POWERS):
        assert (np.diff(bets(np.linspace(1e-6, 1, 10_000))[i]) < 0).all()
        a = 1e-9  # ∫ over (0, a) of κ p^(κ-1) is a^κ: the piece next to 0, where the integrand has its pole
        rest = quad(lambda x, i=i: float(np.exp(bets(np.array(x))[i])), a, 1, limit=1000, points=[1e-6, 1e-3])[0]
        assert a**power + rest == pytest.approx(1, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_p_values_count_what_is_not_larger(calibration: list[float], scores: list[float]) -> None:
    u = draws(len(scores))
    found = p_values(calibration, scores, u)
    for t, score in enumerate(scores):
        bag = [*calibration, *scores[: t + 1]]
        below, equal = sum(b < score for b in bag), sum(b == score for b in bag)
        assert found[t] == (below + u[t] * equal) / len(bag)
        assert 0 < found[t] <= 1


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, SCORES)
def test_fast_processes_equal_the_plain_ones(first: list[float], second: list[float], scores: list[float]) -> None:
    n = min(len(first), len(second))
    many = Martingales(np.array([first[:n], second[:n], [np.nan] * n]))
    seen, u = [], draws(len(scores))
    for score, one in zip(scores, u, strict=True):
        many.add(np.array([score, score + 1, np.nan]), one)
        seen.append(many.log.copy())
    assert np.allclose(np.array(seen)[:, 0], log_process(first[:n], scores, u))
    assert np.allclose(np.array(seen)[:, 1], log_process(second[:n], [s + 1 for s in scores], u))


def test_mean_of_processes_is_theirs() -> None:
    logs = np.log(np.array([[1.0, 4.0], [3.0, 0.5]]))
    assert np.exp(log_mean(logs)) == pytest.approx([2.0, 2.25])


@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_false_alarms_stay_below_alpha_at_any_stopping_time(alpha: float) -> None:
    """3,000 honest audits of 100 answers, each looked at after every answer, on a calibration set of its own."""
    rng = np.random.default_rng(0)
    audits, calibration, answers = 3000, 40, 100
    many = Martingales(rng.normal(size=(audits, calibration)))
    alarmed = np.zeros(audits, bool)
    for _ in range(answers):
        many.add(rng.normal(size=audits), 1 - rng.random(audits))
        alarmed |= many.log >= -np.log(alpha)
    slack = 3 * np.sqrt(alpha * (1 - alpha) / audits)
    assert alarmed.mean() <= alpha + slack


def test_false_alarms_stay_below_alpha_with_ties_and_two_views() -> None:
    """Rounded scores, and the mean of two dependent processes, which is what an audit uses."""
    rng = np.random.default_rng(1)
    audits, alpha = 3000, 0.05

    def draw(*shape: int) -> np.ndarray:
        first = np.round(rng.normal(size=shape), 1)
        return np.stack([first, np.round(first + rng.normal(size=shape), 0)])

    many = Martingales(draw(audits, 30))
    alarmed = np.zeros(audits, bool)
    for _ in range(80):
        many.add(draw(audits), 1 - rng.random(audits))
        alarmed |= log_mean(many.log) >= -np.log(alpha)
    assert alarmed.mean() <= alpha + 3 * np.sqrt(alpha / audits)


def test_peeking_at_a_fixed_sample_p_value_would_not_do() -> None:
    """The same looks with the smallest conformal p-value alarm far too often: the rule earns its keep."""
    rng = np.random.default_rng(2)
    honest = ((rng.normal(size=100).tolist(), rng.normal(size=100).tolist(), 1 - rng.random(100)) for _ in range(200))
    alarms = [p_values(*audit).min() <= 0.05 for audit in honest]
    assert np.mean(alarms) > 0.5


def test_a_wrong_claim_is_found_within_a_few_answers() -> None:
    rng = np.random.default_rng(3)
    wrong = (rng.normal(-6, 1, 30).tolist() for _ in range(50))
    steps = [crossing(log_process(rng.normal(size=72).tolist(), scores, draws(30)), 0.01) for scores in wrong]
    assert max(s or 99 for s in steps) <= 12


def test_a_wrong_claim_is_found_where_every_score_is_the_same_low_one() -> None:
    steps = [crossing(log_process([1.0] * 20 + [2.0] * 20, [-9.0] * 40, draws(40, seed)), 0.01) for seed in range(50)]
    assert max(s or 99 for s in steps) <= 25


def test_crossing_is_the_first_time_or_none() -> None:
    process = np.log([1.0, 50.0, 101.0, 2.0])
    assert crossing(process, 0.01) == 3
    assert crossing(process, 0.001) is None


def test_enough_answers_that_are_all_the_same_low_one_reach_a_low_alpha() -> None:
    """The evidence goes on growing when tested scores outnumber those of calibration."""
    tops = [log_process([1.0] * 40, [-9.0] * 80, draws(80, seed)).max() for seed in range(50)]
    assert min(tops) >= -np.log(1e-5)
