"""Signatures: bits survive the file, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hspi.errors import DataError
from hspi.signatures.batch_classes import BatchClasses, unsteady
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, read_header, read_signature
from written import HEADER, answers, write


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
        header_json(batch_classes="b1"),
        header_json(batch_classes={"sizes": 3, "steady": True, "spread": 0}),
        header_json(batch_classes={"sizes": {"b1": "1"}, "steady": True}),
        header_json(batch_classes={"sizes": {}, "steady": True, "spread": "much"}),
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


@pytest.mark.parametrize("found", [None, BatchClasses({"b1": "1-2 16-64", "b3": "3-15"}), unsteady(0.25)])
def test_what_was_found_of_batch_classes_travels_in_the_header(tmp_path: Path, found: BatchClasses | None) -> None:
    header = replace(HEADER, batch_classes=found)
    again = read_header(write(tmp_path / "s.parquet", [[0]], header))
    assert again == header and again.same_work(header) and type(again.batch_classes) is type(found)


def test_a_header_from_before_batch_classes_is_read(tmp_path: Path) -> None:
    """Nobody looked for classes then, and `hardware` was what the engine wanted."""
    old = json.loads(HEADER.to_json())
    del old["batch_classes"]
    old["platform"]["hardware"] = old["platform"].pop("device")
    assert Header.from_json(json.dumps(old)) == HEADER


def test_a_header_s_platform_has_its_hardware_s_name() -> None:
    assert HEADER.placed.id == "cpu/p" and HEADER.platform.id == "p"
    cpu = {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": "23/49/0"}
    assert replace(HEADER, facts=cpu).placed.id == "amd-zen2/p"


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
