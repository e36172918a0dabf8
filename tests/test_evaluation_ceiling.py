"""The figure that ties alone leave: by hand on a few platforms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hspi.detectors.training import Bench
from hspi.evaluation.ceiling import one_probe_ceiling
from hspi.evidence.library import Library
from synthetic import SEED, World

FP32_A, FP32_B = 3, 4


def bench(world: World, settings: list[int]) -> Bench:
    """`fp32-b` answers as `fp32-a` in these of its four batch classes."""
    library = world.libraries[0]
    arrays = {name: getattr(library.data, name).copy() for name in ("logprobs", "rank", "raw")}
    for array in arrays.values():
        array[FP32_B, settings] = array[FP32_A, settings]
    data = replace(library.data, **arrays, steady=[True] * len(library.data.platforms))
    return Bench.plain(Library.measured(data, SEED, 20), SEED, (20,))


def test_where_every_answer_is_one_class_s_alone_nothing_is_lost(world: World) -> None:
    assert one_probe_ceiling([bench(world, [])], 20) == 1


def test_bits_that_two_classes_give_on_every_probe_in_a_batch_class_are_no_loss(world: World) -> None:
    """Nobody could tell them, so each is right: the same credit as the accuracy gives."""
    assert one_probe_ceiling([bench(world, [0, 1])], 20) == 1


def test_a_tie_on_some_probes_goes_to_one_of_the_two(world: World) -> None:
    made = bench(world, [])
    data = made.data
    some = made.split.test[: len(made.split.test) // 2]
    for array in (data.logprobs, data.rank, data.raw):
        array[FP32_B, 0, some] = array[FP32_A, 0, some]
    lost = 0.5 / 4 / made.classes.count  # of one class: half the probes of one of four batch classes
    assert one_probe_ceiling([made], 20) == pytest.approx(1 - lost)
    assert one_probe_ceiling([made, bench(world, [])], 20) == pytest.approx(1 - lost / 2)
