"""Figures against scikit-learn, and intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hspi.evaluation.measures import auroc, macro_accuracy, pair_accuracies, reliability, upper_bound, wilson


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 0.995])
@pytest.mark.parametrize("n", [20, 200])
def test_wilson_s_interval_covers_about_as_often_as_it_says(p: float, n: int) -> None:
    counts = np.random.default_rng(0).binomial(n, p, 3000)
    bounds = np.array([wilson(c, n) for c in counts])
    covered = ((bounds[:, 0] <= p) & (p <= bounds[:, 1])).mean()
    # its true coverage swings around 95 % with n and p, and sinks to about 83 % near the ends (Brown et al., 2001)
    assert covered >= 0.82 if n * min(p, 1 - p) < 2 else 0.92 <= covered <= 0.99


@given(st.integers(1, 500), st.integers(0, 500))
def test_wilson_s_interval_holds_its_share(n: int, k: int) -> None:
    low, high = wilson(min(k, n), n)
    assert 0 <= low <= min(k, n) / n + 1e-12 and min(k, n) / n - 1e-12 <= high <= 1
    assert high - low > 0
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 3000), st.integers(0, 3000), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_upper_bound_is_the_share_at_which_so_few_would_be_that_rare(n: int, k: int, confidence: float) -> None:
    """Clopper and Pearson's, by its definition: P(at most k of n) is what the confidence leaves."""
    happened = min(k, n)
    bound = upper_bound(happened, n, confidence)
    if happened == n:
        assert bound == 1.0
    else:
        assert happened / n < bound < 1 and binom.cdf(happened, n, bound) == pytest.approx(1 - confidence, rel=1e-6)


def test_a_thousand_audits_without_an_alarm_bound_the_rate_at_three_in_a_thousand() -> None:
    assert upper_bound(0, 1000) == pytest.approx(0.00299, abs=1e-5)


def test_macro_accuracy_is_scikit_learn_s_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "b", "b", "c"], 300)
    guess = np.where(rng.random(300) < 0.6, truth, "a")
    found = macro_accuracy((truth == guess).astype(float), truth, np.arange(300) % 30, 30, 1 / 3, 8)
    assert found.value == pytest.approx(balanced_accuracy_score(truth, guess))
    assert (found.samples, found.tokens, found.chance) == (300, 8, 1 / 3)
    assert found.ci_low < found.value < found.ci_high
    assert found.flat("x")["x.ci_low"] == found.ci_low


@pytest.mark.parametrize("spread", [0.0, 0.25])
def test_the_interval_covers_where_probes_of_a_block_err_together(spread: float) -> None:
    """Blocks differ in how hard they are, so that samples of one block are far from independent."""
    rng = np.random.default_rng(1)
    runs, blocks, classes, covered = 150, 24, 4, 0
    for _ in range(runs):
        hard = np.clip(0.7 + spread * rng.choice([-1, 1], blocks), 0, 1)
        right = (rng.random((classes, blocks)) < hard).astype(float).ravel()
        truth = np.repeat(list("abcd"), blocks)
        found = macro_accuracy(right, truth, np.tile(np.arange(blocks), classes), blocks, 0.25)
        covered += found.ci_low <= 0.7 <= found.ci_high
    assert covered / runs >= 0.88


def test_repeated_partitions_of_the_same_probes_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    right = (rng.random((2, 10)) < 0.7).astype(float)
    truth = np.repeat(["a", "b"], 10)
    once = macro_accuracy(right.ravel(), truth, np.tile(np.arange(10), 2), 10, 0.5)
    tenfold = macro_accuracy(np.tile(right, 10).ravel(), np.repeat(truth, 10), np.tile(np.arange(100), 2), 10, 0.5)
    assert tenfold.value == pytest.approx(once.value)
    assert tenfold.ci_high - tenfold.ci_low > 0.8 * (once.ci_high - once.ci_low)


def test_no_error_in_few_samples_is_no_proof() -> None:
    found = macro_accuracy(np.ones(10), np.repeat(["a", "b"], 5), np.tile(np.arange(5), 2), 5, 0.5)
    assert found.value == 1 and found.ci_low == pytest.approx(wilson(10, 10)[0]) and found.ci_high == 1


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_auroc_is_scikit_learn_s(known: list[int], unknown: list[int]) -> None:
    truth = [1] * len(known) + [0] * len(unknown)
    expected = roc_auc_score(truth, known + unknown)
    assert auroc(np.array(known, float), np.array(unknown, float)) == pytest.approx(expected)


def test_auroc_takes_what_has_no_score() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([-np.inf, -np.inf])) == 1.0


def test_pair_accuracies_are_duels() -> None:
    scores = np.array([[3, 1, 3], [0, 2, 1], [2, 1, 0], [0, 0, 5]], np.float32)
    truth = np.array([0, 1, 1, 2])
    found = pair_accuracies(scores, truth)
    np.testing.assert_array_equal(found, found.T)
    assert np.isnan(np.diag(found)).all()
    assert found[0, 1] == pytest.approx((1.0 + (1 + 0) / 2) / 2)  # 0 beats 1 once of once, 1 beats 0 once of twice
    assert found[0, 2] == pytest.approx((0.5 + 1.0) / 2)  # a tie, and a win


def test_pairs_at_random_are_at_one_half_and_perfect_ones_at_one() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 1000)
    noise = pair_accuracies(rng.normal(size=(4000, 4)).astype(np.float32), truth)
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(noise[off], 0.5, atol=0.06)
    assert (pair_accuracies(np.eye(4, dtype=np.float32)[truth], truth)[off] == 1).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_reliability_counts_each_sample_once_in_its_bin(samples: list[tuple[float, bool]]) -> None:
    confidence, right = (np.array(x, float) for x in zip(*samples, strict=True))
    rows = reliability(confidence, right)
    count = np.array([r["count"] for r in rows])
    assert count.sum() == len(samples)
    assert count @ [r["accuracy"] for r in rows] == pytest.approx(right.sum())
    assert count @ [r["confidence"] for r in rows] == pytest.approx(confidence.sum())
    assert all(r["bin_low"] - 1e-9 <= r["confidence"] <= r["bin_high"] + 1e-9 for r in rows)
