"""Emulated weight formats against their specification and an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest

from hspi.errors import ConfigError
from hspi.platforms.quantized import ROUNDERS, quantize, round_float8, round_mx

gfloat = pytest.importorskip("gfloat")
ml_dtypes = pytest.importorskip("ml_dtypes")


def weights(rows=8, columns=96, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.integers(-12, 6, (rows, columns // 32))).repeat(32, axis=1)
    return (rng.standard_normal((rows, columns)) * spread).astype(np.float32)


@pytest.mark.parametrize("name", ["mxint8", "mxfp4_e2m1"])
def test_blocks_equal_gfloats_scalar_version(name):
    from gfloat import formats

    block = getattr(formats, f"format_info_{name}")
    given = weights()
    given[0, :32] = 0
    ours = round_mx(given, name).reshape(-1, block.k)
    for row, mine in zip(given.reshape(-1, block.k).astype(np.float64), ours, strict=True):
        theirs = gfloat.quantize_block(block, row, gfloat.compute_scale_amax)
        np.testing.assert_array_equal(mine, theirs.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e3m4"])
def test_float8_weights_are_codes_times_their_rows_scale(dtype):
    kind = getattr(ml_dtypes, dtype)
    codes = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    codes = np.unique(codes[np.isfinite(codes)])
    given = weights()
    scale = np.abs(given).max(axis=1, keepdims=True) / codes.max()
    rounded = round_float8(given, dtype)
    nearest = codes[np.abs((given / scale)[..., None] - codes).argmin(-1)] * scale
    assert np.abs(rounded - given).max() <= np.abs(nearest - given).max() * (1 + 1e-6)
    np.testing.assert_allclose(np.abs(rounded).max(1), np.abs(given).max(1), rtol=1e-6)
    assert all(len(np.unique(row)) <= len(codes) for row in rounded)


@pytest.mark.parametrize("name", ROUNDERS)
def test_rounding_is_idempotent_and_near(name):
    once = ROUNDERS[name](weights())
    assert once.dtype == np.float32 and once.shape == weights().shape
    np.testing.assert_allclose(ROUNDERS[name](once), once, rtol=1e-6)
    assert 0 < np.abs(once - weights()).max() < 0.3 * np.abs(weights()).max()


def test_an_input_axis_that_no_block_divides_is_refused():
    with pytest.raises(ConfigError, match="multiple of 32"):
        round_mx(np.ones((2, 40), np.float32), "mxint8")


def test_an_unknown_quantizer_is_named():
    with pytest.raises(ConfigError, match=r"hqq-int4.*but got 'int3'"):
        quantize(None, "int3")
