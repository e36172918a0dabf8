"""Kernel plans: every column of A is consumed once, in the order that the plan describes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hspi.errors import ConfigError
from hspi.numerics.plans import PADDING, KernelPlan, combine, schedule

plans = st.builds(
    KernelPlan,
    split_k=st.sampled_from([1, 2, 3, 4, 8]),
    split=st.sampled_from(["blocked", "interleaved"]),
    k_tile=st.sampled_from([0, 32, 64, 128]),
    order=st.sampled_from(["forward", "reverse", "rotated"]),
    chunk=st.sampled_from([0, 2, 4, 8]),
    instruction_k=st.sampled_from([0, 8, 32]),
    promote=st.sampled_from([0, 32, 128]),
)


@given(plan=plans, k=st.integers(0, 700))
def test_every_column_once_and_zeros_beside(plan: KernelPlan, k: int):
    chains = schedule(plan, k, 16)
    assert len(chains) == plan.split_k
    width = plan.instruction_k or 16
    segments = [columns for segments in chains for columns in segments]
    assert all(len(columns) % width == 0 for columns in segments)
    flat = np.concatenate(segments)
    assert sorted(flat[flat != PADDING]) == list(range(k))


def order_of(plan: KernelPlan, k: int) -> list[list[int]]:
    return [np.concatenate(segments).tolist() for segments in schedule(plan, k, 4)]


def test_the_default_is_one_loop_in_order():
    assert order_of(KernelPlan(), 6) == [[0, 1, 2, 3, 4, 5, PADDING, PADDING]]


def test_split_shares_tiles():
    assert order_of(KernelPlan(split_k=2), 16) == [[*range(8)], [*range(8, 16)]]
    dealt = KernelPlan(split_k=2, split="interleaved", k_tile=4)
    assert order_of(dealt, 16) == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_order_and_chunk_act_inside_a_tile():
    assert order_of(KernelPlan(k_tile=8, order="reverse"), 16) == [
        [4, 5, 6, 7, 0, 1, 2, 3, *range(12, 16), *range(8, 12)]
    ]
    assert order_of(KernelPlan(k_tile=16, order="rotated"), 16) == [[*range(8, 16), *range(8)]]
    assert order_of(KernelPlan(k_tile=8, chunk=2), 8) == [[0, 1, 4, 5, 2, 3, 6, 7]]


def test_promotion_cuts_a_chain():
    (segments,) = schedule(KernelPlan(promote=8), 20, 4)
    assert [len(s) for s in segments] == [8, 8, 4]


def test_partials_are_added_as_the_plan_says():
    big, parts = np.float32(2**24), [np.float32([x]) for x in (2**24, 1, 1, 1)]
    assert combine(parts, KernelPlan(split_k=4))[0] == big
    assert combine(parts, KernelPlan(split_k=4, combine="tree"))[0] == big + 2
    assert combine(parts[:1] + parts[:0], KernelPlan())[0] == big
    third = [np.float32([1 / 3])] * 2
    assert combine(third, KernelPlan(split_k=2, workspace="bf16"))[0] == np.float32(2 * 0.333984375)
    five = [np.float32([x]) for x in (1, 2, 3, 4, 5)]
    assert combine(five, KernelPlan(split_k=5, combine="tree"))[0] == 15


def test_names_tell_plans_apart():
    some = [KernelPlan(), KernelPlan(split_k=2), KernelPlan(split_k=2, combine="tree"), KernelPlan(k_tile=64, chunk=2)]
    assert len({plan.name for plan in some}) == len(some) and KernelPlan().name == "k-loop"


@pytest.mark.parametrize(
    "choice", [{"split_k": 0}, {"k_tile": -1}, {"combine": "random"}, {"order": "up"}, {"workspace": "fp8"}]
)
def test_impossible_plans_are_refused(choice):
    with pytest.raises(ConfigError):
        KernelPlan(**choice)


@pytest.mark.parametrize("plan", [KernelPlan(k_tile=24), KernelPlan(chunk=3), KernelPlan(promote=24)])
def test_lengths_must_divide(plan):
    with pytest.raises(ConfigError, match="multiple"):
        schedule(plan, 64, 16)
