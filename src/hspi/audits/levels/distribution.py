"""The distribution level: exact log-probabilities among tokens that nobody knows, or of weights that nobody has."""

from __future__ import annotations

from typing import ClassVar, Self

from hspi.audits import rules
from hspi.audits.levels.level import Level, Offer
from hspi.audits.levels.residual import PROBES, unfit
from hspi.audits.plan import Plan
from hspi.audits.rules import EXACT, Findings
from hspi.detectors.number_format import lean
from hspi.verdict import Verdict


class Distribution(Level):
    """What the answers' own grid suggests; no detector is trained on it, so nothing is concluded."""

    kind: ClassVar[str] = "distribution"
    limits: ClassVar[str] = "Nothing that is concluded; a lean alone."
    most: ClassVar[int | None] = PROBES

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        if not offer.top or offer.cap.decimals is not None:
            return None
        if offer.context is None:
            why = f"{offer.numbers}, but {offer.around}, which the model's tokenizer does not explain"
        else:
            why = f"{offer.numbers}, but the weights are not at hand"
        return cls(offer, why)

    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        if said := unfit(found):
            return rules.inconclusive(self.material, plan, found, *said)
        why = f"no detector is trained on this level; {lean(found.together())}"
        return rules.inconclusive(self.material, plan, found, why, EXACT)
