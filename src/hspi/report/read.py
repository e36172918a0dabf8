"""What the pictures and the page are made from: the tables of one evaluation, its metrics, its platforms."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.evidence.aligned import Aligned
from hspi.platforms import catalogue
from hspi.platforms.record import Platform
from hspi.report.drawing import GREY, INKS

Row = dict[str, str]

# Columns without which a table cannot be shown; the rest of its columns may be missing.
COLUMNS = {
    "accuracy_by_platform": ("hardware", "software", "accuracy", "ci_low", "ci_high"),
    "pair_accuracy": ("level", "split", "model", "platform_a", "platform_b", "accuracy"),
    "classes": ("model", "class", "platforms"),
    "accuracy_by_tokens": ("level", "tokens", "top_k", "accuracy", "ci_low", "ci_high"),
    "reliability": ("confidence", "accuracy", "count"),
    "by_factor": ("factor", "value", "accuracy"),
    "open_set": ("score", "is_known"),
    "false_alarm": ("alpha", "rate", "ci_low", "ci_high", "n"),
    "spans": ("model", "class", "platforms", "hardware"),
    "hardware": ("hardware", "question", "value", "ci_low", "ci_high", "n"),
}
MARKS = {"real": "●", "capped": "◐", "emulated": "○"}  # of the provenance, the same in pictures and tables


@dataclass(frozen=True, slots=True)
class Evaluation:
    """metrics by dotted name; tables by name, each a list of rows of text; platforms by id where a record is known:
    by the full one where features hold it, by that of the software where the catalogue does."""

    metrics: dict[str, float]
    tables: dict[str, list[Row]]
    platforms: dict[str, Platform]
    features: list[Aligned] = field(default_factory=list)

    def record(self, platform: str) -> Platform | None:
        return self.platforms.get(platform) or self.platforms.get(software(platform))

    def engine(self, platform: str) -> str:
        known = self.record(platform)
        return known.engine if known else "?"

    def number_format(self, platform: str) -> str:
        known = self.record(platform)
        return known.number_format if known else "?"

    def provenance(self, platform: str) -> str:
        """As the evaluation says, or its record; "unknown" where there is none."""
        for row in self.tables.get("accuracy_by_platform", []):
            if row.get("provenance") and (row["hardware"], row["software"]) == (hardware(platform), software(platform)):
                return row["provenance"]
        known = self.record(platform)
        return known.provenance if known else "unknown"

    def mark(self, platform: str) -> str:
        return MARKS.get(self.provenance(platform), "?")

    def ink(self, platform: str) -> str:
        return INKS.get(self.provenance(platform), GREY)

    def machine(self, platforms: Collection[str]) -> tuple[str, str]:
        """Name and ink of the machine that these stand on, and the word where all of it is emulated."""
        name = hardware(next(iter(platforms))) or "no hardware named"
        if {self.provenance(p) for p in platforms} == {"emulated"}:
            return f"{name} {MARKS['emulated']} emulated", INKS["emulated"]
        return name, "#20262b"

    def ordered(self, ids: Iterable[str]) -> list[str]:
        """By hardware, then by engine, number format, attention and provenance."""

        def place(id: str) -> tuple[object, ...]:
            p = self.record(id)
            return (
                hardware(id),
                p is None,
                *((p.engine, p.number_format, p.dtype, p.attention, p.provenance) if p else ()),
                id,
            )

        return sorted(set(ids), key=place)

    def ids(self) -> list[str]:
        """Every platform that the evaluation speaks of, in order."""
        rows = self.tables.get("classes", [])
        pairs = self.tables.get("pair_accuracy", [])
        members = [m for row in rows for m in row["platforms"].split()]
        return self.ordered([*members, *(row[side] for row in pairs for side in ("platform_a", "platform_b"))])


def hardware(platform: str) -> str:
    """Of a full id; empty for software alone."""
    return platform.rpartition("/")[0]


def software(platform: str) -> str:
    return platform.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class PairMatrix:
    """accuracy (n, n): of telling two platforms apart, on the model where it is lowest; NaN where no model has them
    in different classes, or none compared them. same (n, n): on how many models they are one class."""

    platforms: list[str]
    accuracy: npt.NDArray[np.float64]
    same: npt.NDArray[np.int64]

    def skipped(self) -> npt.NDArray[np.bool_]:
        """(n, n): pairs that no table holds, because neither was ever the other's nearest."""
        return np.isnan(self.accuracy) & (self.same == 0) & ~np.eye(len(self.platforms), dtype=bool)

    def worst(self) -> tuple[str, str, float] | None:
        """The pair with the lowest accuracy, or None if there is no pair."""
        if not np.isfinite(self.accuracy).any():
            return None
        a, b = np.unravel_index(np.nanargmin(self.accuracy), self.accuracy.shape)
        return self.platforms[a], self.platforms[b], float(self.accuracy[a, b])


def read(tables: Path, metrics: Path, features: Path | None) -> Evaluation:
    """Raises DataError if a file is not what `hspi evaluate` or `hspi featurize` write."""
    if not tables.is_dir():
        raise DataError(f"{tables} must hold the tables of an evaluation, but there is none: run  hspi evaluate")
    found = {name: _read_table(tables / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
    data = [Aligned.load(p) for p in sorted(features.glob("*.safetensors"))] if features else []
    platforms = dict(catalogue.CATALOGUE) | {p.id: p for d in data for p in d.platforms}
    return Evaluation(read_metrics(metrics), {k: v for k, v in found.items() if v}, platforms, data)


def read_metrics(path: Path) -> dict[str, float]:
    """Dotted name → figure. Raises DataError if the file is not one flat JSON object."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(k): float(v) for k, v in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} must be one flat JSON object of figures, but: {error}") from error


def _read_table(path: Path, columns: tuple[str, ...]) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path} must have the columns {', '.join(columns)}, but lacks {', '.join(missing)}")
        return list(reader)


def number(row: Row, column: str) -> float:
    """A cell as a figure. Raises DataError if it is none."""
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"column {column} must hold figures, but got {row.get(column)!r}") from error


def pair_matrix(evaluation: Evaluation) -> PairMatrix:
    """Every platform against every one, from the pairs of classes: members stand where their class does."""
    ids = evaluation.ids()
    at = {p: i for i, p in enumerate(ids)}
    accuracy = np.full((len(ids), len(ids)), np.nan)
    same = np.zeros((len(ids), len(ids)), np.int64)
    members: dict[tuple[str, str], list[int]] = {}
    for row in evaluation.tables.get("classes", []):
        own = [at[m] for m in row["platforms"].split()]
        members[row["model"], row["class"]] = own
        same[np.ix_(own, own)] += 1
    np.fill_diagonal(same, 0)
    for row in evaluation.tables.get("pair_accuracy", []):
        if (row["level"], row["split"]) != ("replay", "probes"):
            continue
        a, b = (members.get((row["model"], row[s]), [at[row[s]]]) for s in ("platform_a", "platform_b"))
        for here in (np.ix_(a, b), np.ix_(b, a)):
            accuracy[here] = np.fmin(accuracy[here], number(row, "accuracy"))
    return PairMatrix(ids, accuracy, same)
