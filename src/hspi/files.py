"""Files: written whole or not at all, whoever else writes them and whatever ends the writer; and the project's folder.

What is being written stands beside its target under a name of its own, `<name>.<16 hex digits>.tmp`, and takes the
target's name when it is complete: a reader finds the old content or the new one, and of several writers the last wins.
Only a kill leaves such a file behind; the next writer of the same target takes it away once it is a day old.
Journals, which grow and are read back up to the last whole record, are no concern of this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from glob import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_TORN = f"{'[0-9a-f]' * 16}.tmp"  # how a name ends while it is being written
ABANDONED = 24 * 3600  # seconds since the last byte, after which nobody can be writing still


@contextmanager
def whole(path: str | Path, *, sync: bool = False) -> Iterator[Path]:
    """A free name beside `path` for the block to write, which is `path` afterwards; folders on the way are made.

    Where the block raises, nothing of it stays and `path` is as it was. sync: only what is on the disk is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _take_away_abandoned(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as f:
                os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _take_away_abandoned(path: Path) -> None:
    for left in path.parent.glob(f"{escape(path.name)}.{_TORN}"):
        try:
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
        except FileNotFoundError:  # its writer, or another one, was faster
            continue


def take_away_torn(folder: Path) -> None:
    """What killed writers left in a folder that nobody else is writing to now."""
    for left in folder.rglob(f"*.{_TORN}"):
        left.unlink()


def write_bytes(path: str | Path, content: bytes, *, sync: bool = False) -> Path:
    """Returns `path`; sync: as in `whole`."""
    with whole(path, sync=sync) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """UTF-8, line ends as they are. Returns `path`."""
    return write_bytes(path, text.encode())


# ---------------------------------------------------------------- JSON


def to_json(data: Any, *, indent: int | None = 1, sort_keys: bool = True, end: str = "\n") -> str:
    """Sorted and indented unless asked otherwise: the same data give the same bytes."""
    return json.dumps(data, indent=indent, sort_keys=sort_keys) + end


def write_json(path: str | Path, data: Any, *, indent: int | None = 1, sort_keys: bool = True, end: str = "\n") -> Path:
    """The text of `to_json`. Returns `path`."""
    return write_text(path, to_json(data, indent=indent, sort_keys=sort_keys, end=end))


def read_json(path: str | Path) -> Any:
    """Raises OSError, or ValueError where the file is no JSON."""
    return json.loads(Path(path).read_text("utf-8"))


# ---------------------------------------------------------------- arrays


def write_array(path: str | Path, array: npt.NDArray[Any]) -> Path:
    """One array of any shape as safetensors, on the disk before it takes its name. Returns `path`."""
    from safetensors.numpy import save

    return write_bytes(path, save({"array": np.ascontiguousarray(array)}), sync=True)


def read_array(path: str | Path, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any] | None:
    """The array that `write_array` left there, or None if the file is not that, whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)["array"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None


# ---------------------------------------------------------------- what is there


def digest(path: str | Path) -> str:
    """The sha256 of a file, as hex."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@cache
def version(package: str) -> str:
    """Of an installed distribution; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def root() -> Path:
    """The project's folder: HSPI_ROOT, else the nearest one from here upward, else the checkout this file is in."""
    if "HSPI_ROOT" in os.environ:
        return Path(os.environ["HSPI_ROOT"]).expanduser().resolve()
    here = Path.cwd()
    candidates = [here, *here.parents, *Path(__file__).resolve().parents[2:3]]
    return next((p for p in candidates if (p / "data" / "zoo.dvc").is_file()), here)
