"""Which level of evidence an endpoint allows, and what an audit will cost and show, said before it spends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hspi.audits.discovery import DISCOVERY_TOKENS, Capabilities
from hspi.audits.levels.scorer import AT_LEAST, Scorer
from hspi.audits.material import Material, Probe
from hspi.audits.sequential import crossing
from hspi.errors import ConfigError


class OutOfReach(ConfigError):
    """No answers that may be asked for would exclude anything at such an alpha."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How many answers `alpha` takes. needs: those that exclude a class which all of them are plainly unlike, at the
    least, None where all `available` probes of the library do not suffice; asked: those that the budget allows; least:
    the alpha that all of them reach.
    """

    alpha: float
    needs: int | None
    asked: int
    available: int
    least: float

    @classmethod
    def of(cls, scorer: Scorer, alpha: float, asked: int, available: int) -> Reach:
        lie = scorer.plain_lie(available)
        least = float(np.exp(-lie.max(initial=0.0)))
        digit = 10.0 ** np.floor(np.log10(least))
        return cls(alpha, crossing(lie, alpha), asked, available, float(f"{np.ceil(least / digit) * digit:.1g}"))

    @property
    def within(self) -> bool:
        return self.needs is not None and self.needs <= self.asked

    def line(self) -> str:
        if self.needs is None:
            return (
                f"more answers than the {self.available} probes of this library: alpha {self.alpha:g} is out of reach"
            )
        said = f"{self.needs} answers at least to exclude a class at alpha {self.alpha:g}"
        if not self.within:
            return f"{said}, but the budget allows {self.asked}: nothing can be excluded"
        return f"{said}; {self.available} probes reach down to {self.least:g}"

    def check(self) -> None:
        """Raises OutOfReach where nothing can be excluded."""
        if self.needs is None:
            raise OutOfReach(
                f"alpha must be {self.least:g} at least with the {self.available} probes that this library has for it, "
                f"but got {self.alpha:g}"
            )
        if not self.within:
            raise OutOfReach(
                f"the budget must allow the {self.needs} answers that alpha {self.alpha:g} takes, not {self.asked}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """level: `Level.name`; `power`: tokens until the claim is excluded if the nearest other class serves instead (from
    stored signatures; None where they did not part); sequential: whether it may stop early; reach: what alpha takes,
    None where no candidate is tested.
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
    reach: Reach | None = None

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
        if self.reach:
            out.append(f"needs         {self.reach.line()}")
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
    available = len(asked)
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
        None if scorer is None else Reach.of(scorer, material.settings.alpha, len(asked), available),
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
    crossed = crossing(process, material.settings.alpha)
    by_values = AT_LEAST if len(at) >= AT_LEAST and scorer.apart(served, setting, at, members) else None
    return min(filter(None, (crossed, by_values)), default=None)
