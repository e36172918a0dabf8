"""The table of pairs as MLflow's metrics and as a matrix for people."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from pathlib import Path

from hspi.errors import DataError

HEADLINE = ("replay", "probes")  # the level and split whose pairs are named without them

_UNFIT = re.compile(r"[^\w.: -]")  # what MLflow allows in no metric's name, and the slash that parts our pairs

Pairs = dict[tuple[str, str, str, str], float]


def read_pairs(pair_table: str | Path) -> Pairs:
    """(level, split, platform_a, platform_b) → accuracy, the mean over models weighted by n.

    `pair_table` is a CSV with at least those columns, `accuracy` and `n`. Raises DataError if it is not.
    """
    sums: dict[tuple[str, str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    try:
        with Path(pair_table).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                total = sums[row["level"], row["split"], row["platform_a"], row["platform_b"]]
                n = float(row["n"])
                total[0] += float(row["accuracy"]) * n
                total[1] += n
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{pair_table} must hold level, split, platforms, accuracy and n, but: {error!r}") from error
    return {pair: weighted / n for pair, (weighted, n) in sums.items() if n > 0}


def pair_metrics(pair_table: str | Path) -> dict[str, float]:
    """`pair.<a>/<b>.accuracy` of the headline level and split, `pair.<level>.<split>.<a>/<b>.accuracy` of the others;
    and `platform.<id>.min_pair_accuracy`, the worst headline pair that each platform is in.
    """
    out: dict[str, float] = {}
    for (level, split, *pair), accuracy in read_pairs(pair_table).items():
        a, b = (_UNFIT.sub("_", name) for name in pair)
        if (level, split) != HEADLINE:
            out[f"pair.{level}.{split}.{a}/{b}.accuracy"] = accuracy
            continue
        out[f"pair.{a}/{b}.accuracy"] = accuracy
        for one in (a, b):
            key = f"platform.{one}.min_pair_accuracy"
            out[key] = min(out.get(key, math.inf), accuracy)
    return out


def pair_matrix(pair_table: str | Path) -> list[dict[str, str]]:
    """The headline pairs as rows of a square table: `platform`, then a column for each platform."""
    cells: dict[tuple[str, str], str] = {}
    for (level, split, a, b), accuracy in read_pairs(pair_table).items():
        if (level, split) == HEADLINE:
            cells[a, b] = cells[b, a] = f"{accuracy:.4f}"
    names = sorted({name for pair in cells for name in pair})
    return [{"platform": a, **{b: cells.get((a, b), "") for b in names}} for a in names]
