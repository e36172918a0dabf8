"""The residual and its statistics: what must not matter does not, and what must show shows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import synthetic
from hspi.evidence.aligned import Aligned
from hspi.evidence.distribution import DISTRIBUTION_FEATURES
from hspi.evidence.residual import OCTAVES, RESIDUAL_FEATURES, gather, residual_statistics, statistics_of
from hspi.reference.logits import SLOTS

COLUMN = {name: i for i, name in enumerate(RESIDUAL_FEATURES)}
OWN = slice(0, len(RESIDUAL_FEATURES) - len(DISTRIBUTION_FEATURES))


@pytest.fixture(scope="module")
def data() -> Aligned:
    return synthetic.library("one", ["bf16-a", "fp32-a"]).data


def noise(p: int = 6, k: int = 11, size: float = 1e-3) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """A residual whose median is zero, its reference and the raw values."""
    rng = np.random.default_rng(0)
    residual = size * rng.normal(size=(p, k))
    reference = -np.sort(rng.exponential(size=(p, k)), axis=1)
    residual -= np.median(residual, axis=1, keepdims=True)
    return residual, reference, (reference + residual).astype(np.float32)


def test_the_residual_is_observed_less_reference_less_its_median(data: Aligned) -> None:
    residual, reference = gather(data, 1, 2, 20)
    for p in (0, 17, 95):
        slots = [s for s in range(SLOTS) if data.rank[1, 2, p, s] < 20]
        slots.sort(key=lambda s: data.rank[1, 2, p, s])
        plain = data.logprobs[1, 2, p, slots].astype(float) - data.reference[p, slots]
        kept = np.isfinite(residual[p])
        np.testing.assert_allclose(residual[p][kept], plain - np.median(plain), atol=1e-15)
        np.testing.assert_array_equal(reference[p][kept], data.reference[p, slots])
    np.testing.assert_allclose(np.nanmedian(residual, axis=1), 0, atol=1e-15)


def test_a_shift_of_the_normaliser_leaves_the_residual_alone(data: Aligned) -> None:
    shift = np.random.default_rng(0).integers(-3, 3, (96, 1))
    moved = data.with_observation(data.logprobs[1, 2], data.rank[1, 2], data.raw[1, 2])
    moved.reference[:] += shift
    try:
        np.testing.assert_allclose(gather(moved, 0, 0, 20)[0], gather_before := gather(data, 1, 2, 20)[0], atol=1e-14)
        assert np.isfinite(gather_before).any()
    finally:
        moved.reference[:] -= shift


def test_octaves_are_shares_and_scaling_moves_them() -> None:
    residual, reference, raw = noise()
    found = residual_statistics(residual, reference, raw)
    octaves = found[:, : len(OCTAVES)]
    np.testing.assert_allclose(octaves.sum(axis=1), 1, atol=1e-6)
    doubled = residual_statistics(residual * 4, reference, raw)
    middle = slice(8, 18)  # away from both ends
    np.testing.assert_array_equal(doubled[:, middle], found[:, slice(6, 16)])
    for name in ("log2_rms", "log2_max"):
        np.testing.assert_allclose(doubled[:, COLUMN[name]] - found[:, COLUMN[name]], 2, atol=1e-4)
    for name in ("peakedness", "slope", "positive"):
        np.testing.assert_allclose(doubled[:, COLUMN[name]], found[:, COLUMN[name]], rtol=1e-4)


def test_the_order_of_tokens_does_not_matter() -> None:
    residual, reference, raw = noise()
    order = np.random.default_rng(3).permutation(residual.shape[1])
    mixed = residual_statistics(residual[:, order], reference[:, order], raw)
    np.testing.assert_allclose(mixed, residual_statistics(residual, reference, raw), atol=1e-5)


def test_tokens_that_are_missing_change_their_share_alone() -> None:
    residual, reference, raw = noise()
    gap = np.full((len(residual), 5), np.nan)
    found = residual_statistics(residual, reference, raw)[:, OWN]
    padded = residual_statistics(np.hstack([residual, gap]), np.hstack([reference, gap]), raw)[:, OWN]
    rest = np.delete(np.arange(found.shape[1]), COLUMN["missing"])
    np.testing.assert_allclose(padded[:, rest], found[:, rest], atol=1e-6)
    np.testing.assert_allclose(padded[:, COLUMN["missing"]], 5 / 16)
    assert not found[:, COLUMN["missing"]].any()


def test_slope_is_the_correlation_with_the_reference() -> None:
    _, reference, raw = noise()
    along = reference - reference.mean(axis=1, keepdims=True)
    for sign in (1, -1):
        found = residual_statistics(sign * 1e-2 * along, reference, raw)
        np.testing.assert_allclose(found[:, COLUMN["slope"]], sign, atol=1e-4)


def test_a_probe_without_any_shared_token_gives_numbers_still() -> None:
    gap = np.full((2, 4), np.nan)
    found = residual_statistics(gap, gap, np.full((2, 4), -1.0, np.float32))
    assert np.isfinite(found).all() and (found[:, COLUMN["missing"]] == 1).all()


def test_number_formats_differ_in_size_and_platforms_that_are_absent_are_nan(data: Aligned) -> None:
    found = statistics_of(data, 20)
    assert found.shape == (2, 4, 96, len(RESIDUAL_FEATURES)) and found.dtype == np.float32
    size = found[..., COLUMN["log2_rms"]].mean(axis=(1, 2))
    assert size[0] - size[1] == pytest.approx(np.log2(2e-2 / 2e-5), abs=0.5)
    lost = data.on_probes(np.arange(96))
    lost.raw[0, 1] = np.nan
    gone = statistics_of(lost, 20)
    assert np.isnan(gone[0, 1]).all() and np.isfinite(gone[1]).all()
