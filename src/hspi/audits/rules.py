"""From what was found to what is said, and what is left unsaid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.audits.answers import Answer
from hspi.audits.levels.scorer import Scorer
from hspi.audits.material import Material, Probe
from hspi.audits.plan import Plan
from hspi.detectors.virtual_families import Families
from hspi.evidence.observation import Observation
from hspi.verdict import UNKNOWN, Verdict

AFTER_CONTRADICTION = 16  # answers more, in the hope of naming what serves instead
AT_LEAST = 24  # answers before a class may be named, so that what is in no library has time to show
STRETCH = 24  # answers in a row that are looked at alone, in search of a change of platform
FITS = np.log(2.0)  # evidence against a class below which it fits a stretch
TOO_MANY = 0.1  # share of answers that may be unusable before nothing is concluded
FACTORS = ("hardware", "engine", "dtype", "quantization", "isa_cap", "attention", "compile", "kv_cache")


@dataclass(slots=True)
class Findings:
    """Answers in the plan's order: what was seen and, where candidates are tested, its scores (VIEWS, C, S) and ln E
    against each class after it.
    """

    names: list[str] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)
    scores: list[npt.NDArray[np.float32]] = field(default_factory=list)
    processes: list[npt.NDArray[np.float64]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    foreign: int = 0

    def add(self, probe: Probe, answer: Answer, seen: Observation) -> None:
        self.seen.append(seen)
        self.prompt_tokens += len(probe.ids) if answer.prompt_tokens is None else answer.prompt_tokens
        self.output_tokens += 1 if answer.completion_tokens is None else answer.completion_tokens
        self.foreign += answer.foreign

    def highest(self) -> npt.NDArray[np.float64]:
        """The most that ln E has reached against each class: (classes,)."""
        return np.max(self.processes, axis=0)

    def excluded(self, alpha: float) -> npt.NDArray[np.bool_]:
        return np.asarray(self.highest() >= -np.log(alpha))

    def crossed(self, label: int, alpha: float) -> int | None:
        """After how many answers the class was excluded."""
        reached = np.flatnonzero(np.asarray(self.processes)[:, label] >= -np.log(alpha))
        return int(reached[0]) + 1 if len(reached) else None

    def spoilt(self) -> str:
        """Why nothing may be concluded from such answers; empty where one may."""
        total = len(self.seen) + len(self.unusable)
        if len(self.unusable) > TOO_MANY * total:
            return f"{len(self.unusable)} of {total} answers were unusable ({self.unusable[0]})"
        return f"{self.foreign} tokens are not in the model's vocabulary" if self.foreign else ""

    def together(self) -> Observation:
        """All usable answers as one observation."""
        probes = [p for part in self.seen for p in part.probes]
        ids, logprobs = (np.concatenate([getattr(part, n) for part in self.seen]) for n in ("ids", "logprobs"))
        return Observation(self.seen[0].model, probes, ids, logprobs)


def enough(found: Findings, told: Families, claim: str | None, alpha: float, parted_at: int | None) -> bool:
    """Whether no answer more is needed. parted_at: after how many answers one class at most was left, if it was."""
    t = len(found.processes)
    if claim is not None:
        crossed = found.crossed(told.index(claim), alpha)
        if crossed is not None and t >= crossed + AFTER_CONTRADICTION:
            return True
    return parted_at is not None and (bool(found.excluded(alpha).all()) or t >= max(AT_LEAST, 2 * parted_at))


def conclude(material: Material, plan: Plan, scorer: Scorer, found: Findings) -> Verdict:
    """At the levels that test candidates. Without an answer there is nothing to conclude from."""
    if not found.seen:
        reason = f"no answer was usable ({found.unusable[0]})" if found.unusable else "no probe was asked"
        return inconclusive(material, plan, found, reason, EXACT)
    settings, told = material.settings, scorer.told
    judged, posterior, plan_of = scorer.judge(found.together(), settings.alpha)
    out = found.excluded(settings.alpha)
    left = [c for c in range(told.count) if not out[c]]
    claimed = None if settings.claim is None else told.index(settings.claim)
    outcome, why, answer = _outcome(material, scorer, found, left, claimed, judged)
    highest = found.highest()
    members = [] if answer == UNKNOWN else told.members_of(answer)
    p = None if claimed is None else float(np.exp(-max(highest[claimed], 0.0)))
    return conclusion(
        material,
        plan,
        found,
        outcome=outcome,
        why=why,
        answer=answer,
        members=members,
        plan=plan_of if answer != UNKNOWN else "",
        posterior={name: round(value, 6) for name, value in posterior.items()},
        set_at=[told.names[c] for c in left] or [UNKNOWN],
        claim_p_value=None if p is None else _digits(p),
        log10_e={n: round(float(highest[c] / np.log(10)), 3) for c, n in enumerate(told.names)},
        failed_factors=_factors(scorer, settings.claim, members) if outcome == "contradicted" else {},
        not_told_apart=[list(told.members[c]) for c in left] if len(left) > 1 else [],
        to_tell_more=_advice(plan, found, outcome, left),
    )


EXACT = "an endpoint with exact top log-probabilities, best on /v1/completions with token ids as prompt"


def inconclusive(material: Material, plan: Plan, found: Findings, why: str, more: str) -> Verdict:
    return conclusion(material, plan, found, outcome="inconclusive", why=why, to_tell_more=more)


def conclusion(material: Material, plan: Plan, found: Findings, /, **said: Any) -> Verdict:
    s, tokens = material.settings, found.prompt_tokens + found.output_tokens
    whole: dict[str, Any] = {
        "answer": UNKNOWN,
        "members": [],
        "posterior": {},
        "set_at": [],
        "claim_p_value": None,
        **said,
        "alpha": s.alpha,
        "claim": s.claim,
        "level": plan.level,
        "probes": len(found.seen),
        "top_k": found.seen[0].ids.shape[1] if found.seen else plan.capabilities.top_k,
        "model": s.model,
        "requests": len(found.names),
        "unusable": len(found.unusable),
        "prompt_tokens": found.prompt_tokens,
        "output_tokens": found.output_tokens,
        "cost": None if s.price is None else _digits(tokens * s.price / 1e6),
    }
    return Verdict(**whole)


def _outcome(
    material: Material, scorer: Scorer, found: Findings, left: list[int], claimed: int | None, judged: str
) -> tuple[str, str, str]:
    """(outcome, why, answer)."""
    told, alpha = scorer.told, material.settings.alpha
    answer = told.names[left[0]] if len(left) == 1 and judged == told.names[left[0]] else UNKNOWN
    if spoilt := found.spoilt():
        return "inconclusive", spoilt, UNKNOWN
    if (claimed is not None and claimed not in left) or len(left) != 1:
        served = several(scorer, found, alpha)
        if len(served) > 1:
            return "inconclusive", f"the endpoint changed while it was asked: {' then '.join(served)}", UNKNOWN
    if claimed is not None and claimed not in left:
        if not scorer.calibrated and not any(found.processes[-1][c] < FITS for c in left):
            return "inconclusive", f"no candidate answers so, {material.settings.claim} among them", UNKNOWN
        if answer == UNKNOWN and told.open_ended[claimed]:
            why = f"{material.settings.claim} is excluded, and so is every kernel plan that is known: another may serve"
            return "inconclusive", why, UNKNOWN
        if scorer.hardly_differs(found.together(), claimed):
            why = (
                "is excluded, yet no other class is nearly as near: a setting that nobody collected, or a close variant"
            )
            return "inconclusive", f"{material.settings.claim} {why}", UNKNOWN
        like = f"it answers like {answer}" if answer != UNKNOWN else "and it answers like no single candidate"
        after = found.crossed(claimed, alpha)
        return "contradicted", f"{material.settings.claim} is excluded after {after} answers; {like}", answer
    if not left:
        return UNKNOWN, "every candidate is excluded: no platform that is known here answers so", UNKNOWN
    if len(left) > 1:
        names = ", ".join(told.names[c] for c in left[:6])
        leads = scorer.calibrated and judged in [told.names[c] for c in left]
        best = judged if leads else UNKNOWN
        return "inconclusive", f"{len(left)} classes are not told apart: {names}", best
    if answer == UNKNOWN:
        return (
            "inconclusive",
            f"{told.names[left[0]]} alone is not excluded, but the detector does not know it",
            answer,
        )
    if claimed is None:
        return "identified", f"every other class is excluded, {answer} is not", answer
    return "consistent", f"the claim's class {answer} is not excluded, every other one is", answer


def several(scorer: Scorer, found: Findings, alpha: float) -> list[str]:
    """The classes that stretches of at most STRETCH answers each identify by themselves, in order of appearance.

    A stretch identifies the class that it fits when it excludes every other one.
    """
    out: list[str] = []
    for start in range(len(found.scores)):
        evidence = scorer.start()
        highest = np.full(scorer.told.count, -np.inf)
        for scores in found.scores[start : start + STRETCH]:
            log = evidence.add(scores)
            highest = np.maximum(highest, log)
            left = np.flatnonzero(highest < -np.log(alpha))
            if len(left) == 1 and log[left[0]] < FITS:
                name = scorer.told.names[left[0]]
                out += [name] * (name not in out)
                break
    return out


def _factors(scorer: Scorer, claim: str | None, members: list[str]) -> dict[str, list[str]]:
    """What the claim and every member of the found class differ in: {factor: [claimed, found]}."""
    by_id = {p.id: p for p in scorer.data.platforms}
    if claim is None or not members:
        return {}
    claimed = [claim] if claim in by_id else scorer.told.members_of(claim)
    out = {}
    for factor in FACTORS:
        said = " or ".join(sorted({str(getattr(by_id[c], factor)) for c in claimed}))
        theirs = sorted({str(getattr(by_id[m], factor)) for m in members})
        if said not in theirs:
            out[factor] = [said, " or ".join(theirs)]
    return out


def _advice(plan: Plan, found: Findings, outcome: str, left: list[int]) -> str:
    if outcome == "inconclusive" and len(left) > 1:
        asked = len(found.names)
        if asked < len(plan.probes):
            return "ask again"
        return "raise --max-tokens, or collect signatures on more probes (params.yaml) for these classes"
    if outcome == UNKNOWN or (outcome == "contradicted" and not left):
        return (
            "collect signatures of further platforms (`hspi collect`), or check that the endpoint serves these weights"
        )
    if outcome == "inconclusive":
        return "audit again; if it stays so, ask the provider what stands behind this URL"
    return ""


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
