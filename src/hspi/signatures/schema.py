"""A signature: what one platform answered to one set of probes.

It is one Parquet file with a row for each (probe, position); everything about where it came from travels in the file's
metadata (DESIGN.md §6).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hspi.errors import ConfigError, DataError
from hspi.platforms.hardware import Hardware, hardware_of
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.batch_classes import BatchClasses

SCHEMA_VERSION = 1
KEY = b"hspi"


@dataclass(frozen=True, slots=True)
class Header:
    """Provenance of a signature, inside the file. `facts`: versions and hardware, as the machine itself reports;
    `batch_classes`: what was found of this platform on this model, None where nobody looked.
    """

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
    batch_classes: BatchClasses | None = None

    @property
    def hardware(self) -> Hardware:
        """Which machine answered, by its own facts."""
        return hardware_of(self.platform, self.facts)

    @property
    def placed(self) -> Platform:
        """The platform on its hardware: what a full id, `<hardware>/<software>`, names."""
        return self.platform.on(self.hardware.id)

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
            if found := data.get("batch_classes"):
                data["batch_classes"] = BatchClasses.from_dict(found)
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
        metadata={KEY: header.to_json().encode()},
    )


def read_header(path: str | Path) -> Header:
    """Provenance alone, without the rows. Raises DataError if the file is not a signature."""
    try:
        return Header.from_json(pq.read_schema(path).metadata[KEY])
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
