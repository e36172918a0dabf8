"""The shell of every page: one file, pictures embedded, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

Section = tuple[str, str, str]  # anchor, title, HTML

STYLE = """
:root{color-scheme:light;--ink:#20262b;--soft:#5c6770;--line:#dde2e6;--blue:#1d4e89;--orange:#b35806;--violet:#7b3294}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.5rem 1.1rem 4rem;font:16px/1.5 system-ui,"Liberation Sans",sans-serif;
color:var(--ink);background:#fff}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.15rem;margin:2.6rem 0 .4rem}
p{max-width:46rem;margin:.5rem 0}.lead{font-size:1.08rem}.soft,figcaption,.note{color:var(--soft);font-size:.88rem}
nav a{margin-right:1rem;display:inline-block}table.stack td:nth-child(2){white-space:nowrap}
a{color:var(--blue)}
.wide{overflow-x:auto;margin:.8rem 0}table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{text-align:left;padding:.36rem .7rem .36rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;border-bottom-color:#aab3ba}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td b{font-size:1.02rem}.met{color:var(--blue)}.missed{color:var(--orange);font-weight:600}
code,.id{font:.84em/1.4 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.capped{color:var(--orange)}.emulated{color:var(--violet)}
figure{margin:1rem 0;break-inside:avoid}figure img{max-width:100%;height:auto;display:block}
figure.narrow img{max-width:min(100%,34rem)}figcaption{max-width:46rem;margin-top:.4rem}
details{margin:.6rem 0}details td:first-child{min-width:15rem}summary{color:var(--blue);cursor:pointer}
ul{padding-left:1.2rem;max-width:46rem}li{margin:.25rem 0}
@media(max-width:40rem){table.stack thead{display:none}table.stack tr{display:block;padding:.6rem 0;
border-bottom:1px solid var(--line)}table.stack td{display:flex;justify-content:space-between;gap:1rem;
border:0;padding:.1rem 0;text-align:right}table.stack td:first-child{display:block;text-align:left;font-weight:600}
table.stack td::before{content:attr(data-h);color:var(--soft);text-align:left}
table.stack td:first-child::before{content:none}table.stack td.empty{display:none}}
@media print{body{font-size:10.5pt;max-width:none;padding:0}nav{display:none}h2{break-after:avoid}tr{break-inside:avoid}
.wide{overflow:visible}}
"""


def page(title: str, body: str, *, style: str = "", policy: str = "") -> str:
    """A whole page. body: HTML already. style: CSS after the common one. policy: a Content-Security-Policy."""
    guard = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{guard}'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def image(alt: str, png: bytes) -> str:
    """A picture inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: str = "", stack: bool = False) -> str:
    """Cells are HTML already. numeric: an "n" for each column of figures. stack: one block a row on narrow screens."""
    kinds = ["n" if k == "n" else "t" for k in numeric.ljust(len(head))]
    top = "".join(f'<th class="{k}">{escape(h)}</th>' for h, k in zip(head, kinds, strict=True))
    lines = [
        "".join(
            f'<td class="{k}{"" if c else " empty"}" data-h="{escape(h)}">{c}</td>'
            for h, k, c in zip(head, kinds, row, strict=True)
        )
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    shape = ' class="stack"' if stack else ""
    return f'<div class="wide"><table{shape}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(summary: str, body: str) -> str:
    """HTML that a reader opens; without a script."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"
