"""Number formats against an independent implementation (ml_dtypes), code by code."""

from __future__ import annotations

import numpy as np
import pytest

from format_values import TWINS, every_value
from hspi.errors import UnknownName
from hspi.numerics.formats import FORMATS, format_of, is_exact, round_to

with_twin = pytest.mark.parametrize("name", TWINS)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    nan = np.isnan(x)
    return bool((nan == np.isnan(y)).all() and (x.view(np.uint32)[~nan] == y.view(np.uint32)[~nan]).all())


@with_twin
def test_every_value_is_exact_and_rounds_to_itself(name):
    fmt = format_of(name)
    values = every_value(fmt)
    assert is_exact(values, fmt).all() and np.nanmax(values[np.isfinite(values)]) == fmt.max_value
    assert same_bits(round_to(values, fmt), values) and same_bits(round_to(values, fmt, "zero"), values)


def samples(name: str) -> np.ndarray:
    """All values, the midpoints between neighbours with both their neighbours in fp32, overflow, and random bits."""
    values = every_value(format_of(name))
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


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownName, match="fp17"):
        format_of("fp17")
