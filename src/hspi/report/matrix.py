"""The picture of all pairs: blocks by hardware, within them by engine and number format.

Few platforms get a label each; many get labels of their groups, and the page has every value in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hspi.report.drawing import GREY, INKS, Picture, figure, picture
from hspi.report.headlines import rate
from hspi.report.read import MARKS, Evaluation, PairMatrix, hardware, pair_matrix, software

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
SHADES = ("#7f2704", "#a63603", "#d94801", "#f16913", "#fd8d3c", "#fdae6b", "#fdd0a2", "#6baed6", "#9ecae1", "#cfe1f2")
BLANK, SAME, INK = "#f6f8fa", "#a9b2b9", "#30373d"
MOST_LABELLED = 45  # platforms
LARGE = 12  # platforms of an engine, from which on its number formats are named
LARGEST = 7.6  # inches of a side without labels, as long as a cell stays at LEAST
CELL, LEAST = 0.235, 0.065
Block = tuple[str, int, int]  # label, first, one behind the last


def matrix(evaluation: Evaluation) -> Picture | None:
    """None where no pair was compared."""
    pairs = pair_matrix(evaluation)
    worst = pairs.worst()
    if worst is None:
        return None
    n = len(pairs.platforms)
    cell = CELL if n <= MOST_LABELLED else max(LEAST, LARGEST / n)
    side = max(3.6, cell * n)
    fig = figure(side + 2.6, side + 2.4)
    ax = fig.add_subplot()
    _cells(fig, ax, evaluation, pairs)
    _blocks(ax, evaluation, pairs.platforms, side / n)
    if n <= MOST_LABELLED:
        _texts(ax, pairs)
        _platform_ticks(ax, evaluation, pairs.platforms)
    else:
        _group_ticks(ax, evaluation, pairs.platforms, side / n)
        _strips(ax, evaluation, pairs.platforms)
    _frame_worst(ax, pairs, 0.5 if n <= MOST_LABELLED else 1.5)
    a, b, value = worst
    held_out = "held out: probes and batch size"
    marks = "   ".join(f"{mark} {kind}" for kind, mark in MARKS.items())
    title = f"lowest pair: {rate(value)}   {a}  /  {b}\n{held_out}" + (f"      {marks}" if n <= MOST_LABELLED else "")
    fig.suptitle(title, fontsize=8.5, ha="left", x=0.02, color=INK, linespacing=1.6)
    alt = f"Matrix of {n} by {n} platforms by hardware; the lowest pair is {a} and {b} with {rate(value)}."
    return picture("pair_accuracy", fig, alt)


def _cells(fig: Figure, ax: Axes, evaluation: Evaluation, pairs: PairMatrix) -> None:
    """The values; grey where no model tells two apart, a grey corner where some do not, and pale where nobody asked."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    n = len(pairs.platforms)
    ax.set_facecolor(BLANK)
    colours, norm = ListedColormap(SHADES), BoundaryNorm(STEPS, len(SHADES))
    image = ax.imshow(pairs.accuracy, cmap=colours, norm=norm, interpolation="nearest")
    never = np.isnan(pairs.accuracy) & (pairs.same > 0)
    ax.imshow(np.ma.masked_where(~never, np.ones((n, n))), cmap=ListedColormap([SAME]), interpolation="nearest")
    some = np.isfinite(pairs.accuracy) & (pairs.same > 0)
    for i, j in zip(*np.nonzero(some), strict=True):
        ax.fill([j - 0.5, j - 0.5, j], [i, i - 0.5, i - 0.5], color=SAME, lw=0)
    ax.plot([-0.5, n - 0.5], [-0.5, n - 0.5], color="#d5dade", lw=0.6)
    bar = fig.colorbar(
        image, ax=ax, location="bottom", shrink=0.62, pad=0.01, aspect=34, spacing="uniform", ticks=STEPS, anchor=(0, 1)
    )
    bar.ax.set_xticklabels([rate(s) for s in STEPS], fontsize=7)
    bar.set_label("accuracy of telling the two apart (chance 0.5)", fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    shown: dict[str, tuple[Any, dict[str, Any]]] = {
        "one class on every model": (never.any(), {"facecolor": SAME}),
        "grey corner: one class on some": (some.any(), {"facecolor": "white", "edgecolor": SAME, "hatch": "//"}),
        "not shown: pairs never nearest": (pairs.skipped().any(), {"facecolor": BLANK, "edgecolor": "#c4ccd2"}),
    }
    kinds = {evaluation.provenance(p) for p in pairs.platforms} if n > MOST_LABELLED else set()
    shown |= {f"{kind} {mark}": (kind in kinds, {"facecolor": INKS[kind]}) for kind, mark in MARKS.items()}
    _legend(bar.ax, {label: look for label, (present, look) in shown.items() if present})


def _legend(ax: Axes, shown: dict[str, dict[str, Any]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(label=label, **look) for label, look in shown.items()]
    if handles:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.04, 1.5), fontsize=7.5, handlelength=1.2)


