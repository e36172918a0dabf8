"""The harness for silicon, held to simulated chips; the chip itself where there is one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chip.cases import FAMILIES, tiles
from chip.chip import NvidiaChip, SimulatedChip, backends
from chip.compare import check_golden, compare_gemms, compare_tiles, plan_library, write_golden

from hspi.errors import DataError, PlatformError, UnknownName
from hspi.numerics.architectures import UNITS
from hspi.numerics.batched import matmul_batched
from hspi.numerics.formats import format_of, is_exact
from hspi.numerics.plans import KernelPlan
from hspi.platforms.machine import has_nvidia_gpu

SCRIPT = Path(__file__).parent.parent / "scripts" / "silicon.py"
GOLDEN = sorted((Path(__file__).parent / "golden").rglob("*.safetensors"))


@pytest.mark.parametrize("input_type", ["fp16", "bf16", "tf32", "e4m3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_follow_from_their_seed_and_are_exact(input_type, family):
    a, b = tiles(input_type, family, 5, 2, 8, 32, 8)
    again = tiles(input_type, family, 5, 2, 8, 32, 8)
    assert a.tobytes() == again[0].tobytes() and b.tobytes() == again[1].tobytes()
    assert is_exact(a, format_of(input_type)).all() and is_exact(b, format_of(input_type)).all()
    assert a.tobytes() != tiles(input_type, family, 6, 2, 8, 32, 8)[0].tobytes()


def test_families_are_what_they_say():
    a, b = tiles("fp16", "cancelling", 0, 2, 8, 32, 8)
    exact = a.astype(float) @ b.astype(float)
    assert np.abs(exact).max() < 0.2 * (np.abs(a).astype(float) @ np.abs(b)).min()
    assert (np.abs(tiles("fp16", "subnormal", 0, 2, 8, 32, 8)[0]) < 2.0**-14).any()
    assert 0.4 < (tiles("bf16", "zeros", 0, 2, 8, 32, 8)[0] == 0).mean() < 0.6
    assert not np.isfinite(tiles("bf16", "special", 0, 4, 8, 32, 8)[0]).all()
    with pytest.raises(UnknownName, match="family"):
        tiles("fp16", "odd", 0, 1, 1, 1, 1)


def test_a_chip_with_another_arithmetic_is_caught():
    """A Hopper that calls itself an Ampere."""

    class Liar(SimulatedChip):
        def tile(self, a, b, input_type):
            return matmul_batched(a, b, "hopper", input_type)

    honest = compare_tiles(SimulatedChip("ampere"), "bf16", "normal", 0, 1)[0]
    caught = compare_tiles(Liar("ampere"), "bf16", "normal", 0, 1)[0]
    assert honest.mismatches == 0 and honest.count == 64 * 64
    assert caught.mismatches > 0 and len(caught.first) == 3


@pytest.mark.parametrize(
    "hidden",
    [
        KernelPlan(),
        KernelPlan(split_k=3),
        KernelPlan(split_k=4, split="interleaved", k_tile=64),
        KernelPlan(k_tile=64, order="rotated"),
    ],
    ids=lambda p: p.name,
)
def test_a_hidden_plan_is_found(hidden):
    chip = SimulatedChip("hopper", hidden)
    shapes = {"small": (8, 64, 1024)}
    found = compare_gemms(chip, "bf16", 0, shapes)
    assert found == {"plans": {"small": hidden.name}, "reproduced": 1.0}


def test_a_plan_is_found_behind_rounding_and_a_foreign_one_is_not():
    shapes = {"small": (16, 256, 1024)}
    rounded = SimulatedChip("ampere", KernelPlan(split_k=2), "fp16")
    assert compare_gemms(rounded, "fp16", 0, shapes)["reproduced"] == 1.0
    foreign = compare_gemms(SimulatedChip("ampere", KernelPlan(split_k=7)), "fp16", 0, shapes)
    assert foreign == {"plans": {"small": None}, "reproduced": 0.0}


@pytest.mark.parametrize(("architecture", "input_type"), UNITS)
def test_the_library_of_plans_is_large_and_without_doubles(architecture, input_type):
    plans = list(plan_library(architecture, input_type))
    assert len(plans) == len(set(plans)) > 40 and plans[0] == KernelPlan()


def test_golden_vectors_are_kept_and_checked(tmp_path):
    chip = SimulatedChip("ampere")
    agreement, output = compare_tiles(chip, "fp16", "cancelling", 3, 2)
    path = write_golden(tmp_path, chip, agreement, output)
    assert check_golden(path) == 0 and [p.name for p in tmp_path.iterdir()] == [path.name]
    output[0, 0, 0] += np.float32(1)
    wrong = write_golden(tmp_path, chip, replace(agreement, seed=agreement.seed), output)
    assert check_golden(wrong) == 1
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="golden vector"):
        check_golden(path)


@pytest.mark.skipif(not GOLDEN, reason="no golden vectors yet: silicon is unverified until scripts/silicon.py has run")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.name)
def test_what_the_chip_answered_is_what_numerics_says(path):
    assert check_golden(path) == 0


@pytest.mark.slow
def test_the_command_runs_on_a_simulated_chip(tmp_path):
    command = [sys.executable, str(SCRIPT), "--simulate", "turing", "--dots", "20000", "--shapes", "--no-model"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.json").exists() and len(list(tmp_path.rglob("*.safetensors"))) == len(FAMILIES)


@pytest.mark.skipif(has_nvidia_gpu(), reason="there is a GPU here")
def test_without_a_gpu_the_reason_is_given():
    with pytest.raises(PlatformError, match="none was found"):
        NvidiaChip()


@pytest.mark.gpu
@pytest.mark.skipif(not has_nvidia_gpu(), reason="needs an NVIDIA GPU; none found")
@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("family", FAMILIES)
def test_the_chip_has_the_bits_of_its_records(backend, family):
    chip = NvidiaChip(backend)
    for input_type in chip.types:
        assert compare_tiles(chip, input_type, family, 0, 8)[0].mismatches == 0
