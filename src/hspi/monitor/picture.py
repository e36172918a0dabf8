"""The history of an endpoint as a picture, or as a page that stands alone: class over time, alerts, tokens used."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hspi.errors import ConfigError
from hspi.files import write_bytes
from hspi.history import FAILED, Entry
from hspi.report.drawing import BLUE, GREY, ORANGE, Picture, figure, picture, styled
from hspi.report.html import image, page
from hspi.verdict import UNKNOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RED, VIOLET = "#b2182b", "#7b3294"
LOOKS: dict[str, tuple[str, str, bool]] = {  # outcome → colour, marker, filled; no two share a marker
    "consistent": (BLUE, "o", True),
    "identified": (BLUE, "s", True),
    "contradicted": (ORANGE, "D", True),
    "unknown": (VIOLET, "^", True),
    "inconclusive": (GREY, "o", False),
    FAILED: (GREY, "X", True),
}
NOTHING, SILENT = "inconclusive", "no answer"


def write(path: Path, entries: Sequence[Entry], title: str) -> None:
    """PATH as .png or .html. Raises ConfigError for another ending, or where there is nothing to draw."""
    if path.suffix not in (".png", ".html"):
        raise ConfigError(f"a plot must end in .png or .html, but got {path.name!r}")
    drawn = draw(entries, title)
    content = drawn.png if path.suffix == ".png" else _page(drawn, entries, title).encode()
    write_bytes(path, content)


def draw(entries: Sequence[Entry], title: str) -> Picture:
    if not entries:
        raise ConfigError("a history must hold an audit before it can be drawn, but it holds none")
    rows = _rows(entries)
    with styled():
        fig = figure(8.2, 2.3 + 0.36 * len(rows))
        upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=[0.9 + 0.36 * len(rows), 0.7])
        _classes(upper, entries, rows)
        _tokens(lower, entries)
        fig.suptitle(title, x=0.01, ha="left", fontsize=10.5, color="#20262b", parse_math=False)
        alerts = sum(e.alert for e in entries)
        alt = f"{title}: {len(entries)} audits, {alerts} alerts; last {entries[-1].answer or entries[-1].outcome}"
        return picture("history", fig, alt)


def _row(entry: Entry) -> str:
    if entry.outcome == FAILED:
        return SILENT
    return entry.answer if entry.conclusive else NOTHING


def _rows(entries: Sequence[Entry]) -> list[str]:
    """Classes from the top in the order in which they came, then what is no class."""
    seen = list(dict.fromkeys(_row(e) for e in entries))
    last = [name for name in (UNKNOWN, NOTHING, SILENT) if name in seen]
    return [name for name in seen if name not in last] + last


def _time(entry: Entry) -> Any:
    from matplotlib.dates import date2num

    return date2num(datetime.fromisoformat(entry.time))


def _classes(ax: Axes, entries: Sequence[Entry], rows: Sequence[str]) -> None:
    conclusive = [e for e in entries if e.conclusive]
    ax.plot(
        [_time(e) for e in conclusive], [rows.index(_row(e)) for e in conclusive],
        drawstyle="steps-post", color="#c3ccd3", linewidth=1.4, zorder=1,
    )  # fmt: skip
    for outcome, (colour, marker, filled) in LOOKS.items():
        some = [e for e in entries if e.outcome == outcome]
        if some:
            ax.plot(
                [_time(e) for e in some], [rows.index(_row(e)) for e in some],
                linestyle="none", marker=marker, markersize=5.5, color=colour, zorder=3,
                markerfacecolor=colour if filled else "white", label=_label(outcome),
            )  # fmt: skip
    _alerts(ax, entries)
    ax.set_yticks(range(len(rows)), rows, parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.margins(x=0.06)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=6, fontsize=8, handletextpad=0.2, columnspacing=1.2)


def _label(outcome: str) -> str:
    return "endpoint failed" if outcome == FAILED else outcome


def _alerts(ax: Axes, entries: Sequence[Entry]) -> None:
    for i, e in enumerate(e for e in entries if e.alert):
        ax.axvline(_time(e), color=RED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2, label="" if i else "alert")
        ax.annotate(
            "!", (_time(e), 0), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=8, fontweight="bold", color="white",
            bbox={"boxstyle": "circle,pad=0.22", "facecolor": RED, "edgecolor": "none"},
        )  # fmt: skip


def _tokens(ax: Axes, entries: Sequence[Entry]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    ax.vlines([_time(e) for e in entries], 0, [e.tokens for e in entries], color="#8fa3b3", linewidth=2.2)
    ax.set_ylabel("tokens\nused", rotation=0, ha="right", va="center")
    ax.set_ylim(0, max(1, *(e.tokens for e in entries)) * 1.15)
    ax.grid(axis="x", visible=False)
    locator = AutoDateLocator(minticks=3, maxticks=8)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ax.set_xlabel("time, UTC")


# ---------------------------------------------------------------- page

_PAGE = """
h1{font-size:1.4rem;overflow-wrap:anywhere}img{max-width:100%;height:auto}
tr.alert td{background:#fdecea}td.t{white-space:nowrap}
"""


def _page(drawn: Picture, entries: Sequence[Entry], title: str) -> str:
    rows = "".join(_html_row(e) for e in reversed(entries))
    heads = "".join(f"<th>{name}</th>" for name in ("time, UTC", "outcome", "class", "what it said", "p", "tokens"))
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'
    return page(title, f"<h1>{escape(title)}</h1>{image(drawn.alt, drawn.png)}{table}", style=_PAGE)


def _html_row(e: Entry) -> str:
    p = "" if e.claim_p_value is None else f"{e.claim_p_value:.2g}"
    said = f"<b>Alert:</b> {escape(e.news)}" if e.alert else escape(e.news or e.why)
    cells = f'<td class="t">{escape(e.time[:16].replace("T", " "))}</td><td>{escape(e.outcome)}</td>'
    cells += f'<td>{escape(e.answer)}</td><td>{said}</td><td class="n">{p}</td><td class="n">{e.tokens}</td>'
    row = '<tr class="alert">' if e.alert else "<tr>"
    return f"{row}{cells}</tr>"
