"""Which level of evidence an endpoint allows, and what an audit will cost and show, said before it spends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hspi.audits.discovery import DISCOVERY_TOKENS, Capabilities
from hspi.audits.levels.scorer import Scorer
from hspi.audits.material import Material, Probe
from hspi.audits.sequential import crossing


@dataclass(frozen=True, slots=True)
class Plan:
    """level: `Level.name`; `power`: median tokens until the claim is contradicted if the nearest other class serves
    instead (from stored signatures; None where they did not part); sequential: whether it may stop early.
    """

    level: str
    why: str
    probes: list[Probe]
    prompt_tokens: int
    output_tokens: int
    cost: float | None
    nearest: str | None
    power: int | None
    candidates: int
    classes: int
    sequential: bool
    capabilities: Capabilities

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        cap = self.capabilities
        money = "" if self.cost is None else f", cost at most {self.cost:.4g}"
        told = [f"endpoint      {cap.form.route}, top-{cap.top_k}, prompts as {'ids' if cap.form.ids else 'text'}"
                f", {'repeats itself' if cap.repeatable else 'does not repeat itself'}"
                f", {'echoes' if cap.echo else 'no echo'}"] if cap.form else []  # fmt: skip
        out = [*told, f"level         {self.level}: {self.why}"]
        if self.sequential or self.probes:
            often = "it stops when the evidence suffices" if self.sequential else "all are asked"
            if self.sequential:
                out.append(f"candidates    {self.candidates} platforms in {self.classes} classes")
            out.append(
                f"plan          at most {len(self.probes)} requests, {self.prompt_tokens} prompt and "
                f"{self.output_tokens} output tokens{money}; {often}"
            )
        if self.nearest:
            power = f"{self.power} tokens" if self.power else f"more than {len(self.probes)} tokens"
            out.append(f"power         {power} expected to part the claim from its nearest class, {self.nearest}")
        return out


def make_plan(
    material: Material, cap: Capabilities, level: str, why: str, most: int | None, scorer: Scorer | None
) -> Plan:
    """most: probes asked at most, None for all that there are; `scorer` is None where the level tests no candidates one
    answer at a time.
    """
    asked = [p for p in material.probes if cap.form is not None and (cap.form.ids or p.exact)]
    if scorer is not None:
        at = {p: i for i, p in enumerate(scorer.data.probes)}
        asked = [p for p in asked if scorer.asks(at[p.set, p.id])]
    left = material.settings.budget - max(0, cap.tokens - DISCOVERY_TOKENS)
    asked = asked[: max(0, left if most is None else min(most, left))]
    prompt = sum(len(p.ids) + max(cap.extra_tokens or 0, 0) for p in asked)
    price = material.settings.price
    nearest, power = (None, None) if scorer is None else expected_power(material, scorer)
    told = material.told
    return Plan(
        level,
        why,
        asked,
        prompt,
        len(asked),
        None if price is None else (prompt + len(asked)) * price / 1e6,
        nearest,
        power,
        0 if told is None else len(told.platform_ids),
        0 if told is None else told.count,
        scorer is not None,
        cap,
    )


def expected_power(material: Material, scorer: Scorer) -> tuple[str | None, int | None]:
    """(the class that the claim is hardest to part from, tokens that takes in the stored signatures)."""
    claimed, told = material.claimed, scorer.told
    if claimed is None or not claimed.classes or told.count < 2:
        return None, None
    members = np.flatnonzero(np.isin(told.label, claimed.classes))
    rivals = [int(r) for r in scorer.rivals[members].ravel() if told.label[int(r)] not in claimed.classes]
    found = [(_tokens(scorer, r, claimed.classes, members, material), told.names[told.label[r]]) for r in rivals]
    if not found:
        return None, None
    tokens, name = max(found, key=lambda f: (f[0] is None, f[0] or 0))
    return name, tokens


def _tokens(scorer: Scorer, served: int, claimed: Sequence[int], members: Any, material: Material) -> int | None:
    """Tokens until the claimed classes are excluded when platform `served` answers as it did under one setting."""
    data = scorer.data
    setting = int(np.flatnonzero(data.present[served])[0])
    index = {p: i for i, p in enumerate(data.probes)}
    rows = [index[p.set, p.id] for p in material.probes]
    at = np.asarray([i for i in rows if scorer.asks(i)])
    if not len(at):
        return None
    process = scorer.processes(scorer.views(scorer.own(served, setting, at), at, members))[list(claimed)].min(axis=0)
    return crossing(process, material.settings.alpha)
