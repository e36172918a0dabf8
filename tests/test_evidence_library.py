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
from hspi.evidence.library import Library


@pytest.fixture(scope="module")
def whole() -> Library:
    return world.detector().library("toy")


def test_fewer_platforms_keep_their_own_signatures_and_classes(whole: Library) -> None:
    some = whole.only(["bf16", "int8", "fp32"])
    assert some.data.platform_ids() == some.platform_ids and set(some.platform_ids) == {"bf16", "int8", "fp32"}
    at, here = whole.platform_ids.index("int8"), some.platform_ids.index("int8")
    assert np.array_equal(some.data.logprobs[here], whole.data.logprobs[at], equal_nan=True)
    assert (
        some.classes.separation[here, 0] == whole.classes.separation[at, whole.platform_ids.index(some.platform_ids[0])]
    )
    assert sorted(set(some.classes.label)) == list(range(some.classes.count))
    assert whole.only(whole.platform_ids) is whole
    with pytest.raises(DataError, match="at least 2"):
        whole.only(["bf16"])


def test_classes_are_measured_on_probes_that_train_and_calibrate_alone() -> None:
    library = synthetic.library("one")
    assert library.class_of("bf16-twin") == ["bf16-a", "bf16-twin"] and library.class_of("h100") == ["h100"]
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


def test_libraries_are_joined_setting_by_setting() -> None:
    whole = world.detector().library("toy").data
    first, second = whole.only([0, 1, 2]), whole.only([4])
    second = replace(
        second, nuisances=["b1", "new"], **{n: getattr(second, n)[:, :2] for n in ("logprobs", "rank", "raw")}
    )
    both = first.joined(second)
    assert both.platform_ids() == [*first.platform_ids(), *second.platform_ids()]
    assert both.nuisances == sorted({*first.nuisances, "new"})
    assert both.present.tolist() == [*([n != "new" for n in both.nuisances] for _ in range(3)),
                                     [n in ("b1", "new") for n in both.nuisances]]  # fmt: skip
    at = both.nuisances.index("new")
    assert np.array_equal(both.logprobs[3, at], second.logprobs[0, 1], equal_nan=True)
    with pytest.raises(DataError, match="own probes"):
        first.joined(replace(second, slots=second.slots[:, ::-1]))
