"""Which level of evidence an endpoint allows, and what an audit will cost and show, said before it spends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hspi.audit.discovery import Capabilities
from hspi.audit.material import Material, Probe
from hspi.audit.scoring import Scorer
from hspi.audit.sequential import crossing

FEWEST = 2  # alternatives that a residual needs: the shift of the normaliser takes one


@dataclass(frozen=True, slots=True)
class Plan:
    """level: replay, or none where nothing can be concluded; `power`: median tokens until the claim is contradicted
    if the nearest other class serves instead (from stored signatures; None where they did not part).
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
        if self.level != "none":
            out.append(f"candidates    {self.candidates} platforms in {self.classes} classes")
            out.append(
                f"plan          at most {len(self.probes)} requests, {self.prompt_tokens} prompt and "
                f"{self.output_tokens} output tokens{money}; it stops when the evidence suffices"
            )
        if self.nearest:
            power = f"{self.power} tokens" if self.power else f"more than {len(self.probes)} tokens"
            out.append(f"power         {power} expected to part the claim from its nearest class, {self.nearest}")
        return out


def choose_level(cap: Capabilities) -> tuple[str, str]:
    """(level, why)."""
    if cap.form is None:
        return "none", f"no log-probabilities come ({'; '.join(cap.remarks)})"
    if cap.foreign:
        return "none", f"{cap.foreign} tokens are not in the model's vocabulary: another tokenizer serves"
    if cap.decimals is not None:
        return "none", f"log-probabilities are rounded to {cap.decimals} decimals, coarser than what parts platforms"
    if cap.top_k < FEWEST:
        return "none", f"only {cap.top_k} alternatives come, and at least {FEWEST} are needed"
    if not cap.form.ids and cap.extra_tokens != 0:
        count = "an unknown number of" if cap.extra_tokens is None else str(cap.extra_tokens)
        return "none", f"the endpoint puts {count} tokens of its own around the prompt, which no signature has"
    how = "token ids" if cap.form.ids else "text that the tokenizer maps back to the same ids, with nothing added"
    return "replay", f"top-{cap.top_k} log-probabilities at full precision on prompts given as {how}"


def make_plan(material: Material, cap: Capabilities, scorer: Scorer | None) -> Plan:
    """`scorer` is None where the level allows no scoring."""
    level, why = choose_level(cap)
    asked = [p for p in material.probes if p.exact or (cap.form is not None and cap.form.ids)]
    asked = asked if level != "none" else []
    prompt = sum(len(p.ids) + max(cap.extra_tokens or 0, 0) for p in asked)
    price = material.settings.price
    nearest, power = (None, None) if scorer is None else expected_power(material, scorer)
    classes = material.bundle.classes[material.settings.model]
    return Plan(
        level,
        why,
        asked,
        prompt,
        len(asked),
        None if price is None else (prompt + len(asked)) * price / 1e6,
        nearest,
        power,
        len(classes.platform_ids),
        classes.count,
        cap,
    )


def expected_power(material: Material, scorer: Scorer) -> tuple[str | None, int | None]:
    """(the class that the claim is hardest to part from, tokens that takes in the stored signatures)."""
    claim, classes = material.settings.claim, scorer.classes
    if claim is None or classes.count < 2:
        return None, None
    own = classes.label[classes.platform_ids.index(claim)]
    members = np.flatnonzero(np.asarray(classes.label) == own)
    rivals = [int(r) for r in scorer.rivals[members].ravel()]
    found = [(_tokens(scorer, r, own, members, material), classes.name(classes.label[r])) for r in rivals]
    tokens, name = max(found, key=lambda f: (f[0] is None, f[0] or 0))
    return name, tokens


def _tokens(scorer: Scorer, served: int, claimed: int, members: Any, material: Material) -> int | None:
    """Tokens until the claimed class is contradicted when platform `served` answers as it did under one setting."""
    data = scorer.data
    setting = int(np.flatnonzero(data.present[served])[0])
    at = np.asarray([data.probes.index((p.set, p.id)) for p in material.probes])
    process = scorer.processes(scorer.views(scorer.own(served, setting, at), at, members))[claimed]
    return crossing(process, material.settings.alpha)


def names_of(probes: Sequence[Probe]) -> list[str]:
    return [f"{p.set}-{p.id}" for p in probes]
