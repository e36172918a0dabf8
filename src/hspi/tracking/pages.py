"""MLflow's pages as people should meet them: links that open the pages of trainings, and a view of the table of runs
that begins with our figures.

Pages of 3.17 open as those of language-model apps unless a link says otherwise, and their table of runs shows no
metric. A view that somebody saved is a tag of the experiment; ours is saved with each evaluation, under a name of its
own, and stands in the menu beside those that people save themselves. A later version that does not know it shows its
own table.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

OF_TRAININGS = {"mlflow.experimentKind": "custom_model_development"}
VIEW, VIEW_NAME = "hspi-figures", "Headline figures"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_AS_TRAININGS = "workflowType=machine_learning"
_LONGEST = 20_000  # tag of an experiment
_NAME, _ABOUT = "attributes.`Run Name`", "attributes.`Description`"
_WIDE = {_NAME: 280, _ABOUT: 200}


def base_url() -> str:
    """Of the pages: HSPI_MLFLOW_PAGES, or the server that MLFLOW_TRACKING_URI names, or where `make mlflow` serves."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    server = named if named.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return os.environ.get("HSPI_MLFLOW_PAGES", server).rstrip("/")


def run_link(run: Mapping[str, Any]) -> str:
    """The page of a run: a mapping with its run_id and experiment_id, as models/run.json is."""
    return f"{base_url()}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}?{_AS_TRAININGS}"


def table_link(experiment: str) -> str:
    """The table of an experiment's detectors, with the view that `figures_view` makes."""
    return f"{base_url()}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{_AS_TRAININGS}"


def compare_link(experiment: str, runs: Sequence[str]) -> str:
    """Runs (ids) beside each other: bars for each headline figure, then for each platform's accuracy."""
    some = quote(f"attributes.run_id IN ({', '.join(map(repr, runs))})")
    return f"{base_url()}/#/experiments/{experiment}/runs?compareRunsMode=CHART&searchFilter={some}&{_AS_TRAININGS}"


def model_link(name: str, version: int | None = None) -> str:
    """A registered model, or one version of it."""
    return f"{base_url()}/#/models/{name}{'' if version is None else f'/versions/{version}'}?{_AS_TRAININGS}"


def figures_view(metrics: Sequence[str]) -> dict[str, str]:
    """The tag that saves the view: trainings alone, the newest first, with what they are about and these metrics as
    columns, in this order. As many as fit; the others stand in the run."""
    for some in range(len(metrics), -1, -20):
        columns = [_ABOUT, *(f"metrics.`{name}`" for name in metrics[:some])]
        widths = {column: _width(column) for column in (_NAME, *columns)}
        state = {
            "searchFilter": "tags.`hspi.stage` = 'train'",
            "selectedColumns": columns,
            "columnOrder": [_NAME, *columns],
            "columnWidths": widths,
        }
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        view = json.dumps({"name": VIEW_NAME, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})
        if len(view) <= _LONGEST:
            return {_VIEW_TAG: view}
    return {}


def _width(column: str) -> int:
    """In pixels: the whole name, as far as it is not a sentence."""
    return _WIDE.get(column, min(6 * len(column), 300))
