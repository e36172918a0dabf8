"""Signatures: the schema, the files, and the journal that makes a killed collection resume.

A signature is one Parquet file with a row for each (probe, position); everything about where it came from travels in
the file's metadata (DESIGN.md §6). While it grows it is an Arrow stream, `<name>.partial`, flushed after each batch:
what a kill leaves is read back up to the last whole batch. The finished file is renamed into place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hspi.errors import ConfigError, DataError
from hspi.files import whole
from hspi.platforms.record import Nuisance, Platform

SCHEMA_VERSION = 1
_KEY = b"hspi"


@dataclass(frozen=True, slots=True)
class Header:
    """Provenance of a signature, inside the file. `facts`: versions and hardware, as the machine itself reports."""

    platform: Platform
    model: str
    weights_hash: str
    probe_set: str
    probe_hash: str
    nuisance: Nuisance
    positions: int
    top_k: int
    facts: dict[str, str] = field(default_factory=dict)
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Header:
        """Raises DataError if the text is not a header of this schema."""
        try:
            data = json.loads(text)
            if data.get("schema_version") != SCHEMA_VERSION:
                raise DataError(f"schema_version must be {SCHEMA_VERSION}, but got {data.get('schema_version')!r}")
            data["platform"] = Platform.from_dict(data["platform"])
            data["nuisance"] = Nuisance(**data["nuisance"])
            header = cls(**data)
            if header.positions < 1 or header.top_k < 1:
                raise DataError(f"`positions >= 1` and `top_k >= 1` must hold, but got {header}")
        except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
            raise DataError(f"a signature's header must hold its provenance, but: {_first_line(error)}") from error
        return header

    def same_work(self, other: Header) -> bool:
        """Whether rows collected under both headers may stand in one file: all but the time must agree."""
        return {**asdict(self), "created": ""} == {**asdict(other), "created": ""}


@dataclass(frozen=True, slots=True)
class Signature:
    """n rows sorted by (probe_id, position); k = header.top_k.

    probe_id, position, context_len, token_id: int32 (n,); token_id is the most likely token.
    topk_ids int32 (n, k) and topk_logprobs float32 (n, k), most likely first, ties by the lower id.
    """

    header: Header
    probe_id: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    context_len: npt.NDArray[np.int32]
    token_id: npt.NDArray[np.int32]
    topk_ids: npt.NDArray[np.int32]
    topk_logprobs: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.probe_id)

    def last_position(self) -> Signature:
        """The rows of the last position of each probe: what one output token of an API shows."""
        keep = self.position == self.header.positions - 1
        columns = {name: getattr(self, name)[keep] for name in _COLUMNS}
        return Signature(self.header, **columns)


_COLUMNS = ("probe_id", "position", "context_len", "token_id", "topk_ids", "topk_logprobs")


def arrow_schema(header: Header) -> pa.Schema:
    k = header.top_k
    return pa.schema(
        [
            ("probe_id", pa.int32()),
            ("position", pa.int32()),
            ("context_len", pa.int32()),
            ("token_id", pa.int32()),
            ("topk_ids", pa.list_(pa.int32(), k)),
            ("topk_logprobs", pa.list_(pa.float32(), k)),
        ],
        metadata={_KEY: header.to_json().encode()},
    )


def top_k(logprobs: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The k most likely tokens of each row: ids int32 and log-probabilities float32, (…, k); ties by the lower id.

    A server may keep tokens to itself: they stand at -inf, and are never among the k. Raises DataError if another value
    is not finite, fewer than k are left, or k exceeds the vocabulary.
    """
    if not 1 <= k <= logprobs.shape[-1]:
        raise DataError(f"`1 <= top_k <= vocabulary` must hold, but got top_k={k}, vocabulary={logprobs.shape[-1]}")
    rows = np.ascontiguousarray(logprobs, dtype=np.float32).reshape(-1, logprobs.shape[-1])
    ids = _best_first(rows, k)
    values = np.take_along_axis(rows, ids, axis=-1)
    if not np.isfinite(values[:, -1]).all():
        raise DataError(f"{k} finite log-probabilities must come for each context, but some got fewer")
    return ids.reshape(*logprobs.shape[:-1], k), values.reshape(*logprobs.shape[:-1], k)


_CACHED_ROWS = 16  # at a time, so that their keys stay in cache


