"""The records: who has what, and who shares an arithmetic."""

from __future__ import annotations

from itertools import groupby

import pytest

from hspi.errors import ConfigError
from hspi.numerics.architectures import ARCHITECTURES, GPUS, UNITS, unit


def test_every_gpu_has_an_architecture_with_a_16_bit_unit():
    assert set(GPUS.values()) == set(ARCHITECTURES)
    assert all((architecture, "fp16") in UNITS for architecture in GPUS.values())


def arithmetic_classes(input_type: str) -> list[tuple[str, ...]]:
    """Neighbouring architectures with equal arithmetic together."""
    units = [u for u in UNITS.values() if u.input_type == input_type]
    return [tuple(u.architecture for u in same) for _, same in groupby(units, lambda u: u.arithmetic)]


def test_sixteen_bit_classes_are_few():
    assert arithmetic_classes("fp16") == [
        ("volta",),
        ("turing", "ampere", "ada"),
        ("hopper", "blackwell"),
        ("cdna1",),
        ("cdna2",),
        ("cdna3",),
    ]
    assert arithmetic_classes("bf16")[:2] == [("ampere", "ada"), ("hopper", "blackwell")]


def test_fp8_parts_what_16_bits_join():
    assert arithmetic_classes("e4m3") == [("ada",), ("hopper",), ("blackwell",)]


def test_absent_units_are_refused():
    for architecture, kind in (("volta", "bf16"), ("turing", "tf32"), ("ampere", "e4m3"), ("cdna3", "e4m3")):
        with pytest.raises(ConfigError, match=f"input type of {architecture}"):
            unit(architecture, kind)


def test_records_are_whole():
    for (architecture, kind), record in UNITS.items():
        assert (record.architecture, record.input_type) == (architecture, kind)
        assert record.source.startswith("arXiv") and record.instruction
        digits = [int(part) for part in "".join(ch if ch.isdigit() else " " for ch in record.instruction).split()]
        assert record.instruction_k in digits or "f16" in record.instruction
