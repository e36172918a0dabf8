"""The level that is left where nothing can be judged: it says why."""

from __future__ import annotations

from typing import ClassVar, Self

from hspi.audits import rules
from hspi.audits.levels.level import Level, Offer
from hspi.audits.plan import Plan
from hspi.audits.rules import Findings
from hspi.verdict import Verdict


class Nothing(Level):
    """Needs nothing, asks nothing, and ends inconclusive with the reason."""

    kind: ClassVar[str] = "none"
    limits: ClassVar[str] = "Nothing."
    most: ClassVar[int | None] = 0

    @classmethod
    def of(cls, offer: Offer) -> Self:
        return cls(offer, _reason(offer))

    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        return rules.inconclusive(self.material, plan, found, plan.why or "no probe was asked", rules.EXACT)


def _reason(offer: Offer) -> str:
    cap, no = offer.cap, "no log-probabilities come"
    if cap.form is None:
        return f"neither log-probabilities nor text come ({'; '.join(cap.remarks)})"
    if cap.foreign:
        return f"{cap.foreign} tokens are not in the model's vocabulary: another tokenizer serves"
    if cap.form.top:
        return f"{offer.numbers} are rounded to {cap.decimals} decimals, and {offer.lacks}"
    if not cap.greedy:
        return f"{no}, and one question got several answers: it does not answer greedily"
    if not offer.signatures:
        return f"{no}, and no candidate has signatures of these weights"
    if offer.context == "":
        return f"{no}, and {offer.lacks}"
    return f"{no}, and {offer.around}, which no signature has"