def _best_first(rows: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int32]:
    """Ids of the k largest values of each row, ties by the lower id: the k least of keys (bits of the value, id).

    One buffer holds the keys of all blocks: fresh ones would be pages that the system gives and takes back each time.
    """
    n, vocab = rows.shape
    order, tokens = _falling(rows), np.arange(vocab, dtype=np.uint64)
    keys = np.empty((min(n, _CACHED_ROWS), vocab), np.uint64)
    best = np.empty((n, k), np.int32)
    for start in range(0, n, _CACHED_ROWS):
        part = order[start : start + _CACHED_ROWS]
        own = keys[: len(part)]
        own[...] = part
        np.left_shift(own, np.uint64(32), out=own)
        np.bitwise_or(own, tokens, out=own)
        own.partition(k - 1, axis=-1)
        best[start : start + len(part)] = np.sort(own[:, :k], axis=-1).astype(np.uint32)
    return best


def _falling(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Integers in the opposite order of the values. The bits of negative floats, read as integers, are that already;
    where one is not negative those are turned round, with -0 no less than 0. Raises DataError at a NaN or +inf.
    """
    highest = rows.max(initial=-np.inf)
    if highest < 0:
        return rows.view(np.uint32)
    if not highest < np.inf:
        raise DataError("log-probabilities must be finite, but some are not")
    rows = rows + np.float32(0)
    return rows.view(np.uint32) ^ (~(rows.view(np.int32) >> 31)).view(np.uint32) & np.uint32(0x7FFFFFFF)


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
        header = Header.from_json(reader.schema.metadata[_KEY])
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


def read_header(path: str | Path) -> Header:
    """Provenance alone, without the rows. Raises DataError if the file is not a signature."""
    try:
        return Header.from_json(pq.read_schema(path).metadata[_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(f"{path} must be a signature of schema {SCHEMA_VERSION}, but: {_first_line(error)}") from error


def read_signature(path: str | Path) -> Signature:
    """Read one file, whole. Raises DataError if it is not a signature or its rows are not what the header says."""
    header = read_header(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} must be readable Parquet, but: {_first_line(error)}") from error
    if not table.schema.equals(arrow_schema(header)):
        raise DataError(f"{path} must have the columns of schema {SCHEMA_VERSION}, but got {table.schema.names}")
    n, k = table.num_rows, header.top_k
    flat = [c for name in _COLUMNS for c in (table[name], *_items(table[name]))]
    if any(c.null_count for c in flat):
        raise DataError(f"{path} must hold a value in every place, but some are null")
    plain = {name: table[name].to_numpy().astype(np.int32, copy=False) for name in _COLUMNS[:4]}
    lists = {name: table[name].combine_chunks().flatten().to_numpy().reshape(n, k) for name in _COLUMNS[4:]}
    found = Signature(header, **plain, **lists)
    if why := _not_whole(found):
        raise DataError(f"{path} must hold {why}, but it does not")
    return found


def _items(column: pa.ChunkedArray) -> list[pa.Array]:
    return [column.combine_chunks().flatten()] if pa.types.is_fixed_size_list(column.type) else []


def _not_whole(s: Signature) -> str:
    """What does not hold of these rows, or nothing. A place with id -1 is one that the platform did not report."""
    positions, probes = s.header.positions, s.probe_id[:: s.header.positions]
    if len(s) == 0 or len(s) % positions or (np.diff(probes) <= 0).any() or probes[0] < 0:
        return "each probe once, in order"
    if not (s.position.reshape(-1, positions) == np.arange(positions)).all() or (
        (s.probe_id.reshape(-1, positions) != probes[:, None]).any()
    ):
        return f"positions 0..{positions - 1} of each probe"
    if not np.isfinite(s.topk_logprobs[s.topk_ids >= 0]).all() or (np.diff(s.topk_logprobs, axis=1) > 0).any():
        return "finite log-probabilities, most likely first"
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def signature_path(root: str | Path, platform: str, model: str, probe_set: str, nuisance: str) -> Path:
    """Where a signature stands in a store. Names are for people; programs read the header."""
    return Path(root) / platform / Path(model).name / f"{probe_set}.{nuisance}.parquet"


def iter_store(root: str | Path) -> Iterator[Path]:
    """Every finished signature below a folder, in a stable order."""
    return iter(sorted(Path(root).glob("*/*/*.parquet")))
