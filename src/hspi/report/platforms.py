"""The picture of the accuracy of each platform: a dot with its interval, listed by hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hspi.report.drawing import BLUE, GREY, ORANGE, Picture, figure, picture
from hspi.report.headlines import rate
from hspi.report.read import MARKS, Evaluation, Row, hardware, number, software

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.148  # inches of a row
TALLEST = 62  # rows of a column

Line = tuple[str, Row | None]  # a platform and its row, or a machine's name and none


def platforms(evaluation: Evaluation) -> Picture:
    rows = {row_id(row): row for row in evaluation.tables["accuracy_by_platform"]}
    columns = _columns(_lines(evaluation.ordered(rows), rows))
    tallest = max(map(len, columns))
    fig = figure(3.7 * len(columns) + 0.6, LINE * tallest + 1.0)
    axes = fig.subplots(1, len(columns), squeeze=False)[0]
    left = _begin(list(rows.values()))
    for ax, lines in zip(axes, columns, strict=True):
        _column(ax, evaluation, lines, left)
        ax.set_ylim(tallest - 0.3, -0.8)
    fig.supxlabel("accuracy of naming the platform’s class, with 95 % interval", fontsize=8.5, color="#30373d")
    marks = "   ".join(f"{mark} {kind}" for kind, mark in MARKS.items())
    fig.suptitle(f"{_held_out(rows.values())}{marks}", fontsize=8.5, x=0.02, ha="left", color="#30373d")
    lowest = min(rows, key=lambda p: number(rows[p], "accuracy"))
    alt = f"Accuracy of {len(rows)} platforms by hardware; the lowest is {lowest} with "
    return picture("accuracy_by_platform", fig, alt + rate(number(rows[lowest], "accuracy")) + ".")


def row_id(row: Row) -> str:
    """Full id."""
    return f"{row['hardware']}/{row['software']}" if row["hardware"] else row["software"]


def _held_out(rows: Any) -> str:
    said = sorted({row["held_out"] for row in rows if row.get("held_out")})
    return f"held out: {'; '.join(said)}      " if said else ""


def _lines(ordered: Sequence[str], rows: dict[str, Row]) -> list[Line]:
    lines: list[Line] = []
    for p in ordered:
        if not lines or hardware(p) != hardware(lines[-1][0]):
            lines.append((f"{hardware(p)}/", None))
        lines.append((p, rows[p]))
    return lines


def _columns(lines: list[Line]) -> list[list[Line]]:
    """As few columns as TALLEST allows, of like length; a machine that goes on in the next is named there again."""
    count = -(-len(lines) // TALLEST)
    most = -(-len(lines) // count)
    while len(columns := _broken(lines, most)) > count:
        most += 1
    return columns


def _broken(lines: list[Line], most: int) -> list[list[Line]]:
    """Columns of at most so many lines, none of which ends with a machine's name."""
    columns: list[list[Line]] = [[]]
    for p, row in lines:
        if len(columns[-1]) >= most - (row is None):
            columns.append([] if row is None else [(f"{hardware(p)}/", None)])
        columns[-1].append((p, row))
    return columns


def _begin(rows: Sequence[Row]) -> float:
    """Where the axis begins: below every interval, and never above 0.9, or much would be made of little."""
    lowest = min(number(row, "ci_low") for row in rows)
    return max(-0.02, min(0.9, lowest - 0.04 * (1 - lowest)))


def _column(ax: Axes, evaluation: Evaluation, lines: list[Line], left: float) -> None:
    labels, inks, known = [], [], [row_id(row) for row in evaluation.tables["accuracy_by_platform"]]
    for y, (p, row) in enumerate(lines):
        if row is None:
            own = [q for q in known if hardware(q) == hardware(p)]
            label, ink = evaluation.machine(own)
            labels.append(label)
            inks.append(ink)
            continue
        value, low, high = (number(row, c) for c in ("accuracy", "ci_low", "ci_high"))
        colour = BLUE if value >= 0.99 else ORANGE
        ax.plot([low, high], [y, y], color=colour, lw=1.1, alpha=0.45, solid_capstyle="butt")
        filled = "white" if evaluation.provenance(p) == "emulated" else colour
        ax.plot(value, y, "o", ms=3.8, color=colour, mfc=filled, mew=0.9)
        if value < 1:
            ax.annotate(rate(value), (low, y), (-3, 0), textcoords="offset points", ha="right", va="center",
                        fontsize=6, color=colour if value < 0.99 else GREY)  # fmt: skip
        labels.append(f"{software(p)} {evaluation.mark(p)}")
        inks.append(evaluation.ink(p))
    ax.set_yticks(range(len(lines)), labels, fontsize=6.8)
    for tick, ink, (_, row) in zip(ax.get_yticklabels(), inks, lines, strict=True):
        tick.set_color(ink)
        if row is None:
            tick.set_fontweight("bold")
            tick.set_fontsize(7.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7)
    ax.spines["left"].set_visible(False)
    ax.set_xlim(left - 0.13 * (1 - left), 1 + 0.02 * (1 - left))
