"""The table of pairs for people: the lowest first, and as a matrix."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from hspi.errors import DataError

HEADLINE = ("replay", "probes")  # the level and split whose pairs are shown

Pairs = dict[tuple[str, str], tuple[float, str]]


def read_pairs(pair_table: str | Path) -> Pairs:
    """(platform_a, platform_b) → (accuracy, model) on the model where the headline's accuracy is lowest.

    `pair_table` is a CSV with at least the columns level, split, model, platform_a, platform_b and accuracy. Raises
    DataError if it is not. A pair that is not in it was not compared.
    """
    found: Pairs = {}
    try:
        with Path(pair_table).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if (row["level"], row["split"]) != HEADLINE:
                    continue
                pair = row["platform_a"], row["platform_b"]
                here = float(row["accuracy"]), row["model"]
                if not math.isnan(here[0]):
                    found[pair] = min(here, found.get(pair, here))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{pair_table} must hold level, split, model, platforms, accuracy, but: {error!r}") from error
    return found


def pair_rows(pair_table: str | Path) -> list[dict[str, str | float]]:
    """A row for each headline pair, the lowest first."""
    order = sorted(read_pairs(pair_table).items(), key=lambda item: (item[1], item[0]))
    return [{"platform_a": a, "platform_b": b, "accuracy": value, "model": m} for (a, b), (value, m) in order]


def pair_matrix(pair_table: str | Path) -> list[dict[str, str]]:
    """The headline pairs as rows of a square table: `platform`, then a column for each platform, by hardware and then
    software; empty where a pair was not compared."""
    cells: dict[tuple[str, str], str] = {}
    for (a, b), (accuracy, _) in read_pairs(pair_table).items():
        cells[a, b] = cells[b, a] = f"{accuracy:.4f}"
    names = sorted({name for pair in cells for name in pair}, key=lambda id: id.rpartition("/")[::2])
    return [{"platform": a, **{b: cells.get((a, b), "") for b in names}} for a in names]
