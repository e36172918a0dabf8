"""From scores of candidates to a verdict: posterior over classes, the set at 1−α, the p-value of a claim.

The scores are log-odds that observation and candidate are one platform. They are calibrated on samples whose truth is
known, under settings and probes that the detector was not fitted on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hspi.detectors.calibration import Calibration, Floats
from hspi.errors import DataError

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said in the end, with what it rests on. `answer` is the name of a class or of a virtual family, or
    "unknown"; `nearest` the class that scored best in it, and `plan` a virtual GPU's kernel plan there ("" for others).

    any_plan: the claim is a virtual GPU's. No library holds every kernel plan, so that such a claim falls to another
    known class alone, and never for being unlike each plan that is known.
    """

    answer: str
    members: list[str]
    posterior: dict[str, float]
    set_at: list[str]
    alpha: float
    claim: str | None
    claim_p_value: float | None
    level: str
    probes: int
    top_k: int
    model: str
    nearest: str = ""
    plan: str = ""
    any_plan: bool = False

    @property
    def outcome(self) -> str:
        """consistent | contradicted | inconclusive (of the claim), or identified | unknown without one."""
        if self.claim is None:
            if self.answer == UNKNOWN:
                return UNKNOWN
            return "identified" if len(self.set_at) == 1 else "inconclusive"
        assert self.claim_p_value is not None
        if self.claim_p_value <= self.alpha:
            return "inconclusive" if self.any_plan and self.answer == UNKNOWN else "contradicted"
        return "consistent" if self.claim in self.members else "inconclusive"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome}

    def lines(self) -> list[str]:
        """For people."""
        out = []
        if self.posterior or self.set_at:
            out.append(f"answer        {self.answer}  ({self.outcome})")
        if len(self.members) > 1:
            out.append(f"one class     {', '.join(self.members)}: these probes cannot tell them apart")
        if self.posterior:
            best = sorted(self.posterior.items(), key=lambda item: -item[1])[:4]
            out.append("posterior     " + ", ".join(f"{name} {p:.4f}" for name, p in best))
        if self.set_at:
            out.append(f"set at {1 - self.alpha:<6g} " + ", ".join(self.set_at))
        if self.claim_p_value is not None:
            out.append(f"claim         {self.claim}: p = {self.claim_p_value:.4g} (alpha {self.alpha:g})")
        return [*out, f"evidence      {self.level}, model {self.model}, {self.probes} tokens × top-{self.top_k}"]


def decide(
    class_scores: Floats,
    names: list[str],
    members: list[list[str]],
    calibration: Calibration,
    *,
    probes: int,
    top_k: int,
    model: str,
    level: str = "replay",
    alpha: float = 0.01,
    claim: str | None = None,
) -> Verdict:
    """Verdict for one observation: class_scores (K,), names and members by class.

    The set at 1−α holds every class whose own p-value exceeds α (conformal, so it holds the truth with 1−α whatever
    the detector); "unknown" stands in it when no class does.
    """
    post = calibration.posterior(class_scores)
    p = calibration.p_value(class_scores, probes, top_k, [f"{model}/{name}" for name in names])
    inside = [n for n, value in zip(names, p, strict=True) if value > alpha]
    best = int(np.argmax(class_scores))
    known = bool(inside) and int(np.argmax(post)) < len(names)
    claimed = None if claim is None else next((i for i, m in enumerate(members) if claim in m), None)
    if claim is not None and claimed is None:
        known_ids = ", ".join(m for some in members for m in some)
        raise DataError(f"claim must be among the candidates {known_ids}, but got {claim!r}")
    return Verdict(
        answer=names[best] if known else UNKNOWN,
        members=members[best] if known else [],
        posterior={**dict(zip(names, map(float, post[:-1]), strict=True)), UNKNOWN: float(post[-1])},
        set_at=inside or [UNKNOWN],
        alpha=alpha,
        claim=claim,
        claim_p_value=None if claimed is None else float(p[claimed]),
        level=level,
        probes=probes,
        top_k=top_k,
        model=model,
    )
