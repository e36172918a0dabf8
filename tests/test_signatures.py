"""Signatures: bits survive the file, and no byte at which a journal is torn costs a finished batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hspi import signatures
from hspi.errors import DataError
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures import Header, Journal, arrow_schema, read_header, read_signature, to_batch, top_k

HEADER = Header(
    platform=Platform("p", "pytorch", env={"A": "1"}, needs_cpu=("avx2",)),
    model="m",
    weights_hash="w",
    probe_set="text",
    probe_hash="h",
    nuisance=Nuisance("b2", 2),
    positions=2,
    top_k=3,
    facts={"torch": "0"},
    created="2026-01-01T00:00:00+00:00",
)


def answers(probe_ids: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """What probe i answers, whatever the batch: ids and log-probabilities (n, positions, k)."""
    rows = [np.random.default_rng(i) for i in probe_ids]
    values = np.stack([-np.sort(r.exponential(size=(2, 3))).astype(np.float32) for r in rows])
    return np.stack([r.permutation(9)[:6].reshape(2, 3) for r in rows]).astype(np.int32), values


def write(path: Path, batches: list[list[int]], header: Header = HEADER) -> Path:
    with Journal(path, header) as journal:
        for probes in batches:
            if not journal.done.issuperset(probes):
                journal.append(to_batch(journal.schema, np.array(probes), 5, *answers(probes)))
        return journal.finish()


# ---------------------------------------------------------------- the k most likely


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            # few values, so that nearly all tie
            st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0]), min_size=7, max_size=7),
            min_size=rows,
            max_size=rows,
        )
    ),
    st.integers(1, 7),
)
def test_top_k_is_a_stable_sort_cut_short(rows: list[list[float]], k: int) -> None:
    values = np.asarray(rows, np.float32)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    ids, found = top_k(values, k)
    np.testing.assert_array_equal(ids, order)
    assert found.tobytes() == np.take_along_axis(values, order, axis=1).tobytes()
    assert ids.dtype == np.int32 and found.dtype == np.float32


def test_top_k_keeps_leading_axes_and_reads_any_layout() -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 2, 50)).astype(np.float32))
    ids, found = top_k(values, 4)
    assert ids.shape == found.shape == (3, 2, 4)
    np.testing.assert_array_equal(ids, np.argsort(-values, axis=-1, kind="stable")[..., :4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_top_k_takes_finite_values_alone(bad: float) -> None:
    values = np.zeros((2, 5), np.float32)
    values[1, 3] = bad
    with pytest.raises(DataError, match="finite"):
        top_k(values, 2)


def test_what_a_server_kept_to_itself_is_never_among_the_top_k() -> None:
    values = np.log(np.array([[0.1, 0.2, 0.4, 0.3]], np.float32))
    values[0, 3] = -np.inf
    assert top_k(values, 3)[0].tolist() == [[2, 1, 0]]
    with pytest.raises(DataError, match="4 finite log-probabilities must come"):
        top_k(values, 4)


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_must_fit_in_the_vocabulary(k: int) -> None:
    with pytest.raises(DataError, match=f"top_k={k}, vocabulary=5"):
        top_k(np.zeros((1, 5), np.float32), k)


# ---------------------------------------------------------------- files


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    header = replace(HEADER, positions=1, top_k=6)
    bits = np.array([0x00000001, 0x80000000, 0x80000001, 0x807FFFFF, 0xC2F6E979, 0xFF7FFFFF], np.uint32)
    values = bits.view(np.float32).reshape(1, 1, 6)
    ids = np.array([[[5, 0, 2**31 - 1, 3, 1, 2]]], np.int32)
    with Journal(tmp_path / "s.parquet", header) as journal:
        journal.append(to_batch(journal.schema, np.array([0]), 4, ids, values))
        found = read_signature(journal.finish())
    assert found.topk_logprobs.tobytes() == values.tobytes()
    np.testing.assert_array_equal(found.topk_ids, ids[0])
    assert found.header == header
    assert (found.token_id.tolist(), found.context_len.tolist()) == ([5], [4])


def test_rows_are_sorted_whatever_the_order_of_serving(tmp_path: Path) -> None:
    found = read_signature(write(tmp_path / "s.parquet", [[3, 0], [2, 1]]))
    np.testing.assert_array_equal(found.probe_id, [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(found.position, [0, 1] * 4)
    np.testing.assert_array_equal(found.context_len, [4, 5] * 4)
    ids, values = answers([0, 1, 2, 3])
    np.testing.assert_array_equal(found.topk_ids, ids.reshape(-1, 3))
    np.testing.assert_array_equal(found.token_id, ids[:, :, 0].ravel())
    last = found.last_position()
    np.testing.assert_array_equal(last.topk_logprobs, values[:, -1])
    np.testing.assert_array_equal(last.probe_id, [0, 1, 2, 3])


def test_nothing_stands_under_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "s.parquet"
    with Journal(path, HEADER) as journal:
        journal.append(to_batch(journal.schema, np.array([0]), 5, *answers([0])))
        assert not path.exists()
        with pytest.raises(DataError):
            read_signature(journal.partial)
        journal.finish()
    assert [p.name for p in path.parent.iterdir()] == ["s.parquet"]


def test_a_file_cut_anywhere_is_never_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "s.parquet", [[0, 1]]).read_bytes()
    torn = tmp_path / "torn.parquet"
    for size in range(0, len(whole), 7):
        torn.write_bytes(whole[:size])
        with pytest.raises(DataError):
            read_signature(torn)


def header_json(**changes: object) -> bytes:
    return json.dumps({**json.loads(HEADER.to_json()), **changes}).encode()


@pytest.mark.parametrize(
    "text",
    [
        header_json(schema_version=2),
        header_json(schema_version=None),
        header_json(platform="p"),
        header_json(platform={"id": "p"}),
        header_json(platform={"id": "p", "engine": "e", "provenance": "hearsay"}),
        header_json(nuisance={"name": "b", "batch_size": 0}),
        header_json(nuisance={"colour": "red"}),
        header_json(surprise=1),
        header_json(top_k="many"),
        header_json(top_k=-1),
        header_json(positions=0),
        b"[]",
        b"{",
        b"\xff",
    ],
)
def test_a_foreign_header_is_a_data_error(tmp_path: Path, text: bytes) -> None:
    table = pq.read_table(write(tmp_path / "s.parquet", [[0]]))
    path = tmp_path / "foreign.parquet"
    pq.write_table(table.replace_schema_metadata({b"hspi": text}), path)
    with pytest.raises(DataError):
        read_signature(path)


def test_parquet_of_someone_else_is_a_data_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet must be a signature"):
        read_header(tmp_path / "x.parquet")
    with pytest.raises(DataError):
        read_header(tmp_path / "absent.parquet")
    with pytest.raises(DataError):
        read_header(tmp_path)


def changed(table: pa.Table, column: str, values: object) -> pa.Table:
    i = table.schema.get_field_index(column)
    return table.set_column(i, table.schema.field(i), pa.array(values, table.schema.field(i).type))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("probe_id", [0, 0, 1, 2]),  # a position of probe 1 is missing
        ("probe_id", [0, 0, 0, 0]),  # a probe twice
        ("probe_id", [0, 0, -1, -1]),
        ("probe_id", [0, 0, None, 1]),
        ("position", [0, 1, 0, 2]),
        ("token_id", [None, 1, 2, 3]),
        ("topk_ids", [[0, 1, 2]] * 3 + [None]),
        ("topk_logprobs", [[-1.0, -2.0, -3.0]] * 3 + [[-1.0, None, -2.0]]),
        ("topk_logprobs", [[-1.0, -2.0, -3.0]] * 3 + [[-1.0, float("nan"), -2.0]]),
        ("topk_logprobs", [[-1.0, -2.0, -3.0]] * 3 + [[-1.0, -3.0, -2.0]]),
    ],
)
def test_rows_that_the_header_does_not_promise_are_a_data_error(tmp_path: Path, column: str, values: list) -> None:
    table = pq.read_table(write(tmp_path / "s.parquet", [[0, 1]]))
    path = tmp_path / "wrong.parquet"
    pq.write_table(changed(table, column, values), path)
    with pytest.raises(DataError, match=r"wrong\.parquet"):
        read_signature(path)


def test_other_columns_are_a_data_error(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "s.parquet", [[0]]))
    pq.write_table(table.drop_columns(["token_id"]), tmp_path / "w.parquet")
    with pytest.raises(DataError, match="columns of schema"):
        read_signature(tmp_path / "w.parquet")


# ---------------------------------------------------------------- the journal


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


def test_a_store_lists_finished_signatures_alone(tmp_path: Path) -> None:
    path = write(signatures.signature_path(tmp_path, "p", "some/where/m", "text", "b2"), [[0]])
    assert path == tmp_path / "p" / "m" / "text.b2.parquet"
    path.with_name("x.parquet.partial").write_bytes(b"")
    path.with_name("x.parquet.tmp").write_bytes(b"")
    assert list(signatures.iter_store(tmp_path)) == [path]
