"""Number formats of matrix units as records; rounding to them beside.

Sources: IEEE 754-2019 (binary16), the OCP 8-bit Floating Point Specification 1.0 (e4m3, e5m2), Noune et al.
arXiv 2206.02915 (the fnuz variants).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import UnknownName

Floats = npt.NDArray[np.float32]
Specials = Literal["ieee", "fn", "fnuz"]
Rounding = Literal["nearest", "zero"]
_ROUNDERS = {"nearest": np.rint, "zero": np.trunc}


@dataclass(frozen=True, slots=True)
class Format:
    """A sign, E in `exponent_bits`, m in `mantissa_bits`: (1 + m/2^mantissa_bits)·2^(E − bias), or subnormal at E = 0.

    `specials`: `ieee` keeps the top exponent for ∞ and NaN; `fn` has one NaN (all ones) and no ∞; `fnuz` one NaN (the
    code of −0), no ∞ and no −0.
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
        return float((1 + mantissa / (1 << self.mantissa_bits)) * 2.0 ** (top - self.bias))


_OCP8 = "OCP OFP8 1.0"
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
    )
}


def format_of(name: str) -> Format:
    """The record of `name`; UnknownName if there is none."""
    if name not in FORMATS:
        raise UnknownName("number format", name, FORMATS)
    return FORMATS[name]


def round_to(x: npt.ArrayLike, fmt: Format, rounding: Rounding = "nearest", saturate: bool = False) -> Floats:
    """The value of `fmt` next to each element: any shape → float32 of the same shape.

    `nearest` takes the even code on a tie, `zero` truncates. Past the largest value, `nearest` gives what the format
    has (∞, else NaN); `zero` and `saturate` give the largest value.
    """
    value = np.asarray(x, np.float64)
    _, exponent = np.frexp(value)  # |value| = f·2^exponent with f in [0.5, 1); 0 for zero, ∞ and NaN
    quantum = np.maximum(exponent - 1, fmt.min_exponent) - fmt.mantissa_bits
    size = np.ldexp(_ROUNDERS[rounding](np.ldexp(np.abs(value), -quantum)), quantum)
    beyond = np.inf if fmt.specials == "ieee" else np.nan
    to_largest = saturate or (rounding == "zero") & np.isfinite(value)
    size = np.where(size > fmt.max_value, np.where(to_largest, fmt.max_value, beyond), size)
    negative = np.signbit(value) & ((size != 0) | (fmt.specials != "fnuz"))  # fnuz has no −0
    return np.where(negative, -size, size).astype(np.float32)


def is_exact(x: npt.ArrayLike, fmt: Format) -> npt.NDArray[np.bool_]:
    """Which elements `fmt` holds exactly (NaN counts, and ∞ where the format has it), bool, same shape as x."""
    value = np.asarray(x, np.float64)
    special = np.isnan(value) | np.isinf(value) & (fmt.specials == "ieee")
    return special | (np.isfinite(value) & (round_to(value, fmt, saturate=True) == value))
