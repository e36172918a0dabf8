"""The pictures of an evaluation's tables.

Blue is above 0.99 and orange below, in every picture that shows an accuracy; both differ in lightness too, for print
and for eyes that do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hspi.report.drawing import BLUE, GREY, ORANGE, Picture, figure, picture, styled
from hspi.report.headlines import PAPER_PROBES, rate
from hspi.report.matrix import matrix
from hspi.report.platforms import platforms
from hspi.report.read import MARKS, Evaluation, hardware, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(evaluation: Evaluation) -> list[Picture]:
    """Every picture whose table is there."""
    makers: list[tuple[Callable[[Evaluation], Picture | None], str]] = [
        (platforms, "accuracy_by_platform"),
        (matrix, "pair_accuracy"),
        (tokens, "accuracy_by_tokens"),
        (open_set, "open_set"),
        (reliability, "reliability"),
        (factors, "by_factor"),
    ]
    with styled():
        made = [make(evaluation) for make, table in makers if table in evaluation.tables]
    return [p for p in made if p]


# ---------------------------------------------------------------- curves


def tokens(evaluation: Evaluation) -> Picture:
    """The whole range above, the last tenth below: the interesting differences are there."""
    fig = figure(6.6, 5.6)
    whole, near = fig.subplots(2, 1, sharex=True, height_ratios=(1, 1.35))
    for ax in (whole, near):
        _token_lines(ax, evaluation)
        ax.axhline(0.99, color=GREY, lw=0.8, ls=(0, (4, 3)))
        ax.set_xscale("log", base=2)
    rows = evaluation.tables["accuracy_by_tokens"]
    sizes = sorted({int(number(r, "tokens")) for r in rows})
    near.set_xticks(sizes, [str(s) for s in sizes])
    near.minorticks_off()
    chance = [number(r, "chance") for r in rows if r.get("chance")]
    if chance:
        whole.axhline(float(np.mean(chance)), color=GREY, lw=0.8, ls=":")
        whole.annotate("chance", (sizes[0], float(np.mean(chance))), (2, 3), textcoords="offset points", color=GREY)
    _paper_point(whole, evaluation, sizes[-1])
    whole.set_ylim(0, 1.03)
    near.set_ylim(max(0.0, min(0.9, min(number(r, "accuracy") for r in rows) - 0.01)), 1.003)
    near.annotate("0.99", (sizes[-1], 0.99), (4, -3), textcoords="offset points", color=GREY, annotation_clip=False)
    whole.set_ylabel("macro accuracy")
    near.set_ylabel("the same, enlarged")
    near.set_xlabel("tokens observed (one for each probe)")
    near.legend(loc="lower right")
    return picture("accuracy_by_tokens", fig, "Macro accuracy against the number of tokens observed, by detector.")


def _token_lines(ax: Axes, evaluation: Evaluation) -> None:
    rows = evaluation.tables["accuracy_by_tokens"]
    for level, colour in (("replay", BLUE), ("nearest", ORANGE)):
        for k in sorted({int(number(r, "top_k")) for r in rows}, reverse=True):
            some = [r for r in rows if r["level"] == level and int(number(r, "top_k")) == k]
            some.sort(key=lambda r: number(r, "tokens"))
            if not some:
                continue
            x, y, low, high = (
                np.array([number(r, c) for r in some]) for c in ("tokens", "accuracy", "ci_low", "ci_high")
            )
            solid = k == max(int(number(r, "top_k")) for r in rows)
            marker: dict[str, Any] = {
                "marker": "o" if level == "replay" else "s",
                "ms": 4,
                "mfc": colour if solid else "white",
            }
            ax.plot(x, y, color=colour, lw=1.5, ls="-" if solid else "--", label=f"{level}, top-{k}", **marker)
            if solid:
                ax.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)


def _paper_point(ax: Axes, evaluation: Evaluation, at: int) -> None:
    value = evaluation.metrics.get(PAPER_PROBES)
    if value is None:
        return
    ax.plot([at], [value], marker="D", ms=6, color="#30373d", ls="")
    text = f"HSPI-LD, top-256: {rate(value, 3)}"
    ax.annotate(text, (at, value), (-8, 6), textcoords="offset points", ha="right", color="#30373d")


def reliability(evaluation: Evaluation) -> Picture:
    rows = evaluation.tables["reliability"]
    x, y, n = (np.array([number(r, c) for r in rows]) for c in ("confidence", "accuracy", "count"))
    fig = figure(4.6, 4.4)
    ax = fig.add_subplot()
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)))
    ax.plot(x, y, color=BLUE, lw=1)
    ax.scatter(x, y, s=14 + 130 * np.sqrt(n / n.max()), color=BLUE, alpha=0.75, lw=0, zorder=3)
    for a, b, count in zip(x, y, n, strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
        ax.annotate(f"{int(count):,}", (a, b), (0, -9), fontsize=7, color=GREY, **place)
    ax.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.04), aspect="equal")
    ax.set_xlabel("probability that the verdict states")
    ax.set_ylabel("share of right answers")
    return picture("reliability", fig, "Stated probability against the share of right answers, with sample counts.")


def open_set(evaluation: Evaluation) -> Picture:
    rows = evaluation.tables["open_set"]
    score = np.array([number(r, "score") for r in rows])
    known = np.array([r["is_known"].lower() in ("1", "1.0", "true") for r in rows])
    finite = np.isfinite(score)
    fig = figure(6.6, 2.9)
    ax = fig.add_subplot()
    bins = np.linspace(score[finite].min(), score[finite].max() + 1e-9, 61).tolist()
    for some, colour, label in ((~known, ORANGE, "platform not among the candidates"), (known, BLUE, "among them")):
        chosen = score[finite & some]
        weights = np.full(len(chosen), 1 / max(len(chosen), 1))
        ax.hist(chosen, bins, weights=weights, color=colour, alpha=0.6, lw=0, label=label)
    ax.set_xlabel("score of the best candidate (log-odds of being the same platform)")
    ax.set_ylabel("share of samples")
    ax.legend(loc="upper center")
    return picture("open_set", fig, "Scores of the best candidate, with the true platform among the candidates or not.")


def factors(evaluation: Evaluation) -> Picture:
    """A dot for each value of each factor; the axis begins below the lowest."""
    rows = evaluation.tables["by_factor"]
    names = list(dict.fromkeys(r["factor"] for r in rows))
    fig = figure(6.6, 0.2 * (len(rows) + 1.6 * len(names)) + 0.7)
    ax = fig.add_subplot()
    labels: list[tuple[float, str]] = []
    y = 0.0
    for name in names:
        labels.append((y, name.replace("_", " ").upper()))
        y += 1
        for row in sorted((r for r in rows if r["factor"] == name), key=lambda r: -number(r, "accuracy")):
            value = number(row, "accuracy")
            ax.plot(value, y, "o", ms=5.5, color=BLUE if value >= 0.99 else ORANGE)
            labels.append((y, _value(evaluation, name, row["value"])))
            y += 1
        y += 0.6
    ax.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=7.5)
    lowest = min(0.98, *(number(r, "accuracy") for r in rows))  # a finer axis would make much of little
    ax.set_xlim(lowest - 0.06 * (1 - lowest), 1 + 0.03 * (1 - lowest))
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.set_ylim(y - 0.6, -0.8)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("share of answers whose value is the true one")
    return picture("by_factor", fig, "How often the answer has the true engine, number format, attention and so on.")


def _value(evaluation: Evaluation, factor: str, value: str) -> str:
    """With the mark of a provenance; of a machine, the word where all of it is emulated."""
    own = [p for p in evaluation.ids() if factor == "hardware" and hardware(p) == value]
    return evaluation.machine(own)[0] if own else f"{MARKS.get(value, '')} {value}".strip()
