"""Number formats against an independent implementation (ml_dtypes), code by code."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from hspi.errors import DataError, UnknownName
from hspi.numerics.formats import (
    FORMATS,
    MX_FORMATS,
    decode,
    decode_e8m0,
    dequantize_mx,
    encode,
    enumerate_values,
    format_of,
    is_exact,
    quantize_mx,
    round_to,
)

TWINS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}
with_twin = pytest.mark.parametrize("name", TWINS)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    nan = np.isnan(x)
    return bool((nan == np.isnan(y)).all() and (x.view(np.uint32)[~nan] == y.view(np.uint32)[~nan]).all())


@with_twin
def test_every_code_decodes_as_the_independent_implementation_says(name):
    fmt = format_of(name)
    codes = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):
        assert same_bits(decode(codes, fmt), codes.view(TWINS[name]).astype(np.float32))
    assert same_bits(enumerate_values(fmt), decode(codes, fmt))


@with_twin
def test_every_code_encodes_back(name):
    fmt = format_of(name)
    codes = np.arange(1 << fmt.bits)
    values = decode(codes, fmt)
    back = encode(values, fmt)
    plain = ~np.isnan(values)
    assert (back[plain] == codes[plain]).all()
    assert np.isnan(decode(back[~plain], fmt)).all()


def samples(name: str) -> np.ndarray:
    """All values, the midpoints between neighbours with both their neighbours in fp32, overflow, and random bits."""
    values = enumerate_values(format_of(name))
    values = np.unique(values[np.isfinite(values)])[:: 1 if len(values) < 1000 else 61]
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    with np.errstate(all="ignore"):
        return _with_edges(values, middles)


def _with_edges(values: np.ndarray, middles: np.ndarray) -> np.ndarray:
    step = values[-1] - values[-2]
    edge = np.float32([values[-1] + step / 2, values[-1] + step, values[-1] * np.float32(1.5), 3e38])
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    x = np.concatenate([values, middles, edge, -edge, bits.view(np.float32)])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    return x[np.isfinite(x)]


@with_twin
def test_rounding_to_nearest_agrees(name):
    x = samples(name)
    with np.errstate(over="ignore"):
        theirs = x.astype(TWINS[name]).astype(np.float32)
    assert same_bits(round_to(x, format_of(name)), theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_toward_zero_never_grows_and_is_within_one_step(name):
    fmt = format_of(name)
    x = np.random.default_rng(1).normal(size=2000).astype(np.float32)
    cut, near = round_to(x, fmt, "zero"), round_to(x, fmt)
    assert (np.abs(cut) <= np.abs(x)).all()
    assert is_exact(cut, fmt).all() and is_exact(near, fmt).all()
    assert (np.abs(near - x) <= np.abs(cut - x)).all()
    assert same_bits(round_to(cut, fmt), cut)


def test_tf32_is_fp32_without_13_bits():
    x = np.random.default_rng(2).integers(0, 1 << 32, 10_000, dtype=np.uint32)
    x = x[np.isfinite(x.view(np.float32))]
    assert same_bits(round_to(x.view(np.float32), format_of("tf32"), "zero"), (x >> 13 << 13).view(np.float32))


def test_special_values_go_where_the_format_has_them():
    x = np.float32([np.inf, -np.inf, np.nan, 1e30])
    assert same_bits(round_to(x, format_of("e5m2")), np.float32([np.inf, -np.inf, np.nan, np.inf]))
    assert np.isnan(round_to(x, format_of("e4m3"))).all()
    assert same_bits(round_to(x, format_of("e4m3"), saturate=True), np.float32([448, -448, np.nan, 448]))
    assert round_to(1e30, format_of("e5m2"), "zero") == 57344
    assert not is_exact(np.inf, format_of("e4m3")) and is_exact(np.inf, format_of("fp16"))


def test_every_e8m0_code():
    codes = np.arange(256, dtype=np.uint8)
    assert same_bits(decode_e8m0(codes), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


@pytest.mark.parametrize("name", MX_FORMATS)
def test_blocks_keep_their_largest_value_and_their_error_bound(name):
    mx = MX_FORMATS[name]
    fmt = format_of(mx.element)
    x = np.random.default_rng(3).normal(size=(4, 96)) * np.exp2(np.arange(4) * 9 - 15)[:, None]
    x[2, :32] = 0
    scales, elements = quantize_mx(x, mx)
    assert scales.shape == (4, 3) and is_exact(elements, fmt).all()
    back = dequantize_mx(scales, elements, mx)
    top = np.repeat(np.abs(x).reshape(4, 3, 32).max(-1), 32, axis=1)
    # the block's largest value may saturate, by less than one of its own last places
    assert (np.abs(back - x) <= top * 2.0**-fmt.mantissa_bits).all()
    assert (back[2, :32] == 0).all()
    again, _ = quantize_mx(back, mx)
    assert (again == scales).all()


def test_a_block_with_a_nan_says_so():
    x = np.ones((1, 32))
    x[0, 5] = np.nan
    scales, elements = quantize_mx(x, MX_FORMATS["mxfp4"])
    assert scales[0, 0] == 255 and np.isnan(dequantize_mx(scales, elements, MX_FORMATS["mxfp4"])).all()


def test_bad_input_is_named():
    with pytest.raises(UnknownName, match="fp17"):
        format_of("fp17")
    with pytest.raises(DataError, match="exact in e4m3"):
        encode([1.0, 1.01], format_of("e4m3"))
    with pytest.raises(DataError, match=r"\[0, 2\^8\)"):
        decode([256], format_of("e4m3"))
    with pytest.raises(DataError, match="multiple of 32"):
        quantize_mx(np.ones(33), MX_FORMATS["mxfp4"])
    with pytest.raises(DataError, match="19 bits"):
        enumerate_values(format_of("fp32"))
