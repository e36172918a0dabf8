"""The journal that makes a killed collection resume.

While a signature grows it is an Arrow stream, `<name>.partial`, flushed after each batch: what a kill leaves is read
back up to the last whole batch. The finished file is renamed into place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hspi.errors import DataError
from hspi.files import whole
from hspi.signatures.schema import KEY, Header, arrow_schema


def to_batch(
    schema: pa.Schema, probe_ids: npt.NDArray[Any], context_len: int, ids: npt.NDArray[Any], logprobs: npt.NDArray[Any]
) -> pa.RecordBatch:
    """Rows of B probes, of the schema that `arrow_schema` gives: ids int32 and logprobs float32, (B, positions, k)."""
    b, positions, k = ids.shape
    n = b * positions
    columns = [
        np.repeat(np.asarray(probe_ids, np.int32), positions),
        np.tile(np.arange(positions, dtype=np.int32), b),
        np.tile(np.arange(context_len - positions + 1, context_len + 1, dtype=np.int32), b),
        ids[:, :, 0].reshape(n),
    ]
    arrays: list[pa.Array] = [_int32(c) for c in columns]
    arrays.append(pa.FixedSizeListArray.from_arrays(_int32(ids), k))
    values = np.ascontiguousarray(logprobs, np.float32)
    flat = pa.Array.from_buffers(pa.float32(), values.size, [None, pa.py_buffer(values)])
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, k))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _int32(values: npt.NDArray[Any]) -> pa.Array:
    """The same bytes as an Arrow array; `pa.array` would import pandas first, which takes as long as many probes."""
    data = np.ascontiguousarray(values, np.int32)
    return pa.Array.from_buffers(pa.int32(), data.size, [None, pa.py_buffer(data)])


class Journal:
    """The growing file of one signature. Use as a context manager; `done` holds the probes that are safe."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.header = header
        self.done: set[int] = set()
        self._rows = 0

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._recover()
        self.schema = arrow_schema(self.header)
        fresh = self.partial.with_name(self.partial.name + ".tmp")
        self._sink = pa.OSFile(str(fresh), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self.schema)
        for batch in kept:
            self.append(batch)
        fresh.replace(self.partial)
        return self

    def _recover(self) -> list[pa.RecordBatch]:
        found = _read_partial(self.partial)
        if found is None or not found[0].same_work(self.header):
            return []
        self.header = found[0]  # keeps the time of the first start
        return found[1]

    def append(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._sink.flush()
        self._rows += len(batch)
        self.done.update(batch.column(0).to_pylist())

    def finish(self) -> Path:
        """Sort, write the Parquet file under a temporary name, rename it, and drop the journal."""
        self._writer.close()
        self._sink.close()
        found = _read_partial(self.partial)
        if found is None or sum(map(len, found[1])) != self._rows:
            raise DataError(f"{self.partial} must have one writer, but another process wrote it meanwhile: run again")
        table = pa.Table.from_batches(found[1], schema=self.schema)
        write_table(table, self.path)
        self.partial.unlink()
        return self.path

    def __exit__(self, *exc: object) -> None:
        if not self._sink.closed:
            self._sink.close()


def _read_partial(path: Path) -> tuple[Header, list[pa.RecordBatch]] | None:
    """Header and whole batches of a journal, or None where there is none. A torn tail is dropped."""
    try:
        reader = pa.ipc.open_stream(path.read_bytes())
        header = Header.from_json(reader.schema.metadata[KEY])
    except (OSError, pa.ArrowException, DataError, KeyError, TypeError):
        return None
    return header, list(_whole_batches(reader))


def _whole_batches(reader: pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowException, OSError):
            return


def write_table(table: pa.Table, path: Path) -> None:
    order = [("probe_id", "ascending"), ("position", "ascending")]
    with whole(path) as temporary:
        pq.write_table(
            table.sort_by(order),
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=["probe_id", "position", "context_len"],
            column_encoding={"topk_logprobs.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
        )
