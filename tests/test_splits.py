"""Splits never leak, whatever their sizes and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hspi.splits import Index, ProbeSplit, draw, group_folds, partitions, split_probes

SIZES = st.dictionaries(st.sampled_from(["words", "text", "tokens", "more"]), st.integers(1, 60), min_size=1)
SEEDS = st.integers(0, 2**31)


def probes_of(sizes: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, i) for name, size in sizes.items() for i in range(size)]


@given(SIZES, SEEDS)
def test_every_probe_is_in_exactly_one_part(sizes: dict[str, int], seed: int) -> None:
    probes = probes_of(sizes)
    split = split_probes(probes, seed)
    together = np.concatenate([split.fit, split.calibrate, split.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(probes)))


@given(SIZES, SEEDS)
def test_parts_hold_a_quarter_a_quarter_and_half_of_each_set(sizes: dict[str, int], seed: int) -> None:
    probes = probes_of(sizes)
    split = split_probes(probes, seed)
    for name, size in sizes.items():
        counts = [sum(probes[i][0] == name for i in part) for part in (split.fit, split.calibrate, split.test)]
        assert counts == [size // 4, size // 2 - size // 4, size - size // 2]


@given(SIZES, SEEDS)
def test_a_set_is_split_alike_whatever_stands_beside_it(sizes: dict[str, int], seed: int) -> None:
    whole = probes_of(sizes)
    name = next(iter(sizes))
    alone = [p for p in whole if p[0] == name]
    for mine, all_of_them in zip(vars_of(split_probes(alone, seed)), vars_of(split_probes(whole, seed)), strict=True):
        assert [alone[i] for i in mine] == [whole[i] for i in all_of_them if whole[i][0] == name]


def vars_of(split: ProbeSplit) -> tuple[Index, Index, Index]:
    return split.fit, split.calibrate, split.test


@given(SIZES, SEEDS, SEEDS)
def test_the_split_knows_probes_by_name_and_not_by_place(sizes: dict[str, int], seed: int, other: int) -> None:
    """Models whose sets stand in another order share the split."""
    probes = probes_of(sizes)
    split = split_probes(probes, seed)
    names = list(sizes)
    np.random.default_rng(other).shuffle(names)
    moved = probes_of({name: sizes[name] for name in names})
    again = split_probes(moved, seed)
    for a, b in ((split.fit, again.fit), (split.calibrate, again.calibrate), (split.test, again.test)):
        assert {probes[i] for i in a} == {moved[i] for i in b}


def test_another_seed_is_another_split() -> None:
    probes = probes_of({"text": 80})
    assert set(split_probes(probes, 1).test) != set(split_probes(probes, 2).test)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), SEEDS)
def test_a_sample_holds_distinct_probes_of_its_pool(size: int, n: int, samples: int, seed: int) -> None:
    pool = np.arange(100, 100 + size)
    rng = np.random.default_rng(seed)
    if n > size:
        with pytest.raises(ValueError, match=f"pool of {size} probes, but got {n}"):
            draw(pool, n, samples, rng)
        return
    found = draw(pool, n, samples, rng)
    assert found.shape == (samples, n)
    assert all(len(set(row)) == n and set(row) <= set(pool) for row in found.tolist())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), SEEDS)
def test_samples_of_one_partition_share_no_probe(size: int, n: int, repeats: int, seed: int) -> None:
    pool = np.arange(size)
    rng = np.random.default_rng(seed)
    if n > size:
        with pytest.raises(ValueError, match=f"pool of {size} probes, but got {n}"):
            partitions(pool, n, repeats, rng)
        return
    found = partitions(pool, n, repeats, rng)
    assert found.shape == (repeats, size // n, n)
    assert all(len(np.unique(one)) == one.size for one in found)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.integers(1, 6), SEEDS)
def test_no_group_is_in_two_folds_and_none_is_lost(groups: list[str], folds: int, seed: int) -> None:
    found = group_folds(groups, folds, seed)
    assert sorted(i for fold in found for i in fold) == list(range(len(groups)))
    of = [{groups[i] for i in fold} for fold in found]
    assert all(of), "no fold is empty"
    assert sum(map(len, of)) == len(set(groups))
    assert max(map(len, of)) - min(map(len, of)) <= 1
