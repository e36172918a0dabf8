"""Libraries: fewer platforms, more platforms, fewer probes; what is saved is what is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import audit_world as world
import synthetic
from hspi.errors import DataError
from hspi.evidence import library as libraries
from hspi.evidence.aligned import align
from hspi.evidence.library import Library


@pytest.fixture(scope="module")
def whole() -> Library:
    return world.detector().library("toy")


def test_fewer_platforms_keep_their_own_signatures_and_classes(whole: Library) -> None:
    names = {"cpu/bf16", "cpu/int8", "cpu/fp32"}
    some = whole.only(sorted(names))
    assert some.data.platform_ids() == some.platform_ids and set(some.platform_ids) == names
    at, here = whole.platform_ids.index("cpu/int8"), some.platform_ids.index("cpu/int8")
    assert np.array_equal(some.data.logprobs[here], whole.data.logprobs[at], equal_nan=True)
    assert (
        some.classes.separation[here, 0] == whole.classes.separation[at, whole.platform_ids.index(some.platform_ids[0])]
    )
    assert sorted(set(some.classes.label)) == list(range(some.classes.count))
    assert whole.only(whole.platform_ids) is whole
    with pytest.raises(DataError, match="at least 2"):
        whole.only(["cpu/bf16"])


def test_classes_are_measured_on_probes_that_train_and_calibrate_alone() -> None:
    library = synthetic.library("one")
    assert library.class_of("cpu/bf16-twin") == ["cpu/bf16-a", "cpu/bf16-twin"]
    assert library.class_of("h100") == ["h100"]
    spoilt = library.data.logprobs.copy()
    test = synthetic.SEED, library.data.probes
    at = libraries.split_probes(test[1], test[0]).test
    spoilt[:, :, at] += np.random.default_rng(0).normal(size=spoilt[:, :, at].shape).astype(np.float32)
    again = Library.measured(replace(library.data, logprobs=spoilt), synthetic.SEED, 20)
    assert again.classes.label == library.classes.label
    np.testing.assert_array_equal(again.classes.separation, library.classes.separation)


def test_a_joined_library_is_measured_anew(whole: Library) -> None:
    ids = whole.platform_ids
    first, second = whole.only(ids[:3]), whole.data.only([3, 4, 5])
    both = first.joined(second, world.SEED, 20)
    assert both.platform_ids == ids and both.classes.count >= first.classes.count
    assert both.data.logprobs.tobytes() == whole.data.logprobs.tobytes()


def test_fewer_probes_leave_the_classes_as_they_were(whole: Library) -> None:
    part = whole.on_probes(np.arange(0, 40, 2))
    assert part.classes is whole.classes and part.data.probes == whole.data.probes[:40:2]


def test_what_is_saved_is_what_is_read_in_its_order(whole: Library, tmp_path: Path) -> None:
    every = [whole, synthetic.library("one"), synthetic.library("two")]
    for library in every:
        library.save(tmp_path / "arrays")
    libraries.save_classes(every, tmp_path)
    found = libraries.load(tmp_path, "arrays")
    assert [x.model for x in found] == ["toy", "one", "two"]
    for a, b in zip(found, every, strict=True):
        assert a.data.logprobs.tobytes() == b.data.logprobs.tobytes() and a.classes.label == b.classes.label
    with pytest.raises(DataError, match="must be features"):
        libraries.load(tmp_path, "elsewhere")


def test_of_platforms_that_answered_alike_in_every_class_one_is_compared() -> None:
    """`fp32-a` computes alike on both machines: its bits, settings and all."""
    both = synthetic.library("one", machines=("amd-zen2", "intel-haswell"))
    left = both.distinct()
    assert set(both.platform_ids) - set(left.platform_ids) == {"intel-haswell/fp32-a"}
    assert left.data.platform_ids() == left.platform_ids and left.classes.count == both.classes.count
    assert left.distinct() is left, "nothing is left to take away"


def test_a_platform_that_lacks_a_class_of_its_twin_s_is_distinct() -> None:
    some = synthetic.signatures("one", ["fp32-a", "bf16-b"], machines=("amd-zen2", "intel-haswell"))
    less = [s for s in some if (s.header.hardware.id, s.header.nuisance.name) != ("intel-haswell", "b4")]
    data = align("one", less, synthetic.reference("one"))
    assert len(Library.measured(data, synthetic.SEED, 20).distinct().platform_ids) == 4
