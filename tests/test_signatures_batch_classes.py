"""Batch classes of made-up platforms: what is found is what was put in, with few batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hspi.platforms.record import Nuisance
from hspi.signatures.batch_classes import GRID, MANY, MOST, UNSTEADY, BatchClasses, find, setting
from hspi.signatures.collect import batches

PROBES = 40
ALL = range(1, MOST + 1)

Kernel = Callable[[int, int], int]
"""(place in the batch, batch size) → which kernel computes there."""


@dataclass
class Made:
    """A platform: which kernel serves each place of a batch, and the probes whose answers its company changes."""

    kernel: Kernel
    moved: frozenset[int] = frozenset()
    asked: list[tuple[int, int | None]] = field(default_factory=list)

    def __call__(self, size: int, seed: int | None) -> list[bytes]:
        self.asked.append((size, seed))
        found = [b""] * PROBES
        for ids, own in batches(PROBES, Nuisance("", size, "ordered" if seed is None else "shuffled", seed or 0)):
            for place, i in enumerate(ids[:own].tolist()):
                company = sorted(ids.tolist()) if i in self.moved else []
                found[i] = repr((i, self.kernel(place, size), company)).encode()
        return found


def steps(label: dict[int, int]) -> Kernel:
    return lambda place, size: label[size]


def sizes_of(text: str) -> set[int]:
    """Of "1-2 16-64"."""
    ends = [[int(x) for x in part.split("-")] for part in text.split()]
    return {n for first, *last in ends for n in range(first, (last or [first])[0] + 1)}


def groups(label: dict[int, int]) -> set[frozenset[int]]:
    return {frozenset(n for n, k in label.items() if k == kernel) for kernel in set(label.values())}


@st.composite
def thresholds(draw: st.DrawFn) -> dict[int, int]:
    """Kernels by size, with one threshold at most between two sizes that are always looked at."""
    kernel, label = draw(st.integers(0, MANY - 1)), {}
    for low, high in pairwise(GRID):
        after = draw(st.one_of(st.just(kernel), st.integers(0, MANY - 1)))
        begins = draw(st.integers(low + 1, high))
        label |= {n: kernel if n < begins else after for n in range(low, high + 1)}
        kernel = after
    return label


# ---------------------------------------------------------------- steady ones


@given(thresholds())
def test_thresholds_are_found_exactly_and_kernels_that_come_back_are_one_class(label: dict[int, int]) -> None:
    found = find(Made(steps(label)))
    assert found.steady and found.spread == 0
    assert {frozenset(sizes_of(s)) for s in found.sizes.values()} == groups(label)
    assert all(name == f"b{min(sizes_of(s))}" for name, s in found.sizes.items())


def test_torch_in_bf16_on_an_amx_xeon_has_two() -> None:
    label = {n: int(3 <= n <= 15) for n in ALL}
    assert find(Made(steps(label))) == BatchClasses({"b1": "1-2 16-64", "b3": "3-15"})


@given(thresholds())
def test_few_batch_sizes_are_looked_at(label: dict[int, int]) -> None:
    made = Made(steps(label))
    found = find(made)
    assert len(made.asked) == len(set(made.asked)), "nothing is asked twice"
    changes = sum(label[a] != label[b] for a, b in pairwise(GRID))
    assert len(made.asked) <= len(GRID) + 4 * changes + len(found.sizes) + 3
    if not changes:
        assert len(made.asked) <= len(GRID) + 3


@given(thresholds(), st.integers(1, MOST))
def test_no_batch_is_larger_than_it_may_be(label: dict[int, int], most: int) -> None:
    made = Made(steps(label))
    found = find(made, most)
    assert found.steady and max(size for size, _ in made.asked) <= most
    expected = groups({n: k for n, k in label.items() if n <= most})
    assert {frozenset(sizes_of(s)) for s in found.sizes.values()} == expected


# ---------------------------------------------------------------- the place, or the company, decides


@given(st.sampled_from([8, 16, 32]), st.data())
def test_a_size_at_which_the_place_decides_stands_in_both_classes(block: int, data: st.DataObject) -> None:
    """Kernels for whole blocks of rows, and another one for what is over: as matrix libraries have."""
    last = data.draw(st.integers(block + 1, 2 * block - 1))

    def kernel(place: int, size: int) -> int:
        if size > last:
            return 1
        return int(place < size - size % block)

    found = find(Made(kernel))
    assert found.steady
    small, large = found.sizes.values()
    both = sizes_of(small) & sizes_of(large)
    assert sizes_of(small) - both == set(range(1, block)), "below a block there is what is over alone"
    assert sizes_of(large) - both == {block, *range(last + 1, MOST + 1)}
    assert both == set(range(block + 1, last + 1))


@given(st.sets(st.integers(0, PROBES - 1), min_size=1), st.booleans())
def test_where_company_decides_a_platform_is_unsteady_with_its_spread(moved: set[int], stepped: bool) -> None:
    label = {n: int(stepped and n > 9) for n in ALL}
    found = find(Made(steps(label), frozenset(moved)))
    assert not found.steady and 0 < found.spread <= len(moved) / PROBES
    assert found.sizes == {f"b{n}": str(n) for n in UNSTEADY}


def test_a_spread_is_the_share_of_probes_that_company_changes() -> None:
    found = find(Made(lambda place, size: 0, frozenset(range(10))))
    assert found.spread == 10 / PROBES


def test_company_that_decides_at_small_sizes_alone_is_noticed_too() -> None:
    """At 16 and 64, where it is looked for first, nothing moves."""
    made = Made(steps(dict.fromkeys(ALL, 0)), frozenset(range(PROBES)))
    quiet = lambda size, seed: made(size, seed) if size < 9 else [repr(i).encode() for i in range(PROBES)]  # noqa: E731
    found = find(quiet)
    assert not found.steady and 0 < found.spread <= 1


@pytest.mark.parametrize("most", [12, MOST])
def test_a_platform_of_too_many_classes_is_not_described_by_ranges(most: int) -> None:
    found = find(Made(lambda place, size: size), most)
    assert not found.steady and found.spread == 0
    assert list(found.sizes) == [f"b{n}" for n in UNSTEADY if n <= most]


def test_as_many_classes_as_may_be_are_described() -> None:
    label = {n: min(n, MANY) for n in ALL}
    assert list(find(Made(steps(label))).sizes) == [f"b{n}" for n in range(1, MANY + 1)]


# ---------------------------------------------------------------- settings


@given(thresholds())
def test_there_is_one_setting_for_each_class_at_its_smallest_size(label: dict[int, int]) -> None:
    found = find(Made(steps(label)))
    settings = found.settings()
    assert [n.name for n in settings] == list(found.sizes)
    assert [n.batch_size for n in settings] == sorted(min(sizes_of(s)) for s in found.sizes.values())
    assert BatchClasses.from_dict({"sizes": found.sizes, "steady": found.steady, "spread": found.spread}) == found


def test_a_setting_s_company_is_drawn_by_its_size_and_alone_there_is_none() -> None:
    assert setting(1) == Nuisance("b1")
    assert setting(5) == Nuisance("b5", 5, "shuffled", 5)
    assert len({tuple(np.concatenate([ids for ids, _ in batches(PROBES, setting(n))])[:20]) for n in (3, 4, 5)}) == 3
