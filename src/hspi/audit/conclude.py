"""From what was found to what is said, and what is left unsaid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.audit.answers import Answer
from hspi.audit.material import Material, Probe
from hspi.audit.plan import Plan
from hspi.audit.scoring import Scorer
from hspi.evidence.observation import Observation
from hspi.verdict import UNKNOWN, Verdict

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion(Verdict):
    """A verdict that holds at any time of stopping, and what it took: `concluded` is its outcome (consistent,
    contradicted, identified, unknown or inconclusive), `why` a sentence.

    set_at: classes that are not excluded at level alpha. claim_p_value: least level at which the claim is excluded
    (1 / the highest E). posterior: the detector's, over all answers, not time-uniform. formats: of the levels that see
    a number format alone, the lowest posterior of each over blocks of answers.
    """

    concluded: str
    why: str
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
    def outcome(self) -> str:
        return self.concluded

    def to_dict(self) -> dict[str, Any]:
        whole = Verdict.to_dict(self)
        return {name: value for name, value in whole.items() if name != "concluded"}

    @property
    def exit_code(self) -> int:
        return {"consistent": 0, "identified": 0, "contradicted": 1}.get(self.outcome, 3)

    def lines(self) -> list[str]:
        out = [f"verdict       {self.outcome}: {self.why}", *Verdict.lines(self)]
        for factor, (said, found) in self.failed_factors.items():
            out.append(f"fails on      {factor}: claimed {said}, answers like {found}")
        if self.formats:
            best = sorted(self.formats.items(), key=lambda item: -item[1])[:3]
            out.append("formats       " + ", ".join(f"{name} {p:.4f}" for name, p in best))
        money = "" if self.cost is None else f", cost {self.cost:.4g}"
        out.append(
            f"use           {self.requests} requests, {self.prompt_tokens} prompt and {self.output_tokens} output "
            f"tokens{money}"
        )
        return [*out, f"to tell more  {self.to_tell_more}"] if self.to_tell_more else out


def conclude(material: Material, plan: Plan, scorer: Scorer | None, found: Findings) -> Conclusion:
    """At the levels that test candidates. Without a scorer, or an answer, there is nothing to conclude from."""
    if scorer is None or not found.seen:
        reason = plan.why if scorer is None else f"no answer was usable ({found.unusable[0]})" if found.unusable else ""
        return inconclusive(material, plan, found, reason or "no probe was asked", EXACT)
    settings, classes = material.settings, scorer.classes
    judged, posterior = scorer.judge(found.together(), settings.alpha)
    out = found.excluded(settings.alpha)
    left = [c for c in range(classes.count) if not out[c]]
    claimed = None if settings.claim is None else classes.label[classes.platform_ids.index(settings.claim)]
    outcome, why, answer = _outcome(material, scorer, found, left, claimed, judged)
    highest = found.highest()
    members = [] if answer == UNKNOWN else classes.members(_label(scorer, answer))
    p = None if claimed is None else float(np.exp(-max(highest[claimed], 0.0)))
    return conclusion(
        material,
        plan,
        found,
        concluded=outcome,
        why=why,
        answer=answer,
        members=members,
        posterior={name: round(value, 6) for name, value in posterior.items()},
        set_at=[classes.name(c) for c in left] or [UNKNOWN],
        claim_p_value=None if p is None else _digits(p),
        log10_e={classes.name(c): round(float(highest[c] / np.log(10)), 3) for c in range(classes.count)},
        failed_factors=_factors(scorer, settings.claim, members) if outcome == "contradicted" else {},
        not_told_apart=[classes.members(c) for c in left] if len(left) > 1 else [],
        to_tell_more=_advice(plan, found, outcome, left),
    )


EXACT = "an endpoint with exact top log-probabilities, best on /v1/completions with token ids as prompt"


def inconclusive(material: Material, plan: Plan, found: Findings, why: str, more: str) -> Conclusion:
    return conclusion(material, plan, found, concluded="inconclusive", why=why, to_tell_more=more)


def conclusion(material: Material, plan: Plan, found: Findings, **said: Any) -> Conclusion:
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
    return Conclusion(**whole)


def _outcome(
    material: Material, scorer: Scorer, found: Findings, left: list[int], claimed: int | None, judged: str
) -> tuple[str, str, str]:
    """(outcome, why, answer)."""
    classes, alpha = scorer.classes, material.settings.alpha
    answer = classes.name(left[0]) if len(left) == 1 and judged == classes.name(left[0]) else UNKNOWN
    if spoilt := found.spoilt():
        return "inconclusive", spoilt, UNKNOWN
    if (claimed is not None and claimed not in left) or len(left) != 1:
        served = several(scorer, found, alpha)
        if len(served) > 1:
            return "inconclusive", f"the endpoint changed while it was asked: {' then '.join(served)}", UNKNOWN
    if claimed is not None and claimed not in left:
        if not scorer.calibrated and not any(found.processes[-1][c] < FITS for c in left):
            return "inconclusive", f"no candidate answers so, {material.settings.claim} among them", UNKNOWN
        if answer == UNKNOWN and scorer.bundle.any_plan(scorer.model, material.settings.claim):
            why = f"{material.settings.claim} is excluded, and so is every kernel plan that is known: another may serve"
            return "inconclusive", why, UNKNOWN
        if scorer.hardly_differs(found.together(), claimed):
            why = (
                "is excluded, yet no other class is nearly as near: a setting that nobody collected, or a close variant"
            )
            return "inconclusive", f"{material.settings.claim} {why}", UNKNOWN
        told = f"it answers like {answer}" if answer != UNKNOWN else "and it answers like no single candidate"
        after = found.crossed(claimed, alpha)
        return "contradicted", f"{material.settings.claim} is excluded after {after} answers; {told}", answer
    if not left:
        return UNKNOWN, "every candidate is excluded: no platform that is known here answers so", UNKNOWN
    if len(left) > 1:
        names = ", ".join(classes.name(c) for c in left[:6])
        leads = scorer.calibrated and judged in [classes.name(c) for c in left]
        best = judged if leads else UNKNOWN
        return "inconclusive", f"{len(left)} classes are not told apart: {names}", best
    if answer == UNKNOWN:
        return (
            "inconclusive",
            f"{classes.name(left[0])} alone is not excluded, but the detector does not know it",
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
        highest = np.full(scorer.classes.count, -np.inf)
        for scores in found.scores[start : start + STRETCH]:
            log = evidence.add(scores)
            highest = np.maximum(highest, log)
            left = np.flatnonzero(highest < -np.log(alpha))
            if len(left) == 1 and log[left[0]] < FITS:
                name = scorer.classes.name(int(left[0]))
                out += [name] * (name not in out)
                break
    return out


def _label(scorer: Scorer, name: str) -> int:
    return next(c for c in range(scorer.classes.count) if scorer.classes.name(c) == name)


def _factors(scorer: Scorer, claim: str | None, members: list[str]) -> dict[str, list[str]]:
    """What the claim and every member of the found class differ in: {factor: [claimed, found]}."""
    by_id = {p.id: p for p in scorer.data.platforms}
    if claim is None or not members:
        return {}
    out = {}
    for factor in FACTORS:
        said = str(getattr(by_id[claim], factor))
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
