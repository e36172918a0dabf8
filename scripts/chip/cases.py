"""Inputs by seed: what normal numbers hide, adversarial ones show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hspi.errors import UnknownName
from hspi.numerics.formats import Format, format_of, round_to

F32 = npt.NDArray[np.float32]
FAMILIES = ("normal", "wide", "cancelling", "subnormal", "zeros", "special")


def tiles(input_type: str, family: str, seed: int, count: int, m: int, k: int, n: int) -> tuple[F32, F32]:
    """a (count, m, k) and b (count, k, n), float32, exact in the type; the same for the same arguments, always.

    normal: standard normal; wide: exponents all over the type's range; cancelling: each product twice with opposite
    signs, and a small rest; subnormal: around the smallest normal number; zeros: half of wide's elements are zero;
    special: normal with a few ∞ and NaN, as far as the type has them. Raises UnknownName.
    """
    if family not in FAMILIES:
        raise UnknownName("family of inputs", family, FAMILIES)
    fmt = format_of(input_type)
    rng = np.random.default_rng([seed, FAMILIES.index(family), *input_type.encode()])
    a, b = rng.standard_normal((count, m, k)), rng.standard_normal((count, k, n))
    if family in ("wide", "zeros"):
        reach = min(24, -fmt.min_exponent + 1) // 2
        a, b = (x * 2.0 ** rng.integers(-reach, reach + 1, x.shape) for x in (a, b))
    if family == "zeros":
        a, b = (x * (rng.random(x.shape) < 0.5) for x in (a, b))
    if family == "cancelling":
        half = k // 2
        a[..., half : 2 * half], b[:, half : 2 * half] = -a[..., :half], b[:, :half]
        a = round_to(a, fmt).astype(np.float64)
        a[..., : min(2, k)] *= 1 + 2.0**-fmt.mantissa_bits
    if family == "subnormal":
        a = a * 2.0**fmt.min_exponent
    return _special(rng, round_to(a, fmt, saturate=True), fmt, family), round_to(b, fmt, saturate=True)


def _special(rng: np.random.Generator, a: F32, fmt: Format, family: str) -> F32:
    if family == "special":
        at = rng.random(a.shape) < 0.005
        infinite = fmt.specials == "ieee"
        a[at] = rng.choice(np.array([np.inf, -np.inf, np.nan] if infinite else [np.nan], np.float32), int(at.sum()))
    return a
