"""Every value of a number format, by an independent implementation (ml_dtypes, NumPy)."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from hspi.numerics.formats import Format

TWINS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


def every_value(fmt: Format) -> np.ndarray:
    """The value of every code in order, float32 (2^bits,); of formats of at most 19 bits."""
    if fmt.name not in TWINS:  # tf32 and xf32 are fp32 without its low 13 bits
        return (np.arange(1 << 19, dtype=np.uint32) << np.uint32(13)).view(np.float32)
    codes = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):
        return codes.view(TWINS[fmt.name]).astype(np.float32)
