"""The report of one audit. Whatever an endpoint sent is escaped."""

from __future__ import annotations

from html import escape
from math import log10
from pathlib import Path
from typing import Any

from hspi.audits.material import Material
from hspi.audits.plan import Plan
from hspi.files import write_text
from hspi.report.html import page
from hspi.verdict import Verdict

_STYLE = """
body{max-width:52rem}h1{font-size:1.5rem}h2{margin-top:2rem}table{font-size:inherit}
td,th{padding:.25rem .6rem}td{overflow-wrap:anywhere}th{color:inherit;border-color:var(--line)}
.bar{background:#4c78a8;height:.7rem;display:inline-block}.outcome{font-weight:700}
.contradicted{color:#a8071a}.consistent,.identified{color:#135200}.inconclusive,.unknown{color:#874d00}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(path: Path, plan: Plan, found: Verdict, material: Material, limits: str) -> None:
    write_text(path, html(plan, found, material, limits))


def html(plan: Plan, found: Verdict, material: Material, limits: str) -> str:
    """limits: what the level can tell, a sentence or two."""
    settings = material.settings
    kind = found.outcome if found.outcome.isalpha() else ""
    claim = [
        ("claim", settings.claim_format if settings.claimed is None else str(settings.claimed)),
        ("platforms that it may mean", ", ".join(found.tested)),
        ("p-value of the claim at any stopping time", found.claim_p_value),
    ]
    facts: list[tuple[str, Any]] = [
        ("endpoint", settings.base_url),
        ("served as", settings.served),
        ("weights", f"{settings.model} (sha256 {settings.weights_hash[:16]}…)"),
        *claim,
        ("answer", found.answer),
        ("kernel plan", found.plan),
        ("members of its class", ", ".join(found.members)),
        (f"set at {1 - found.alpha:g}", ", ".join(found.set_at)),
        ("not told apart", "; ".join(", ".join(c) for c in found.not_told_apart)),
        ("to tell more", found.to_tell_more),
    ]
    body = [
        f'<h1>Audit: <span class="outcome {kind}">{escape(found.outcome)}</span></h1>',
        f"<p>{escape(found.why)}.</p>",
        _table(facts),
        _factors(found),
        _evidence(found, material),
        _formats(found),
        "<h2>Level, plan and use</h2>",
        _table(_use(plan, found, limits)),
        "<h2>Versions</h2>",
        _table(sorted(material.facts.items())),
    ]
    return page(f"hspi audit: {found.outcome}", "\n".join(body), style=_STYLE, policy=_POLICY)


def _use(plan: Plan, found: Verdict, limits: str) -> list[tuple[str, Any]]:
    return [
        ("level of evidence", f"{plan.level}: {plan.why}"),
        ("what it can tell", limits),
        ("candidates", f"{plan.candidates} platforms in {plan.classes} classes"),
        ("asked at most", f"{len(plan.probes)} questions of one token"),
        ("used", f"{found.requests} requests, {found.prompt_tokens} + {found.output_tokens} tokens"),
        ("unusable answers", found.unusable),
        ("cost", found.cost),
    ]


def _table(rows: list[tuple[str, Any]]) -> str:
    shown = [(k, v) for k, v in rows if v not in (None, "")]
    cells = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in shown)
    return f"<table>{cells}</table>"


def _factors(found: Verdict) -> str:
    if not found.failed_factors:
        return ""
    rows = [(factor, f"claimed {said}, answers like {other}") for factor, (said, other) in found.failed_factors.items()]
    return "<h2>What the claim fails on</h2>" + _table(list(rows))


def _evidence(found: Verdict, material: Material) -> str:
    if not found.log10_e:
        return ""
    said = f"<p>log<sub>10</sub> of the highest E-value; a class is excluded from {-log10(found.alpha):g} on.</p>"
    return f"<h2>Evidence against each class</h2>{said}{_classes(found, material)}"


def _formats(found: Verdict) -> str:
    rows = [(name, f"{p:.4f}") for name, p in sorted(found.formats.items(), key=lambda item: -item[1])]
    lowest = "<h2>Number format</h2><p>Posterior, the lowest over disjoint parts of the answers.</p>"
    return lowest + _table(list(rows)) if rows else ""


def _classes(found: Verdict, material: Material) -> str:
    told = material.detector.told(material.settings.model)
    provenance = {p.id: p.provenance for p in material.detector.library(material.settings.model).data.platforms}
    rows = ["<tr><th>class</th><th>provenance</th><th>log<sub>10</sub> E</th><th>posterior</th><th></th></tr>"]
    most = max([1.0, *found.log10_e.values()])
    for name, value in sorted(found.log10_e.items(), key=lambda item: item[1]):
        members = told.members_of(name)
        kinds = ", ".join(sorted({provenance[m] for m in members}))
        width = max(0.0, 100 * value / most)
        rows.append(
            f"<tr><td>{escape(', '.join(members))}</td><td>{escape(kinds)}</td><td>{value:.2f}</td>"
            f"<td>{found.posterior.get(name, 0.0):.4f}</td>"
            f'<td style="width:30%"><span class="bar" style="width:{width:.0f}%"></span></td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"
