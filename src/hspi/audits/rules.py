"""From what was found to what is said, and what is left unsaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.audits.answers import Answer
from hspi.audits.levels.scorer import AT_LEAST, FITS, Scorer
from hspi.audits.material import Material, Probe
from hspi.audits.plan import Plan
from hspi.detectors.detector import NO_GROUND
from hspi.detectors.grounds import not_tested
from hspi.detectors.virtual_families import Claimed
from hspi.evidence.observation import Observation
from hspi.verdict import UNKNOWN, Verdict

AFTER_CONTRADICTION = 16  # answers more, in the hope of naming what serves instead
STRETCH = 24  # answers in a row that are looked at alone, in search of a change of platform
TOO_MANY = 0.1  # share of answers that may be unusable before nothing is concluded


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

    def crossed(self, labels: Sequence[int], alpha: float) -> int | None:
        """After how many answers the last of these classes was excluded; None while one is not, or without any."""
        if not labels:
            return None
        highest = np.maximum.accumulate(np.asarray(self.processes)[:, list(labels)], axis=0).min(axis=1)
        reached = np.flatnonzero(highest >= -np.log(alpha))
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


def enough(found: Findings, claimed: Sequence[int], alpha: float, parted_at: int | None) -> bool:
    """Whether no answer more is needed. claimed: the classes that the claim may mean, if any; parted_at: after how many
    answers one class at most was left, or those claimed alone, if it was."""
    t = len(found.processes)
    if claimed:
        crossed = found.crossed(claimed, alpha)
        if crossed is not None and t >= crossed + AFTER_CONTRADICTION:
            return True
    return parted_at is not None and (bool(found.excluded(alpha).all()) or t >= max(AT_LEAST, 2 * parted_at))


def left(scorer: Scorer, found: Findings, alpha: float) -> list[int]:
    """The classes that may answer: those that are not excluded, and gave these very values where any did."""
    some = [c for c, out in enumerate(found.excluded(alpha)) if not out]
    return scorer.narrowed(found.together(), some) if len(found.seen) >= AT_LEAST and len(some) > 1 else some


def format_is_to_tell(scorer: Scorer, found: Findings, claimed: Claimed, left: Sequence[int]) -> bool:
    """Whether a claim that does not stand lacks but the answers that tell a coarser number format from its own.

    left: the classes that are not excluded.
    """
    few = len(found.seen) < scorer.tells_format_from
    if not few or claimed.format is None or set(claimed.classes) & set(left):
        return False
    return not scorer.against(found.together(), claimed, found.processes[-1])


def conclude(material: Material, plan: Plan, scorer: Scorer, found: Findings) -> Verdict:
    """At the levels that test candidates. Without an answer there is nothing to conclude from."""
    if not found.seen:
        reason = f"no answer was usable ({found.unusable[0]})" if found.unusable else "no probe was asked"
        return inconclusive(material, plan, found, reason, EXACT)
    settings, told = material.settings, scorer.told
    judged, posterior, plan_of = scorer.judge(found.together(), settings.alpha)
    may_be = left(scorer, found, settings.alpha)
    claimed = material.claimed
    outcome, why, answer = _outcome(material, scorer, found, may_be, claimed, judged)
    highest, platforms = found.highest(), scorer.data.platforms
    members = [] if answer == UNKNOWN else told.members_of(answer)
    p = float(np.exp(-max(highest[list(claimed.classes)].min(), 0.0))) if claimed and claimed.classes else None
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
        set_at=[told.names[c] for c in may_be] or [UNKNOWN],
        claim_p_value=None if p is None else _digits(p),
        log10_e={n: round(float(highest[c] / np.log(10)), 3) for c, n in enumerate(told.names)},
        tested=[platforms[i].id for i in claimed.platforms] if claimed else [],
        failed_factors=told.factors(claimed, members, platforms) if claimed and outcome == "contradicted" else {},
        not_told_apart=[list(told.members[c]) for c in may_be] if len(may_be) > 1 else [],
        to_tell_more=_advice(plan, found, outcome, may_be),
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
        "claim": None if s.claimed is None else str(s.claimed),
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
    material: Material, scorer: Scorer, found: Findings, left: list[int], claimed: Claimed | None, judged: str
) -> tuple[str, str, str]:
    """(outcome, why, answer)."""
    told, alpha = scorer.told, material.settings.alpha
    answer = told.names[left[0]] if len(left) == 1 and judged == told.names[left[0]] else UNKNOWN
    if spoilt := found.spoilt():
        return "inconclusive", spoilt, UNKNOWN
    standing = [] if claimed is None else [c for c in claimed.classes if c in left]
    if (claimed is not None and not standing) or len(left) != 1:
        served = several(scorer, found, alpha)
        if len(served) > 1 and not set(served) <= {told.names[c] for c in standing}:
            return "inconclusive", f"the endpoint changed while it was asked: {' then '.join(served)}", UNKNOWN
    if claimed is not None:
        return _of_claim(scorer, found, left, claimed, judged, alpha)
    if not left:
        return UNKNOWN, "every candidate is excluded: no platform that is known here answers so", UNKNOWN
    if len(left) > 1:
        return _not_told_apart(scorer, left, judged)
    if answer == UNKNOWN:
        return "inconclusive", _stranger(told.names[left[0]]), UNKNOWN
    return "identified", f"every other class is excluded, {answer} is not", answer


def _of_claim(
    scorer: Scorer, found: Findings, left: list[int], claimed: Claimed, judged: str, alpha: float
) -> tuple[str, str, str]:
    """What becomes of a claim: it falls where it is excluded, by its level or by another's very values, on a ground
    besides (`detectors/grounds.py`); it stands where nothing else does."""
    named, seen, claim = scorer.told.names, found.together(), claimed.claim
    answer = named[left[0]] if len(left) == 1 and judged == named[left[0]] else UNKNOWN
    standing = [c for c in claimed.classes if c in left]
    if not standing:
        ground = scorer.against(seen, claimed, np.asarray(found.processes[-1]))
        after = found.crossed(claimed.classes, alpha)
        excluded = f"{claim} is excluded after {after} answers" if after else f"{claim} gives other values"
        if ground:
            return "contradicted", f"{excluded}: {ground}" if claimed.classes else ground, answer
        if not claimed.classes:
            return "inconclusive", not_tested(str(claim), claimed.format, scorer.told_format(seen)), answer
        return "inconclusive", f"{excluded}, {NO_GROUND}", UNKNOWN
    if len(standing) < len(left):
        return _not_told_apart(scorer, left, judged)
    if judged not in [named[c] for c in left] and (len(left) == 1 or scorer.calibrated):
        return "inconclusive", _stranger(", ".join(named[c] for c in left)), UNKNOWN
    if len(left) == 1:
        return "consistent", f"the claim's class {judged} is not excluded, every other one is", judged
    return "consistent", f"{len(left)} classes that the claim may mean are not excluded, every other one is", judged


def _stranger(names: str) -> str:
    return f"{names} alone is not excluded, but the detector does not know it"


def _not_told_apart(scorer: Scorer, left: list[int], judged: str) -> tuple[str, str, str]:
    named = [scorer.told.names[c] for c in left]
    leads = scorer.calibrated and judged in named
    why = f"{len(left)} classes are not told apart: {', '.join(named[:6])}"
    return "inconclusive", why, judged if leads else UNKNOWN


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
