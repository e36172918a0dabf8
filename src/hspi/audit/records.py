"""The answers of an audit as they come, and the finished evidence: a folder whose every byte is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hspi.client import Endpoint, Invalid, Question, Refused, Reply, parse
from hspi.errors import DataError
from hspi.files import digest, to_json, write_json, write_text

JOURNAL = "answers.journal"
ANSWERS = "answers.jsonl"
MANIFEST = "manifest.json"

Row = dict[str, Any]


@dataclass(slots=True)
class Records:
    """Each question's one answer, by name. Live, what is missing is asked and flushed to the journal at once;
    offline, a missing answer is an error.
    """

    folder: Path
    endpoint: Endpoint | None
    rows: dict[str, Row] = field(default_factory=dict)
    _journal: IO[str] | None = None

    def __enter__(self) -> Records:
        finished = self.folder / ANSWERS
        source = finished if finished.exists() else self.folder / JOURNAL
        self.rows = {row["name"]: row for row in _read_rows(source, torn=source.name == JOURNAL)}
        if self.endpoint is not None and not finished.exists():
            kept = "".join(map(_line, self.rows.values()))  # without a line that a kill tore
            self._journal = write_text(self.folder / JOURNAL, kept).open("a", encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._journal is not None:
            self._journal.close()

    async def ask(self, question: Question, check: Callable[[Reply], object]) -> Reply:
        """As `Endpoint.ask`, once for each name."""
        row = self.rows.get(question.name)
        if row is None:
            row = await self._ask_endpoint(question, check)
        elif (row["route"], row["body"]) != (question.route, question.body):
            raise DataError(f"{self.folder} must hold the answer to this {question.name}, but it holds another one's")
        if row["outcome"] == "refused":
            raise Refused(row["text"], row["status"])
        if row["outcome"] == "invalid":
            raise Invalid(row["text"])
        return Reply(question.name, row["text"], parse(row["text"]))

    async def _ask_endpoint(self, question: Question, check: Callable[[Reply], object]) -> Row:
        if self.endpoint is None or self._journal is None:
            raise DataError(f"{self.folder} must hold an answer to {question.name}, but it does not")
        row: Row = {"name": question.name, "route": question.route, "body": question.body}
        try:
            reply = await self.endpoint.ask(question, check)
            row |= {"outcome": "answered", "status": 200, "text": reply.text}
        except Refused as error:
            row |= {"outcome": "refused", "status": error.status, "text": str(error)}
        except Invalid as error:
            row |= {"outcome": "invalid", "status": 200, "text": str(error)}
        self.rows[question.name] = row
        self._journal.write(_line(row))
        self._journal.flush()
        return row

    def finish(self, order: Iterable[str]) -> None:
        """Write the answers that the audit used, in its own order, and drop the journal."""
        used = "".join(_line(self.rows[name]) for name in order if name in self.rows)
        write_text(self.folder / ANSWERS, used)
        (self.folder / JOURNAL).unlink(missing_ok=True)


def _line(row: Row) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


def _read_rows(path: Path, torn: bool) -> list[Row]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(row["name"], str):
                raise ValueError("it breaks off")
            rows.append(row)
        except (ValueError, KeyError, TypeError) as error:
            if torn:
                break
            raise DataError(f"{path} must hold a record on each line, but: {error}") from error
    return rows


# ---------------------------------------------------------------- the manifest


def seal(folder: Path) -> str:
    """Write the manifest: the sha256 of every file. Returns the manifest's own."""
    files = {str(p.relative_to(folder)): digest(p) for p in _files(folder)}
    write_json(folder / MANIFEST, files)
    return digest(folder / MANIFEST)


def check_seal(folder: Path) -> str:
    """The manifest's sha256. Raises DataError with the name of the first file that is not as it was sealed."""
    path = folder / MANIFEST
    try:
        text = path.read_text("utf-8")
        sealed = json.loads(text)
        canonical = to_json(sealed)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must list an audit's files, but: {error}") from error
    if not isinstance(sealed, dict) or text != canonical:
        raise DataError(f"{path} must be as it was written, but it has been changed")
    present = {str(p.relative_to(folder)): p for p in _files(folder)}
    for name in sorted({*sealed, *present}):
        if name not in present:
            raise DataError(f"{folder / name} must be in the detector, but it is missing")
        if name not in sealed:
            raise DataError(f"{folder / name} must be listed in {MANIFEST}, but it is not")
        if digest(present[name]) != sealed[name]:
            raise DataError(f"{folder / name} must be as it was sealed, but it (or its line in {MANIFEST}) was changed")
    return digest(path)


def is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and not p.name.endswith(".tmp"))
