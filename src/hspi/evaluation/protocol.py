"""The whole protocol in one call: every level on the same splits, as flat metrics and as tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat, SampleBench
from hspi.detectors.training import Bench
from hspi.evaluation.ceiling import one_probe_ceiling
from hspi.evaluation.claims import evaluate_claims
from hspi.evaluation.formats import evaluate_formats
from hspi.evaluation.hardware import evaluate_hardware, spans
from hspi.evaluation.measures import Accuracy
from hspi.evaluation.paper import PaperBench, evaluate_paper
from hspi.evaluation.replay import ReplayReport, evaluate_replay
from hspi.evidence.equivalence import bits
from hspi.evidence.library import Library
from hspi.files import whole, write_json

Row = dict[str, Any]


def evaluate(
    libraries: Sequence[Library],
    parameters: dict[str, dict[str, Any]],
    seed: int,
    step: Callable[[str], object] = lambda s: None,
) -> tuple[dict[str, float], dict[str, list[Row]]]:
    """Metrics (flat, dotted keys) and tables (name → rows).

    parameters: of `verifier` and `classifier` trees.
    """
    step("comparing signatures")
    distinct = [library.distinct() for library in libraries]
    benches = [Bench.of(library, seed) for library in distinct]
    report, folds = evaluate_replay(benches, parameters.get("verifier", {}), step)
    report.figures["ceiling.1x20"] = one_probe_ceiling(benches, 20)
    evaluate_hardware(benches, parameters.get("verifier", {}), report, step)
    step("claims")
    single = [SampleBench(library, seed) for library in distinct]
    formats = NumberFormat(Boosted(**parameters.get("classifier", {}))).fit(single)
    evaluate_claims(benches, folds, single, formats, report)
    del benches, folds
    report.tables["accuracy_by_platform"] += _twins(libraries, report.tables["accuracy_by_platform"])
    report.accuracies |= evaluate_formats(single, parameters.get("classifier", {}), step)
    report.accuracies |= evaluate_paper([PaperBench(library, seed) for library in distinct], step)
    report.add("classes", _class_rows(libraries))
    report.add("spans", spans(libraries))
    report.add("summary", _summary(report.accuracies))
    return _flat(libraries, report), report.tables


def _twins(libraries: Sequence[Library], rows: Sequence[Row]) -> list[Row]:
    """The rows of platforms that answered as another one did, bit for bit: they have its figures."""
    measured = {f"{row['hardware']}/{row['software']}": row for row in rows}
    found: dict[str, Row] = {}
    for library in libraries:
        same: dict[str, str] = {}
        for i, p in enumerate(library.data.platforms):
            first = same.setdefault(bits(library.data, i), p.id)
            if p.id not in measured:
                own = {"hardware": p.hardware, "software": p.software, "provenance": p.provenance}
                found.setdefault(p.id, {**measured[first], **own})
    return list(found.values())


def _class_rows(libraries: Sequence[Library]) -> list[Row]:
    rows = []
    for library in libraries:
        data, classes = library.data, library.classes
        by_id = {p.id: p for p in data.platforms}
        for c in range(classes.count):
            members = classes.members(c)
            rows.append(
                {
                    "model": data.model,
                    "class": classes.name(c),
                    "platforms": " ".join(members),
                    "provenance": " ".join(sorted({by_id[m].provenance for m in members})),
                    "number_format": by_id[members[0]].number_format,
                    "engine": " ".join(sorted({by_id[m].engine for m in members})),
                }
            )
    return rows


def _summary(accuracies: dict[str, Accuracy]) -> list[Row]:
    rows = []
    for name, a in accuracies.items():
        level, _, rest = name.partition(".")
        split, _, metric = rest.rpartition(".") if rest.count(".") < 2 else rest.partition(".")
        row = {"level": level, "split": split, "metric": metric, "value": a.value, "ci_low": a.ci_low}
        rows.append(row | {"ci_high": a.ci_high, "chance": a.chance, "samples": a.samples, "tokens": a.tokens})
    return rows


def _flat(libraries: Sequence[Library], report: ReplayReport) -> dict[str, float]:
    flat: dict[str, float] = {
        "platforms": float(len({p for library in libraries for p in library.platform_ids})),
        "classes": float(min(library.classes.count for library in libraries)),
        "models": float(len(libraries)),
    }
    for library in libraries:
        flat[f"classes.{library.model}"] = float(library.classes.count)
    for name, a in sorted(report.accuracies.items()):
        flat |= a.flat(name)
    flat |= dict(sorted(report.figures.items()))
    return {k: v for k, v in flat.items() if not math.isnan(v)}


def write(metrics: dict[str, float], tables: dict[str, list[Row]], metrics_path: Path, tables_dir: Path) -> None:
    """metrics.json, and one CSV for each table; each file appears whole or not at all."""
    for name, rows in tables.items():
        if not rows:
            continue
        with whole(tables_dir / f"{name}.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: _round(v) for k, v in row.items()} for row in rows)
    write_json(metrics_path, {k: _round(v) for k, v in metrics.items()}, sort_keys=False)


def _round(value: Any) -> Any:
    return round(float(value), 6) if isinstance(value, float | np.floating) else value
