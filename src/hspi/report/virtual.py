"""What was measured on virtual GPUs, as a section of the page. All of it is emulated."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from hspi.errors import DataError
from hspi.report.headlines import rate
from hspi.report.html import Section, table

CONDITIONS = {  # as benchmarks/bench_virtual_gpus.py names them
    "plan in the library": "in the library",
    "plan left out": "uniform, left out of the library",
    "foreign plan": "uniform, of no kind that is known",
    "plan differs by product": "another one for each product",
    "plan differs by layer": "another one for each weight of each layer",
}
KINDS = {
    "by product": "another plan for each product",
    "uniform": "uniform, unknown to the library",
    "foreign": "uniform, unknown to the search too",
}
SIZE = (32, 20)  # probes and top-k of the table


def section(path: Path) -> Section:
    """Of what the benchmark wrote. Raises DataError if the file is not that."""
    try:
        found = json.loads(path.read_text("utf-8"))
        body = _lead(found) + _known_plans(found) + _searches(found) + _inseparable(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must hold figures of virtual GPUs, but: {type(error).__name__}: {error}") from error
    return "virtual", "Virtual GPUs, emulated", body


def _lead(found: dict[str, Any]) -> str:
    return (
        '<p class="emulated">Observations and candidates of this section are emulated: the matrix units of GPUs '
        f"computed bit by bit on a CPU, after published models. Silicon: <b>{escape(str(found['silicon']))}</b>.</p>"
        "<p>How often the family of GPUs that share arithmetic is the nearest, by what the library knows of the kernel "
        f"plan, the order in which a kernel adds up. {SIZE[0]} probes × top-{SIZE[1]}, raw distance.</p>"
    )


def _known_plans(found: dict[str, Any]) -> str:
    rows = [r for r in found["accuracy"] if (r["probes"], r["top_k"]) == SIZE]
    worlds = list(dict.fromkeys((r["model"], r["dtype"]) for r in rows))
    cell = {(r["condition"], r["model"], r["dtype"]): r for r in rows}
    lines = [
        [name, *(rate(cell[key, *w]["accuracy"]) if (key, *w) in cell else "–" for w in worlds)]
        for key, name in CONDITIONS.items()
    ]
    lines.append(["chance", *(rate(next(r["chance"] for r in rows if (r["model"], r["dtype"]) == w)) for w in worlds)])
    head = ("true kernel plan", *(f"{model} {dtype}" for model, dtype in worlds))
    return table(head, lines, " " + "n" * len(worlds), stack=True)


def _searches(found: dict[str, Any]) -> str:
    lines = []
    for where, kinds in found["plan_search"].items():
        for kind, row in kinds.items():
            before, after, known = (row[n] for n in ("nearest candidate", "plan search", "plan known"))
            spread = f"{rate(after['low'])} – {rate(after['high'])}"
            cells = [rate(before["accuracy"]), f"<b>{rate(after['accuracy'])}</b>", spread, rate(known["accuracy"])]
            lines.append([f"{escape(where)}: {KINDS[kind]}", *cells, str(after["truths"])])
    if not lines:
        return ""
    head = ("true kernel plan", "nearest", "after plan search", "95 % interval", "plan known", "observations")
    return "<p>What a search for the plan of each product wins back:</p>" + table(head, lines, " nnnnn", stack=True)


def _inseparable(found: dict[str, Any]) -> str:
    shared = [r for r in found["inseparable"] if len(r["gpus"]) > 1]
    lines = [[escape(r["dtype"]), escape(", ".join(r["gpus"]))] for r in shared]
    return "<p>Never claimed apart, because they share arithmetic:</p>" + table(("number type", "GPUs"), lines)
