"""What an audit brings along: small, whole, and the same bytes for the same detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import audit_world as world
from hspi.audit import material
from hspi.audit.candidates import joined
from hspi.audit.material import DETECTOR, pack, unpack
from hspi.errors import DataError


def test_what_was_saved_scores_alike_and_takes_a_fraction_of_the_space(tmp_path: Path) -> None:
    made = world.material("http://h")
    for name in ("a", "b"):
        material.save(made, tmp_path / name)
    assert (tmp_path / "a" / DETECTOR).read_bytes() == (tmp_path / "b" / DETECTOR).read_bytes()
    found = material.load(tmp_path / "a")
    ours, theirs = made.bundle.library["toy"], found.bundle.library["toy"]
    for name in ("slots", "reference", "logprobs", "rank"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
    assert found.bundle.calibration == made.bundle.calibration
    assert (tmp_path / "a" / DETECTOR).stat().st_size < ours.logprobs.nbytes
    assert (found.probes, found.special, found.inexact) == (made.probes, made.special, made.inexact)


def test_a_detector_that_is_no_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file").write_bytes(bytes(1000))
    pack(tmp_path / "some", tmp_path / "whole.zip")
    data = (tmp_path / "whole.zip").read_bytes()
    for spoilt in (b"", data[:60], data[: len(data) // 2]):
        (tmp_path / "torn.zip").write_bytes(spoilt)
        with pytest.raises(DataError, match=r"torn.zip must hold a detector.*$"):
            unpack(tmp_path / "torn.zip", tmp_path / "out")


def test_libraries_are_joined_setting_by_setting() -> None:
    whole = world.bundle().library["toy"]
    first, second = whole.only([0, 1, 2]), whole.only([4])
    second = replace(
        second, nuisances=["b1", "new"], **{n: getattr(second, n)[:, :2] for n in ("logprobs", "rank", "raw")}
    )
    both = joined(first, second)
    assert both.platform_ids() == [*first.platform_ids(), *second.platform_ids()]
    assert both.nuisances == sorted({*first.nuisances, "new"})
    assert both.present.tolist() == [*([n != "new" for n in both.nuisances] for _ in range(3)),
                                     [n in ("b1", "new") for n in both.nuisances]]  # fmt: skip
    at = both.nuisances.index("new")
    assert np.array_equal(both.logprobs[3, at], second.logprobs[0, 1], equal_nan=True)
    with pytest.raises(DataError, match="own probes"):
        joined(first, replace(second, slots=second.slots[:, ::-1]))
