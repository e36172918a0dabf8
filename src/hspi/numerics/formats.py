"""Number formats of matrix units as records; decoding, rounding, encoding and enumerating beside them.

Sources: IEEE 754-2019 (binary16), the OCP 8-bit Floating Point Specification 1.0 (e4m3, e5m2), Noune et al.
arXiv 2206.02915 (the fnuz variants), the OCP Microscaling Formats Specification 1.0
(e2m1, e2m3, e3m2, e8m0, MX blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError, UnknownName

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint32]
Specials = Literal["ieee", "fn", "fnuz", "finite"]
Rounding = Literal["nearest", "zero"]
_ROUNDERS = {"nearest": np.rint, "zero": np.trunc}


@dataclass(frozen=True, slots=True)
class Format:
    """A sign, E in `exponent_bits`, m in `mantissa_bits`: (1 + m/2^mantissa_bits)·2^(E − bias), or subnormal at E = 0.

    `specials`: `ieee` keeps the top exponent for ∞ and NaN; `fn` has one NaN (all ones) and no ∞; `fnuz` one NaN (the
    code of −0), no ∞ and no −0; `finite` has neither ∞ nor NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    source: str

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number; subnormals are multiples of 2^(min_exponent − mantissa_bits)."""
        return 1 - self.bias

    @property
    def max_value(self) -> float:
        top = (1 << self.exponent_bits) - 1 - (self.specials == "ieee")
        mantissa = (1 << self.mantissa_bits) - 1 - (self.specials == "fn")
        if mantissa < 0:  # a format without mantissa bits gives its whole top exponent to the NaN
            top, mantissa = top - 1, 0
        return float((1 + mantissa / (1 << self.mantissa_bits)) * 2.0 ** (top - self.bias))


_OCP8, _MX = "OCP OFP8 1.0", "OCP MX 1.0"
FORMATS = {
    f.name: f
    for f in (
        Format("fp32", 8, 23, 127, "ieee", "IEEE 754-2019"),
        Format("fp16", 5, 10, 15, "ieee", "IEEE 754-2019"),
        Format("bf16", 8, 7, 127, "ieee", "fp32 without its low 16 bits"),
        Format("tf32", 8, 10, 127, "ieee", "fp32 without its low 13 bits (arXiv 2511.10909)"),
        Format("xf32", 8, 10, 127, "ieee", "AMD's name for tf32 (CDNA3 ISA)"),
        Format("e4m3", 4, 3, 7, "fn", _OCP8),
        Format("e5m2", 5, 2, 15, "ieee", _OCP8),
        Format("e4m3fnuz", 4, 3, 8, "fnuz", "arXiv 2206.02915"),
        Format("e5m2fnuz", 5, 2, 16, "fnuz", "arXiv 2206.02915"),
        Format("e2m1", 2, 1, 1, "finite", _MX),
        Format("e2m3", 2, 3, 1, "finite", _MX),
        Format("e3m2", 3, 2, 3, "finite", _MX),
    )
}


def format_of(name: str) -> Format:
    """The record of `name`; UnknownName if there is none."""
    if name not in FORMATS:
        raise UnknownName("number format", name, FORMATS)
    return FORMATS[name]


def decode(codes: npt.ArrayLike, fmt: Format) -> Floats:
    """Values of bit patterns: integers of any shape below 2^bits → float32 of the same shape, exact."""
    code = np.asarray(codes, np.int64)
    if code.size and (code.min() < 0 or code.max() >= 1 << fmt.bits):
        raise DataError(f"codes of {fmt.name} must be in [0, 2^{fmt.bits}), but got {code.min()}..{code.max()}")
    mantissa = code & ((1 << fmt.mantissa_bits) - 1)
    exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    negative = (code >> (fmt.bits - 1)) != 0
    significand = mantissa + np.where(exponent > 0, 1 << fmt.mantissa_bits, 0)
    value = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - fmt.bias - fmt.mantissa_bits)
    ones = exponent == (1 << fmt.exponent_bits) - 1
    if fmt.specials == "ieee":
        value = np.where(ones, np.where(mantissa == 0, np.inf, np.nan), value)
    elif fmt.specials == "fn":
        value = np.where(ones & (mantissa == (1 << fmt.mantissa_bits) - 1), np.nan, value)
    elif fmt.specials == "fnuz":
        value = np.where(code == 1 << (fmt.bits - 1), np.nan, value)
    return np.where(negative, -value, value).astype(np.float32)


def enumerate_values(fmt: Format) -> Floats:
    """The value of every code in order, float32 (2^bits,); formats of at most 19 bits."""
    if fmt.bits > 19:
        raise DataError(f"formats to enumerate must have at most 19 bits, but {fmt.name} has {fmt.bits}")
    return decode(np.arange(1 << fmt.bits), fmt)


def round_to(x: npt.ArrayLike, fmt: Format, rounding: Rounding = "nearest", saturate: bool = False) -> Floats:
    """The value of `fmt` next to each element: any shape → float32 of the same shape.

    `nearest` takes the even code on a tie, `zero` truncates. Past the largest value, `nearest` gives what the format
    has (∞, else NaN, else the largest value); `zero` and `saturate` give the largest value.
    """
    value = np.asarray(x, np.float64)
    _, exponent = np.frexp(value)  # |value| = f·2^exponent with f in [0.5, 1); 0 for zero, ∞ and NaN
    quantum = np.maximum(exponent - 1, fmt.min_exponent) - fmt.mantissa_bits
    size = np.ldexp(_ROUNDERS[rounding](np.ldexp(np.abs(value), -quantum)), quantum)
    to_largest = saturate or (rounding == "zero") & np.isfinite(value)
    size = np.where(size > fmt.max_value, np.where(to_largest, fmt.max_value, _beyond(fmt)), size)
    negative = np.signbit(value) & ((size != 0) | (fmt.specials != "fnuz"))  # fnuz has no −0
    return np.where(negative, -size, size).astype(np.float32)


def _beyond(fmt: Format) -> float:
    return {"ieee": np.inf, "fn": np.nan, "fnuz": np.nan, "finite": fmt.max_value}[fmt.specials]


def is_exact(x: npt.ArrayLike, fmt: Format) -> npt.NDArray[np.bool_]:
    """Which elements `fmt` holds exactly (NaN and ∞ count where the format has them), bool, same shape as x."""
    value = np.asarray(x, np.float64)
    special = np.isnan(value) & (fmt.specials != "finite") | np.isinf(value) & (fmt.specials == "ieee")
    return special | (np.isfinite(value) & (round_to(value, fmt, saturate=True) == value))


def encode(values: npt.ArrayLike, fmt: Format) -> Codes:
    """Codes, uint32, of values that `fmt` holds exactly (DataError otherwise); NaN takes the positive quiet code."""
    value = np.asarray(values, np.float64)
    if not is_exact(value, fmt).all():
        raise DataError(f"values to encode must be exact in {fmt.name}, but some are not: round them first")
    finite = np.where(np.isfinite(value), value, 0.0)
    _, exponent = np.frexp(finite)
    exponent = np.maximum(exponent - 1, fmt.min_exponent)
    significand = np.ldexp(np.abs(finite), fmt.mantissa_bits - exponent).astype(np.int64)
    implicit = 1 << fmt.mantissa_bits
    field = np.where(significand >= implicit, exponent + fmt.bias, 0)
    code = (field << fmt.mantissa_bits) | np.where(significand >= implicit, significand - implicit, significand)
    top = ((1 << fmt.exponent_bits) - 1) << fmt.mantissa_bits
    code = np.where(np.isinf(value), top, code)
    sign = np.signbit(value) & ~np.isnan(value)
    if fmt.specials == "fnuz":
        sign &= value != 0
    code = code | (sign.astype(np.int64) << (fmt.bits - 1))
    return np.where(np.isnan(value), _nan_code(fmt, top), code).astype(np.uint32)


def _nan_code(fmt: Format, top: int) -> int:
    if fmt.specials == "fnuz":
        return 1 << (fmt.bits - 1)
    return top | ((1 << fmt.mantissa_bits) - 1 if fmt.specials == "fn" else 1 << (fmt.mantissa_bits - 1))


E8M0_NAN = 255


def decode_e8m0(codes: npt.ArrayLike) -> Floats:
    """Scales 2^(code − 127) of an MX block, float32; code 255 is NaN (OCP MX 1.0)."""
    code = np.asarray(codes, np.int64)
    return np.where(code == E8M0_NAN, np.nan, np.ldexp(1.0, code - 127)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`block` elements share one power-of-two scale (OCP MX 1.0, section 5.1)."""

    name: str
    element: str
    block: int = 32


