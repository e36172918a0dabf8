"""What an audit brings along: small, whole, and the same bytes for the same detector."""

from __future__ import annotations

from pathlib import Path

import pytest

import audit_world as world
from hspi.audits import folder
from hspi.audits.folder import DETECTOR, pack, unpack
from hspi.errors import DataError


def test_what_was_saved_scores_alike_and_takes_a_fraction_of_the_space(tmp_path: Path) -> None:
    made = world.material("http://h")
    for name in ("a", "b"):
        folder.save(made, tmp_path / name)
    assert (tmp_path / "a" / DETECTOR).read_bytes() == (tmp_path / "b" / DETECTOR).read_bytes()
    found = folder.load(tmp_path / "a")
    ours, theirs = made.detector.library("toy").data, found.detector.library("toy").data
    for name in ("slots", "reference", "logprobs", "rank", "predicted"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
    assert found.detector.calibration == made.detector.calibration
    assert (tmp_path / "a" / DETECTOR).stat().st_size < ours.logprobs.nbytes + ours.predicted.nbytes
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
