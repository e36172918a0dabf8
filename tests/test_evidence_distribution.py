"""What log-probabilities alone show: bits that come apart and together again, and grids that are seen."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hspi.evidence.distribution import DISTRIBUTION_FEATURES, GRID_BITS, grid_statistics, hspi_ld, split_float32
from hspi.platforms.batches import log_softmax

COLUMN = {name: i for i, name in enumerate(DISTRIBUTION_FEATURES)}


def test_the_three_integers_reassemble_every_bit_pattern() -> None:
    rng = np.random.default_rng(0)
    special = [0, 0x80000000, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF]
    bits = np.concatenate([np.array(special, np.uint32), rng.integers(0, 2**32, 5000, dtype=np.uint32)])
    parts = split_float32(bits.view(np.float32)).astype(np.int64)
    assert parts.shape == (len(bits), 3)
    np.testing.assert_array_equal((parts[:, 0] << 31) | (parts[:, 1] << 23) | parts[:, 2], bits)
    assert parts.min() >= 0
    assert (parts.max(axis=0) <= [1, 255, 2**23 - 1]).all()


def test_a_paper_sample_joins_whole_prompts_and_drops_the_rest() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2, 5)).astype(np.float32)
    samples = hspi_ld(values, batch=4)
    assert samples.shape == (2, 4 * 2 * 5 * 3)
    np.testing.assert_array_equal(samples[1], split_float32(values[4:8]).ravel())


def logprobs_of(dtype: object, seed: int = 0, k: int = 20) -> npt.NDArray[np.float32]:
    """The k largest of 300 synthetic logits, rounded to the format before the float32 log-softmax."""
    logits = np.random.default_rng(seed).normal(scale=3, size=(40, 300)).astype(np.float32)
    rounded = logits.astype(dtype).astype(np.float32)  # type: ignore[call-overload]
    return np.sort(log_softmax(rounded), axis=1)[:, ::-1][:, :k].copy()


def test_logits_stored_in_sixteen_bits_show_their_grid() -> None:
    found = {d: grid_statistics(logprobs_of(d)).mean(axis=0) for d in (np.float32, np.float16, ml_dtypes.bfloat16)}
    full, half, brain = found.values()
    # Likeliest logits lie in 4..16: bf16 has 8 significant bits there (spacing 2^-5 or 2^-4), fp16 has 11.
    for j, seen in ((6, [brain]), (9, [brain, half])):
        for features in (brain, half, full):
            off_grid = features[COLUMN[f"grid_{j}"]]
            assert (off_grid < 0.01) if any(features is s for s in seen) else (off_grid > 0.1), j
    assert full[COLUMN["grid_9"]] == pytest.approx(0.25, abs=0.03), "off every grid, the mean distance is a quarter"
    assert brain[COLUMN["ties"]] > 4 * half[COLUMN["ties"]] >= full[COLUMN["ties"]] == 0


def test_plain_columns_are_what_they_say() -> None:
    rows = np.array([[-0.5, -0.75, -0.75, -2.5]], np.float32)
    (found,) = grid_statistics(rows)
    assert found[COLUMN["top"]] == -0.5 and found[COLUMN["gap"]] == -0.25
    assert found[COLUMN["spread"]] == pytest.approx((-0.25 - 0.25 - 2.0) / 3)
    assert found[COLUMN["ties"]] == pytest.approx(1 / 3)
    assert found[COLUMN["grid_1"]] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert not found[[COLUMN[f"grid_{j}"] for j in GRID_BITS[1:]]].any()
    assert found[COLUMN["bit_22"]] == pytest.approx(0.5), "fraction bits of 0.5, 0.75, 0.75, 1.25 · 2"
    assert found[COLUMN["bit_21"]] == pytest.approx(0.25)


def test_places_that_were_not_reported_change_nothing() -> None:
    rows = logprobs_of(np.float32, k=12)
    padded = np.pad(rows, ((0, 0), (0, 8)), constant_values=np.nan)
    np.testing.assert_array_equal(grid_statistics(padded), grid_statistics(rows))


def test_any_leading_axes() -> None:
    rows = logprobs_of(np.float32)
    np.testing.assert_array_equal(grid_statistics(rows.reshape(4, 10, -1)).reshape(40, -1), grid_statistics(rows))
