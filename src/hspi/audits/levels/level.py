"""What every level of evidence is, and what it is offered to judge from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hspi.audits import rules
from hspi.audits.discovery import Capabilities
from hspi.audits.levels.scorer import Scorer
from hspi.audits.material import CHAT, Material, Probe
from hspi.audits.plan import Plan, make_plan
from hspi.audits.rules import Findings
from hspi.evidence.aligned import Aligned
from hspi.verdict import Verdict

TOP_K = 20  # what the verifier knows best; more alternatives than this are not used

Refer = Callable[[Sequence[Probe], Sequence[Sequence[int]]], Aligned]
"""Probes and the contexts that reach the model → their reference, as `residual.refer` makes it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an endpoint gives and what is at hand to hold it against."""

    cap: Capabilities
    material: Material

    @property
    def top(self) -> int:
        """Alternatives that come with each token; 0 where text alone comes, or nothing that can be read."""
        return self.cap.form.top if self.cap.form is not None and not self.cap.foreign else 0

    @property
    def text(self) -> bool:
        """Whether greedy tokens are all that comes."""
        return self.cap.form is not None and not self.cap.foreign and self.cap.form.top == 0

    @property
    def k(self) -> int:
        return min(TOP_K, self.cap.top_k)

    @property
    def signatures(self) -> bool:
        return self.material.library is not None

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(P,): which probes of the library can be asked, as ids or as text."""
        m, form = self.material, self.cap.form
        assert form is not None and m.library is not None
        found = np.ones(len(m.library.data.probes), bool)
        found[[] if form.ids else m.inexact] = False
        return found

    @property
    def context(self) -> str | None:
        """Empty where the prompt stands alone, else the variant (`Probe.variants`) with as many tokens as the endpoint
        counts, or None where no variant explains them."""
        cap = self.cap
        assert cap.form is not None
        if cap.form.ids or cap.extra_tokens == 0:
            return ""
        first = self.material.warm_up[0]
        chat = cap.form.route == "chat/completions"
        more = {name: len(ids) - len(first.ids) for name, ids in first.variants.items() if (name == CHAT) == chat}
        fitting = [name for name, count in more.items() if count == cap.extra_tokens]
        return fitting[0] if len(fitting) == 1 else None

    @property
    def candidates(self) -> bool:
        """Whether the question is which candidate answers so, and they answered such prompts too."""
        return self.signatures and self.context == "" and self.material.settings.claim_format is None

    @property
    def numbers(self) -> str:
        return f"top-{self.cap.top_k} log-probabilities"

    @property
    def lacks(self) -> str:
        """Why signatures are not used."""
        if not self.signatures:
            return "these weights have no signatures"
        return "a number format is all that is claimed" if self.context == "" else "no signature has such prompts"

    @property
    def around(self) -> str:
        count = "an unknown number of" if self.cap.extra_tokens is None else str(self.cap.extra_tokens)
        return f"the endpoint puts {count} tokens of its own around the prompt"


class Level(ABC):
    """A way to judge answers. Levels are asked in the order of their strength whether they take what is offered.

    kind: its name in records; limits: what it can tell, a sentence or two for people; most: probes that are asked at
    most, None for all that there are. A level is made for one audit, by `of` alone.
    """

    kind: ClassVar[str]
    limits: ClassVar[str]
    most: ClassVar[int | None] = None

    def __init__(self, offer: Offer, why: str) -> None:
        self.offer, self.why = offer, why
        self.scorer: Scorer | None = None

    @property
    def name(self) -> str:
        """As plans and verdicts give it."""
        return self.kind

    @property
    def material(self) -> Material:
        return self.offer.material

    @classmethod
    @abstractmethod
    def of(cls, offer: Offer) -> Self | None:
        """The level, which says why it is the one, or None where what is offered does not suffice."""

    def open(self, cache: Path | None = None) -> None:  # noqa: B027 - most levels need nothing
        """Make ready whatever takes time, before the plan is made. cache: a folder for what serves other audits too."""

    def plan(self) -> Plan:
        """What will be asked, and what that costs and shows. After `open`."""
        return make_plan(self.material, self.offer.cap, self.name, self.why, self.most, self.scorer)

    def prepare(self, plan: Plan, folder: Path, refer: Refer | None) -> None:  # noqa: B027
        """Put into the audit's folder what conclusions need beside answers. Raises DataError if it cannot be had."""

    @abstractmethod
    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        """What may be said of the answers to the plan's probes."""


class Sequential(Level):
    """A level that tests candidates one answer at a time, and so may stop early."""

    @abstractmethod
    def make_scorer(self, cache: Path | None) -> Scorer:
        """Who scores answers."""

    def open(self, cache: Path | None = None) -> None:
        self.scorer = self.make_scorer(cache)

    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        assert self.scorer is not None, "open comes first"
        return rules.conclude(self.material, plan, self.scorer, found)
