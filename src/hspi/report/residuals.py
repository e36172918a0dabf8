"""Pictures of residuals: what the verdict rests on, for a few platforms that differ in kind."""

from __future__ import annotations

import numpy as np

from hspi.evidence.aligned import Aligned
from hspi.evidence.residual import OCTAVES, gather
from hspi.report.drawing import BLUE, INKS, ORANGE, Picture, figure, picture, styled
from hspi.report.read import Evaluation

TOKENS = 20
PANELS, RIDGES = 6, 12


def draw(evaluation: Evaluation) -> list[Picture]:
    """Two pictures of the first model, or none without features."""
    if not evaluation.features:
        return []
    data = evaluation.features[0]
    chosen = varied(data, evaluation.ordered(data.platform_ids()))
    with styled():
        return [one_probe(evaluation, data, chosen[:PANELS]), sizes(evaluation, data, chosen[:RIDGES])]


def varied(data: Aligned, ordered: list[str]) -> list[str]:
    """Platforms in an order that brings each new kind first, so that the first few differ most."""
    facts = {p.id: p for p in data.platforms}
    keys = (
        lambda p: (p.number_format,),
        lambda p: (p.number_format, p.engine),
        lambda p: (p.number_format, p.engine, p.attention, p.isa_cap),
    )
    plain = sorted(ordered, key=lambda p: facts[p].provenance == "emulated")
    chosen: list[str] = []
    for key in keys:
        seen = {key(facts[p]) for p in chosen}
        for p in plain:
            if p not in chosen and key(facts[p]) not in seen:
                seen.add(key(facts[p]))
                chosen.append(p)
    # Twins first: two platforms of one format beside one another show what the finer differences look like.
    first = [p for p in plain if facts[p].number_format == facts[chosen[0]].number_format][:3]
    return [*first, *(p for p in chosen if p not in first)]


def one_probe(evaluation: Evaluation, data: Aligned, ids: list[str]) -> Picture:
    """Residuals of the first probe's likeliest tokens, under the first setting and under the last."""
    fig = figure(6.8, 1.05 * len(ids) + 0.7)
    axes = np.atleast_1d(fig.subplots(len(ids), 1, sharex=True))
    for ax, id in zip(axes, ids, strict=True):
        c = data.platform_ids().index(id)
        settings = np.flatnonzero(data.present[c])
        first, last = (_by_slot(data, c, int(s)) for s in (settings[0], settings[-1]))
        scale = np.nanmax(np.abs([first, last])) or 1.0
        power = int(np.floor(np.log10(scale)))
        x = np.arange(1, TOKENS + 1)
        ax.axhline(0, color="#8a949c", lw=0.7)
        ax.vlines(x, 0, first / 10.0**power, color=BLUE, lw=2.2)
        ax.plot(x, last / 10.0**power, "o", ms=4, mfc="none", mec=ORANGE, mew=1.1)
        ax.set_ylabel(f"× 10{_raised(power)}", fontsize=7.5)
        ax.set_title(f"{evaluation.mark(id)} {id}", fontsize=8, loc="left", pad=2, color=evaluation.ink(id))
        ax.grid(False)
        ax.tick_params(labelsize=7)
    axes[-1].set_xticks([1, 5, 10, 15, 20])
    words = "bars: the first batch class, circles: the last"
    axes[-1].set_xlabel(f"the {TOKENS} likeliest tokens of one probe; {words}")
    return picture("residuals_one_probe", fig, "Residuals of one probe's likeliest tokens on several platforms.")


def _by_slot(data: Aligned, c: int, s: int) -> np.ndarray:
    """Of the first probe, on the likeliest tokens, median removed, NaN where not reported: float64 (TOKENS,)."""
    residual = data.logprobs[c, s, 0, :TOKENS] - data.reference[0, :TOKENS]
    return np.asarray(residual - np.nanmedian(residual))


def sizes(evaluation: Evaluation, data: Aligned, ids: list[str]) -> Picture:
    """How large residuals are: a ridge for each platform over all probes of its first setting."""
    facts = {p.id: p for p in data.platforms}
    fig = figure(6.8, 0.42 * len(ids) + 1.0)
    ax = fig.add_subplot()
    edges = np.arange(OCTAVES[0], OCTAVES[-1] + 1.5, 0.5)
    middle = edges[:-1] + 0.25
    shown = []
    for id in ids:
        c = data.platform_ids().index(id)
        residual = gather(data, c, int(np.flatnonzero(data.present[c])[0]), TOKENS)[0]
        values = np.abs(residual[np.isfinite(residual) & (residual != 0)])
        shown.append((float(np.median(np.log2(values))) if len(values) else -30.0, id, values))
    for row, (_, id, values) in enumerate(sorted(shown)):
        height = np.histogram(np.log2(values), edges)[0] / max(len(values), 1)
        colour = INKS[facts[id].provenance]
        ax.fill_between(middle, -row, -row + 5.5 * height, color=colour, alpha=0.35, lw=0, zorder=row + 2)
        ax.plot(middle, -row + 5.5 * height, color=colour, lw=1, zorder=row + 2)
    labels = [f"{id} {evaluation.mark(id)}" for _, id, _ in sorted(shown)]
    ax.set_yticks([-r for r in range(len(shown))], labels, fontsize=7.5)
    for tick, (_, id, _) in zip(ax.get_yticklabels(), sorted(shown), strict=True):
        tick.set_color(evaluation.ink(id))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ticks = range(OCTAVES[0], OCTAVES[-1] + 1, 4)
    ax.set_xticks(list(ticks), [f"2{_raised(t)}" for t in ticks])
    ax.set_xlabel(f"size of a residual (natural-log units), top-{TOKENS}, all probes")
    return picture("residual_sizes", fig, "Distribution of the size of residuals on several platforms.")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