MX_FORMATS = {
    b.name: b
    for b in (
        BlockFormat("mxfp8_e4m3", "e4m3"),
        BlockFormat("mxfp8_e5m2", "e5m2"),
        BlockFormat("mxfp6_e2m3", "e2m3"),
        BlockFormat("mxfp6_e3m2", "e3m2"),
        BlockFormat("mxfp4", "e2m1"),
    )
}


def quantize_mx(x: npt.ArrayLike, mx: BlockFormat) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Blocks along the last axis, a multiple of `mx.block`: (…, n) → (…, n/block) e8m0 codes and (…, n) elements.

    The scale is the largest power of two in the block over the element's largest one (OCP MX 1.0, section 6.3);
    elements saturate. A block with a NaN or ∞ gets the NaN scale and zero elements.
    """
    value = np.asarray(x, np.float64)
    if value.ndim == 0 or value.shape[-1] % mx.block:
        raise DataError(f"the last axis must be a multiple of {mx.block}, but got shape {value.shape}")
    fmt = format_of(mx.element)
    blocks = value.reshape(*value.shape[:-1], -1, mx.block)
    finite = np.asarray(np.isfinite(blocks).all(-1))
    blocks = np.where(finite[..., None], blocks, 0.0)
    _, exponent = np.frexp(np.abs(blocks).max(-1))
    top = int(np.frexp(fmt.max_value)[1]) - 1
    shared = np.clip(np.where(blocks.any(-1), exponent - 1 - top, -127), -127, 127)
    elements = round_to(np.ldexp(blocks, -shared[..., None]), fmt, saturate=True)
    return np.where(finite, shared + 127, E8M0_NAN).astype(np.uint8), elements.reshape(value.shape)


def dequantize_mx(scales: npt.ArrayLike, elements: npt.ArrayLike, mx: BlockFormat) -> Floats:
    """Inverse of `quantize_mx`: scales (…, n/block) and elements (…, n) → float32 (…, n)."""
    return np.asarray(elements, np.float32) * np.repeat(decode_e8m0(scales), mx.block, axis=-1)
