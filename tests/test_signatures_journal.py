"""The journal: no byte at which it is torn costs a finished batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hspi.errors import DataError
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.batch_classes import BatchClasses
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import arrow_schema, read_header, read_signature
from written import HEADER, answers, write


def test_a_journal_torn_at_any_byte_loses_no_finished_batch_and_repeats_none(tmp_path: Path) -> None:
    plan = [[0, 1], [4, 2], [3]]
    undisturbed = write(tmp_path / "whole.parquet", plan).read_bytes()
    journal = Journal(tmp_path / "s.parquet", HEADER)
    ends = []
    with journal:
        for probes in plan:
            journal.append(to_batch(journal.schema, np.array(probes), 5, *answers(probes)))
            ends.append(journal.partial.stat().st_size)
    bytes_of = journal.partial.read_bytes()
    near = {max(0, end + d) for end in ends for d in range(-20, 20)}
    for size in sorted({*range(0, len(bytes_of), 29), *near}):
        journal.partial.write_bytes(bytes_of[:size])
        safe = {p for probes, end in zip(plan, ends, strict=True) if end <= size for p in probes}
        with Journal(journal.path, HEADER) as again:
            assert again.done == safe, f"cut at {size}"
            for probes in plan:
                if not again.done.issuperset(probes):
                    again.append(to_batch(again.schema, np.array(probes), 5, *answers(probes)))
            assert again.finish().read_bytes() == undisturbed, f"cut at {size}"


def test_a_journal_of_other_work_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    changes = [
        {"weights_hash": "other"},
        {"probe_hash": "other"},
        {"nuisance": Nuisance("b2", 3)},
        {"top_k": 4},
        {"facts": {"torch": "1"}},
        {"batch_classes": BatchClasses({"b1": "1-64"})},
        {"platform": Platform("p", "pytorch", env={"A": "2"})},
    ]
    for change in changes:
        with Journal(path, HEADER) as journal:
            journal.append(to_batch(journal.schema, np.array([0]), 5, *answers([0])))
        with Journal(path, replace(HEADER, **change)) as other:  # type: ignore[arg-type]
            assert other.done == set(), change


def test_a_continued_journal_keeps_the_time_of_its_start(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with Journal(path, HEADER) as journal:
        journal.append(to_batch(journal.schema, np.array([0]), 5, *answers([0])))
    write(path, [[0], [1]], replace(HEADER, created="2027-01-01T00:00:00+00:00"))
    assert read_header(path).created == HEADER.created


def test_garbage_in_the_journal_starts_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    for garbage in (b"", b"garbage", b"\xff" * 999, arrow_schema(HEADER).remove_metadata().serialize().to_pybytes()):
        path.with_name("s.parquet.partial").write_bytes(garbage)
        with Journal(path, HEADER) as journal:
            assert journal.done == set()


def test_two_writers_of_one_journal_never_leave_a_file_with_rows_missing(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with Journal(path, HEADER) as first:
        first.append(to_batch(first.schema, np.array([0]), 5, *answers([0])))
        with Journal(path, HEADER) as second:  # an orphan of a killed run, or a second run
            first.append(to_batch(first.schema, np.array([1]), 5, *answers([1])))
            with pytest.raises(DataError, match="one writer"):
                first.finish()
            assert not path.exists()
            second.append(to_batch(second.schema, np.array([1]), 5, *answers([1])))
            second.finish()
    assert read_signature(path).probe_id.tolist() == [0, 0, 1, 1]
