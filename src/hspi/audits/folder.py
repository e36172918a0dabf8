"""An audit's folder: what it brought along, the answers as they come, and at the end the finished evidence, of which
every byte is accounted for.

What it brings along is written before the first question, so that the same command goes on after a kill, and scoring it
again needs neither weights, tokenizer nor registry.
"""

from __future__ import annotations

import json
import lzma
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from hspi.audits.material import Material, Probe, Settings
from hspi.client import LOCKED_OUT, Endpoint, Invalid, Question, Refused, Reply, parse
from hspi.detectors.detector import Detector
from hspi.errors import ConfigError, DataError
from hspi.files import digest, read_json, take_away_torn, to_json, whole, write_json, write_text

JOURNAL = "answers.journal"
ANSWERS = "answers.jsonl"
MANIFEST = "manifest.json"
DETECTOR = "detector.zip"
READY = "ready"  # stands once the material is whole
MOST = 4 << 30  # bytes that a detector may unpack to

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
            self.rows = {n: row for n, row in self.rows.items() if row["status"] not in LOCKED_OUT}  # for another key
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


# ---------------------------------------------------------------- what it brings along


def open_folder(folder: Path, material: Callable[[], Material], settings: Settings) -> Material:
    """The material in the folder if it is of these settings, else that of `material`, saved there.

    Raises ConfigError if the folder holds another audit, DataError if a sealed one was changed.
    """
    if is_sealed(folder):
        check_seal(folder)
    if (folder / "settings.json").exists():
        found = read_settings(folder)
        if found != settings:
            raise ConfigError(f"{folder} must hold no other audit, but it holds one of {found.served!r}: name another")
    elif folder.exists() and any(not f.name.endswith(".tmp") for f in folder.iterdir()):
        raise ConfigError(f"{folder} must be empty or hold this audit, but it does not")
    take_away_torn(folder)  # a folder ends the same whether a kill came between or not
    if (folder / READY).exists():
        return load(folder)
    made = material()
    save(made, folder)
    write_text(folder / READY, "")
    return load(folder)


def save(material: Material, folder: Path) -> None:
    write_json(folder / "settings.json", asdict(material.settings))
    write_json(folder / "facts.json", material.facts)
    asked: dict[str, Any] = {name: [asdict(p) for p in getattr(material, name)] for name in ("probes", "warm_up")}
    asked |= {name: getattr(material, name) for name in ("special", "inexact", "weights")}
    write_json(folder / "probes.json", asked)
    write_json(folder / "vocabulary.json", material.vocabulary)
    with tempfile.TemporaryDirectory() as scratch:
        material.detector.save(Path(scratch) / "detector")
        pack(Path(scratch) / "detector", folder / DETECTOR)


def load(folder: Path) -> Material:
    """Raises DataError if the folder is not one that `save` wrote."""
    settings = read_settings(folder)
    try:
        asked = read_json(folder / "probes.json")
        groups = {name: [Probe(**p) for p in asked[name]] for name in ("probes", "warm_up")}
        more = {name: asked[name] for name in ("special", "inexact", "weights")}
        vocabulary, facts = read_json(folder / "vocabulary.json"), read_json(folder / "facts.json")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        unpack(folder / DETECTOR, Path(scratch) / "detector")
        detector = Detector.load(Path(scratch) / "detector")
    return Material(settings, detector, groups["probes"], groups["warm_up"], vocabulary, facts, **more)


def pack(source: Path, target: Path) -> None:
    """Every file of a folder into a zip file: the same files give the same bytes."""
    with whole(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(str(path.relative_to(source)))  # dated 1980
            entry.compress_type = zipfile.ZIP_LZMA  # its window is wide enough to see that settings repeat each other
            archive.writestr(entry, path.read_bytes())


def unpack(source: Path, target: Path) -> None:
    """Raises DataError if the file is no zip file, or holds more than any detector does."""
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST:
                raise DataError(f"{source} must hold at most {MOST} bytes, but it holds {size}")
            archive.extractall(target)
    except (OSError, zipfile.BadZipFile, lzma.LZMAError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{source} must hold a detector, but: {error}") from error


def read_settings(folder: Path) -> Settings:
    try:
        return Settings(**read_json(folder / "settings.json"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error


# ---------------------------------------------------------------- the manifest


def seal(folder: Path) -> None:
    """Write the manifest: the sha256 of every file."""
    files = {str(p.relative_to(folder)): digest(p) for p in _files(folder)}
    write_json(folder / MANIFEST, files)


def check_seal(folder: Path) -> None:
    """Raises DataError with the name of the first file that is not as it was sealed."""
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
            raise DataError(f"{folder / name} must be in the sealed folder, but it is missing")
        if name not in sealed:
            raise DataError(f"{folder / name} must be listed in {MANIFEST}, but it is not")
        if digest(present[name]) != sealed[name]:
            raise DataError(f"{folder / name} must be as it was sealed, but it (or its line in {MANIFEST}) was changed")


def is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and not p.name.endswith(".tmp"))
