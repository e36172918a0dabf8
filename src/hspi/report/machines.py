"""Tables by hardware: every platform, every pair, the classes that span machines, a machine never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hspi.report.headlines import rate
from hspi.report.html import folded, table
from hspi.report.platforms import row_id
from hspi.report.read import MARKS, Evaluation, Row, number, pair_matrix

FEW = 4  # members of a class that are named where many stand in a cell


def named(evaluation: Evaluation, platform: str) -> str:
    """A platform as HTML: its id, the mark of its provenance and, where it is not real, the word."""
    kind = evaluation.provenance(platform)
    name = f'<span class="id {kind}" title="{kind}">{escape(platform)} {evaluation.mark(platform)}</span>'
    return name + (f' <span class="soft">{kind}</span>' if kind in ("capped", "emulated") else "")


def by_platform(evaluation: Evaluation) -> str:
    """Every row of accuracy_by_platform.csv, folded away."""
    rows = {row_id(row): row for row in evaluation.tables.get("accuracy_by_platform", [])}
    if not rows:
        return ""
    classes = evaluation.tables.get("classes", [])
    own = [row["platforms"].split() for row in classes if row["model"] == classes[0]["model"]]
    members = {m: platforms for platforms in own for m in platforms}
    lines = [
        [
            named(evaluation, p),
            rate(number(row, "accuracy")),
            _interval(row),
            *(_whole(row, c) for c in ("samples", "tokens")),
            rate(number(row, "chance")) if row.get("chance") else "–",
            _some(evaluation, [m for m in members.get(p, []) if m != p]),
        ]
        for p, row in ((p, rows[p]) for p in evaluation.ordered(rows))
    ]
    head = (
        "platform",
        "accuracy",
        "95 % interval",
        "samples",
        "tokens",
        "chance",
        "on the first model, in one class with",
    )
    return folded(f"All {len(lines)} values", table(head, lines, " nnnnn ", stack=True))


def every_pair(evaluation: Evaluation) -> str:
    """For each platform what it was compared with, and every value below 1, folded away."""
    pairs = pair_matrix(evaluation)
    lines = []
    for i, p in enumerate(pairs.platforms):
        own = pairs.accuracy[i]
        compared = np.flatnonzero(np.isfinite(own))
        below: dict[str, list[str]] = {}
        for j in sorted((j for j in compared if own[j] < 1), key=lambda j: float(own[j])):
            below.setdefault(rate(float(own[j])), []).append(named(evaluation, pairs.platforms[j]))
        values = "; ".join(f"{value}: {', '.join(others)}" for value, others in below.items())
        lowest = rate(float(own[compared].min())) if len(compared) else "–"
        lines.append([named(evaluation, p), str(len(compared)), lowest, values])
    head = ("platform", "compared with", "lowest", "every accuracy below 1")
    return folded("All values, by platform", table(head, lines, " nn ", stack=True)) if lines else ""


def spans(evaluation: Evaluation) -> str:
    """A finding: platforms of several machines that nothing here tells apart."""
    merged: dict[tuple[str, ...], list[Row]] = {}
    for row in evaluation.tables.get("spans", []):
        merged.setdefault(tuple(row["platforms"].split()), []).append(row)
    if not merged:
        return ""
    models = list(dict.fromkeys(r["model"] for r in evaluation.tables.get("classes", []))) or list(
        dict.fromkeys(r["model"] for rows in merged.values() for r in rows)
    )
    order = {p: i for i, p in enumerate(evaluation.ordered(p for members in merged for p in members))}
    lines = []
    for members, rows in sorted(merged.items(), key=lambda item: min(order[m] for m in item[0])):
        on = [r["model"] for r in rows]
        machines = ", ".join(rows[0]["hardware"].replace(",", " ").split())
        which = "all" if set(on) >= set(models) else ", ".join(on)
        platforms = ", ".join(named(evaluation, m) for m in sorted(members, key=lambda m: order[m]))
        lines.append([escape(machines), platforms, escape(which)])
    text = (
        "<p>These answer alike on more than one machine, by the same measurement as any other class: a verdict that "
        "names one names all of them, and says nothing about which of the machines it was.</p>"
    )
    return text + table(("machines", "class", "on the models"), lines, stack=False)


def held_out(evaluation: Evaluation) -> str:
    """A detector that was trained without a machine: a row for each, a column for each question."""
    rows = evaluation.tables.get("hardware", [])
    if not rows:
        return ""
    questions = list(dict.fromkeys(row["question"] for row in rows))
    cells = {(row["hardware"], row["question"]): row for row in rows}
    lines = []
    for machine in dict.fromkeys(row["hardware"] for row in rows):
        asked = [cells.get((machine, q)) for q in questions]
        values = [
            f"<b>{rate(number(r, 'value'))}</b> ({_interval(r)}) of {_whole(r, 'n')}" if r else "–" for r in asked
        ]
        lines.append([_machine(evaluation, machine), *values])
    text = (
        "<p>The detector was trained on the other machines alone. Given this one’s signatures, it is to name the "
        "class of each platform; given none, it is to say <i>unknown</i> of each class that no other machine has.</p>"
    )
    return text + table(["held-out machine", *questions], lines, " " + "n" * len(questions), stack=True)


def _machine(evaluation: Evaluation, hardware: str) -> str:
    """A machine's name, and the word where all of its platforms are emulated."""
    kinds = {evaluation.provenance(p) for p in evaluation.ids() if p.startswith(f"{hardware}/")}
    emulated = kinds == {"emulated"}
    name = f'<span class="id{" emulated" if emulated else ""}">{escape(hardware)}</span>'
    return name + (f' {MARKS["emulated"]} <span class="soft">emulated</span>' if emulated else "")


def _interval(row: Row) -> str:
    return f"{rate(number(row, 'ci_low'))} – {rate(number(row, 'ci_high'))}"


def _whole(row: Row, column: str) -> str:
    return f"{number(row, column):,.0f}" if row.get(column) else "–"


def _some(evaluation: Evaluation, members: Sequence[str]) -> str:
    text = ", ".join(named(evaluation, m) for m in members[:FEW])
    return text + (f" and {len(members) - FEW} more" if len(members) > FEW else "")
