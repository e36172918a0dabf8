"""An evaluation in the run of its detector: few metrics that compare, all else as tables and pictures."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hspi.errors import DataError
from hspi.evaluation.pairs import pair_matrix, pair_rows
from hspi.report.headlines import HEADLINES, first_figures
from hspi.tracking.lineage import evaluation_input, lock_tags
from hspi.tracking.notes import description
from hspi.tracking.pages import figures_view
from hspi.tracking.runs import log_batches
from hspi.tracking.store import open_store
from hspi.tracking.training import DIFFERS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HEADLINE, DETAIL = "_headline", "detail"  # an underscore sorts before any letter
BY_PLATFORM, PAIRS = "accuracy_by_platform.csv", "pair_accuracy.csv"
_UNFIT = re.compile(r"[^\w.: -]")  # what MLflow allows in no metric's name, and the slash, which parts ours
_BESIDE = (".ci_low", ".ci_high", ".chance", ".samples", ".tokens")  # of a figure: in the tables

Row = dict[str, Any]


def log_evaluation(
    run_id: str,
    metrics: Mapping[str, float],
    tables_dir: str | Path,
    figures_dir: str | Path | None = None,
    *,
    evaluation_set: str | None = None,
    root: str | Path = ".",
) -> bool:
    """Metrics, tables and figures into a run. False if they are there already.

    Metrics are `_headline/<short name>` of the few that compare runs, `accuracy/<hardware>/<software>` of every
    platform, and `detail/<name>` of what else was measured. Intervals, chance and tokens stand in metrics.json and in
    the tables, and so does every pair of platforms. The run's description has the headline and its misses; the view of
    the table of runs (`pages`) gets the columns of this evaluation. `evaluation_set` becomes an input of the run.
    """
    tables, figures = Path(tables_dir).resolve(), Path(figures_dir).resolve() if figures_dir else None
    root, rows = Path(root).resolve(), platform_rows(tables)
    logged = metrics_of(metrics, rows)
    shown = tables_of(tables, rows)
    mark = hashlib.sha256(json.dumps([dict(metrics), logged, shown], sort_keys=True).encode()).hexdigest()
    with open_store(root) as client:
        run = client.get_run(run_id)
        if run.data.tags.get("hspi.evaluation") == mark:
            return False
        log_batches(client, run_id, metrics=logged)
        client.log_dict(run_id, dict(metrics), "metrics.json")
        client.log_artifacts(run_id, str(tables), "tables")
        _log_tables(client, run, shown)
        if figures and figures.is_dir():
            client.log_artifacts(run_id, str(figures), "figures")
        if evaluation_set:
            client.log_inputs(run_id, datasets=[evaluation_input(evaluation_set, platforms_of(rows), root)])
        for name, value in figures_view([m for m in logged if not m.startswith(DETAIL)]).items():
            client.set_experiment_tag(run.info.experiment_id, name, value)
        note = {"mlflow.note.content": description(metrics, run.data.tags.get(DIFFERS, ""))}
        for name, value in {**lock_tags(root, "train"), **note, "hspi.evaluation": mark}.items():
            client.set_tag(run_id, name, value)
    return True


def platform_rows(tables_dir: str | Path) -> list[Row]:
    """The rows of accuracy_by_platform.csv with figures as floats, or none where the evaluation wrote no such table.

    Raises DataError if it lacks hardware, software or accuracy, or an accuracy is no figure.
    """
    path = Path(tables_dir) / BY_PLATFORM
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: _figure(v) for k, v in row.items()} for row in csv.DictReader(file)]
    if any(
        not isinstance(r.get("accuracy"), float) or r.get("hardware") is None or r.get("software") is None for r in rows
    ):
        raise DataError(f"{path} must hold hardware, software and accuracy as figures, but it does not")
    return rows


def platforms_of(rows: Sequence[Row]) -> list[str]:
    """Full ids."""
    return [f"{row['hardware']}/{row['software']}" for row in rows]


def metrics_of(metrics: Mapping[str, float], rows: Sequence[Row]) -> dict[str, float]:
    """What becomes a metric of the run, in the order of MLflow's pages: the run's own shows them as they were logged,
    the charts by what stands before the last slash, in alphabetical order, and names without one behind all others.
    """
    first = {h.key for h in HEADLINES if h.first}
    kept = {k: float(v) for k, v in metrics.items() if not k.endswith(_BESIDE)}
    out = {f"{HEADLINE}/{name}": float(v) for name, v in first_figures(metrics).items()}
    for row in rows:
        hardware, software = (_UNFIT.sub("_", str(row[k])) or "unknown" for k in ("hardware", "software"))
        out[f"accuracy/{hardware}/{software}"] = row["accuracy"]
    return out | {f"{DETAIL}/{k}": v for k, v in kept.items() if k not in first}


def tables_of(tables: Path, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Name of the artifact → rows: platforms, the lowest pairs first, and the matrix of pairs."""
    found: dict[str, list[Row]] = {"accuracy_by_platform.json": list(rows)}
    if (tables / PAIRS).exists():
        found |= {"pairs.json": pair_rows(tables / PAIRS), "pair_matrix.json": pair_matrix(tables / PAIRS)}
    return {name: table for name, table in found.items() if table}


def _log_tables(client: MlflowClient, run: Run, tables: Mapping[str, Sequence[Row]]) -> None:
    """As tables of MLflow's pages, in the place of earlier ones: MLflow's own function would append to those."""
    tag, run_id = "mlflow.loggedArtifacts", run.info.run_id
    known = json.loads(run.data.tags.get(tag, "[]"))
    for name, rows in tables.items():
        columns = list(rows[0])
        table = {"columns": columns, "data": [[_cell(row.get(column)) for column in columns] for row in rows]}
        client.log_dict(run_id, table, name)
    new = [{"path": name, "type": "table"} for name in tables]
    client.set_tag(run_id, tag, json.dumps(known + [entry for entry in new if entry not in known]))


def _cell(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _figure(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text
