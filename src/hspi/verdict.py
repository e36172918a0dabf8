"""What is said in the end, of an endpoint and of a file alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from hspi.errors import Exit

UNKNOWN = "unknown"
EXITS = {
    "consistent": Exit.DONE,
    "identified": Exit.DONE,
    "contradicted": Exit.CONTRADICTED,
    "inconclusive": Exit.UNDECIDED,
    UNKNOWN: Exit.UNDECIDED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """outcome: consistent, contradicted or inconclusive (of the claim); without one identified, unknown or
    inconclusive. why: a sentence, empty where the outcome says it all.

    Classes are named alike everywhere: an equivalence class by its first member, the kernel plans of one arithmetic
    family of virtual GPUs together by the family. `answer` is such a name or "unknown", `members` its platforms,
    `nearest` the platform in it that scored best and `plan` a virtual GPU's kernel plan there ("" for others).

    batch_class: of `nearest`, the one that answers alike, with its batch sizes. tested: the platforms that were tested
    of those that the claim may mean; none where no candidate is what is claimed.

    set_at: classes that are not excluded at level alpha; p_values: of a file, by class. claim_p_value: of an audit the
    least level at which the claim is excluded (1 / the highest E), at any time of stopping; of a file the conformal
    p-value. posterior: the detector's, over all answers together. log10_e: the highest evidence against each class;
    formats: of the levels that see a number format alone, the lowest posterior of each over blocks of answers.
    """

    outcome: str
    why: str = ""
    answer: str = UNKNOWN
    members: list[str] = field(default_factory=list)
    posterior: dict[str, float] = field(default_factory=dict)
    set_at: list[str] = field(default_factory=list)
    p_values: dict[str, float] = field(default_factory=dict)
    alpha: float
    claim: str | None = None
    claim_p_value: float | None = None
    tested: list[str] = field(default_factory=list)
    level: str
    probes: int
    top_k: int
    model: str
    nearest: str = ""
    plan: str = ""
    batch_class: str = ""
    log10_e: dict[str, float] = field(default_factory=dict)
    failed_factors: dict[str, list[str]] = field(default_factory=dict)
    not_told_apart: list[list[str]] = field(default_factory=list)
    formats: dict[str, float] = field(default_factory=dict)
    to_tell_more: str = ""
    requests: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None

    @property
    def exit_code(self) -> Exit:
        return EXITS[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differs(self, sealed: dict[str, Any]) -> list[str]:
        """The fields in which it says other than a verdict that was written down, by this version or by one before."""
        said = self.to_dict()
        return [name for name, value in sealed.items() if name not in RETIRED and said.get(name) != value]

    def lines(self) -> list[str]:
        """For people."""
        out = [f"verdict       {self.outcome}: {self.why}"] if self.why else []
        if self.posterior or self.set_at:
            parts = {"plan": self.plan, "batch class": self.batch_class}
            more = [f"{name} {value}" for name, value in parts.items() if value]
            out.append(", ".join([f"answer        {self.answer}  ({self.outcome})", *more]))
        if len(self.members) > 1:
            out.append(f"one class     {', '.join(self.members)}: these probes cannot tell them apart")
        if self.posterior:
            out.append("posterior     " + _highest(self.posterior, 4))
        if self.set_at:
            out.append(f"set at {1 - self.alpha:<6g} " + ", ".join(self.set_at))
        if self.claim is not None and len(self.tested) != 1:
            out.append(f"tested        {', '.join(self.tested) or 'no candidate is what is claimed'}")
        if self.claim_p_value is not None:
            out.append(f"claim         {self.claim}: p = {self.claim_p_value:.4g} (alpha {self.alpha:g})")
        out.append(f"evidence      {self.level}, model {self.model}, {self.probes} tokens × top-{self.top_k}")
        for factor, (said, found) in self.failed_factors.items():
            out.append(f"fails on      {factor}: claimed {said}, answers like {found}")
        if self.formats:
            out.append("formats       " + _highest(self.formats, 3))
        return [*out, *self._use(), *([f"to tell more  {self.to_tell_more}"] if self.to_tell_more else [])]

    def _use(self) -> list[str]:
        if not self.requests:
            return []
        tokens = f"{self.prompt_tokens} prompt and {self.output_tokens} output tokens"
        money = "" if self.cost is None else f", cost {self.cost:.4g}"
        return [f"use           {self.requests} requests, {tokens}{money}"]


RETIRED = ("any_plan",)  # in verdicts of earlier versions; it said what the library says


def _highest(shares: dict[str, float], count: int) -> str:
    best = sorted(shares.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {p:.4f}" for name, p in best)