def _texts(ax: Axes, pairs: PairMatrix) -> None:
    """The value in every cell below 0.99: percent, rounded down."""
    for i, j in zip(*np.nonzero(pairs.accuracy < 0.99), strict=True):
        value = pairs.accuracy[i, j]
        colour = "white" if value < 0.9 else INK
        ax.text(j, i, f"{int(value * 100):02d}", ha="center", va="center", fontsize=5.5, color=colour)


def _frame_worst(ax: Axes, pairs: PairMatrix, reach: float) -> None:
    """reach: half the side of a frame, in cells."""
    lowest = np.nanmin(pairs.accuracy)
    for i, j in zip(*np.nonzero(pairs.accuracy == lowest), strict=True):
        if lowest < 1:
            x, y = [j - reach, j + reach, j + reach, j - reach], [i - reach, i - reach, i + reach, i + reach]
            ax.fill(x, y, fill=False, edgecolor="black", lw=1, zorder=5, clip_on=False)


# ---------------------------------------------------------------- groups


def _runs(ids: Sequence[str], key: Callable[[str], Any]) -> list[Block]:
    """Neighbours that have one key; the label is the key, or the last part of it."""
    found: list[tuple[Any, int, int]] = []
    for i, id in enumerate(ids):
        if found and found[-1][0] == key(id):
            found[-1] = (*found[-1][:2], i + 1)
        else:
            found.append((key(id), i, i + 1))
    return [(k[-1] if isinstance(k, tuple) else k, start, stop) for k, start, stop in found]


def _blocks(ax: Axes, evaluation: Evaluation, ids: list[str], cell: float) -> None:
    """Lines between engines and, darker, between machines; the machines' names above and on the right."""
    n = len(ids)
    if n <= MOST_LABELLED:
        ax.hlines(np.arange(0.5, n - 1), -0.5, n - 0.5, color="white", lw=0.5)
        ax.vlines(np.arange(0.5, n - 1), -0.5, n - 0.5, color="white", lw=0.5)
    for _, start, _ in _runs(ids, lambda p: (hardware(p), evaluation.engine(p)))[1:]:
        ax.axhline(start - 0.5, color="white", lw=1.6)
        ax.axvline(start - 0.5, color="white", lw=1.6)
    for _, start, stop in _runs(ids, hardware):
        if start:
            ax.axhline(start - 0.5, color="#39434b", lw=0.9)
            ax.axvline(start - 0.5, color="#39434b", lw=0.9)
        middle, (label, ink) = (start + stop - 1) / 2, evaluation.machine(ids[start:stop])
        size = min(9.0, 72 * cell * (stop - start))
        near: dict[str, Any] = {"textcoords": "offset points", "color": ink, "annotation_clip": False, "fontsize": size}
        ax.annotate(label, (n - 0.5, middle), (5, 0), va="center", **near)
        label = label.removesuffix(" emulated")  # its mark says so
        wide = 72 * cell * (stop - start) > 0.62 * size * len(label)
        ax.annotate(label, (middle, -0.5), (0, 4), va="bottom", ha="center", rotation=0 if wide else 90, **near)


def _platform_ticks(ax: Axes, evaluation: Evaluation, ids: list[str]) -> None:
    labels = [f"{software(p)} {evaluation.mark(p)}" for p in ids]
    ax.set_yticks(range(len(ids)), labels, fontsize=6.5)
    ax.set_xticks(range(len(ids)), labels, fontsize=6.5, rotation=90)
    for tick, p in zip([*ax.get_yticklabels(), *ax.get_xticklabels()], [*ids, *ids], strict=True):
        tick.set_color(evaluation.ink(p))
    _bare(ax)


def _group_ticks(ax: Axes, evaluation: Evaluation, ids: list[str], cell: float) -> None:
    """The engine of each block, and within a large one its number formats, where there is room for a name."""
    groups: list[Block] = []
    for engine, start, stop in _runs(ids, lambda p: (hardware(p), evaluation.engine(p))):
        inner = _runs(ids[start:stop], evaluation.number_format) if stop - start > LARGE else []
        groups += [(f"{engine} {name}", start + i, start + j) for name, i, j in inner] or [(engine, start, stop)]
    wide = [g for g in groups if 72 * cell * (g[2] - g[1]) > 9]
    at = [(start + stop - 1) / 2 for _, start, stop in wide]
    ax.set_yticks(at, [name for name, _, _ in wide], fontsize=7)
    ax.set_xticks(at, [name for name, _, _ in wide], fontsize=7, rotation=90)
    for tick in [*ax.get_yticklabels(), *ax.get_xticklabels()]:
        tick.set_color(GREY)
    _bare(ax)


def _strips(ax: Axes, evaluation: Evaluation, ids: list[str]) -> None:
    """What did the arithmetic of each row and column, as a line of its colour beside the matrix."""
    n = len(ids)
    for ink, start, stop in _runs(ids, evaluation.ink):
        for x, y in (([-1.2, -1.2], [start - 0.5, stop - 0.5]), ([start - 0.5, stop - 0.5], [n + 0.2, n + 0.2])):
            ax.plot(x, y, color=ink, lw=2.6, solid_capstyle="butt", clip_on=False)
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_ylim(n - 0.5, -0.5)
    ax.tick_params(pad=9)


def _bare(ax: Axes) -> None:
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
