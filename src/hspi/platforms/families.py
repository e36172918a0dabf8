"""The number format that a platform's errors come from, as a single observation can tell it on any model."""

from __future__ import annotations

from hspi.platforms.record import Platform

FAMILIES = {
    "int8-weights": "int8",  # the coarsest rounding is the weights'; activations in int8 or float are the same family
    "int4-weights": "int4",
    "int8-int4-weights": "int4",  # int8 activations are finer than 4-bit weights
    "fp8-weights": "fp8-e4m3",  # quanto's qfloat8 and torchao's default are OCP E4M3
    "fp8": "fp8-e4m3",
    "nf4-weights": "nf4",
    "fp4-weights": "fp4",
    "q8_0": "int8",  # llama.cpp's blocks of 32 integers with one scale
    "q4_0": "int4",
}


def format_family(platform: Platform) -> str:
    """What rounds, not where nor by whose code: the quantization where there is one, else the dtype.

    `matmul_precision` moves no platform out of fp32: on a CPU without AMX, PyTorch at `medium` was as exact as the
    other fp32 platforms whose products oneDNN computes.
    """
    return FAMILIES.get(platform.number_format, platform.number_format)
