"""What all pictures share: colours, style, and a figure as PNG.

Drawn without pyplot, so that nothing global is touched; the same tables give the same bytes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INKS = {"real": "#1d3557", "capped": "#b35806", "emulated": "#7b3294"}
GREY, BLUE, ORANGE = "#5c6770", "#2166ac", "#d94801"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a949c",
    "axes.labelcolor": "#30373d",
    "xtick.color": "#5c6770",
    "ytick.color": "#5c6770",
    "axes.grid": True,
    "grid.color": "#e3e7ea",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    png: bytes
    alt: str


def styled() -> AbstractContextManager[None]:
    """Within it, figures are drawn in STYLE."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def picture(name: str, fig: Figure, alt: str) -> Picture:
    out = BytesIO()
    fig.savefig(out, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return Picture(name, out.getvalue(), alt)
