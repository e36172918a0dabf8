"""Questions to an endpoint in the plan's order, until the evidence suffices."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hspi.audits import rules
from hspi.audits.answers import Answer, Names, clipped, read_answer, read_text
from hspi.audits.discovery import Ask, Capabilities
from hspi.audits.levels.agreement import Symbols
from hspi.audits.levels.level import Level
from hspi.audits.levels.scorer import Evidence, Scorer
from hspi.audits.material import Material, Probe
from hspi.audits.plan import Plan
from hspi.audits.rules import Findings
from hspi.client import Invalid, Question, Refused
from hspi.evidence.observation import Observation

NOT_THIS = (400, 413, 422)  # HTTP: this question is refused, others may not be

T = TypeVar("T")

Read = Callable[[dict[str, Any]], Answer]


def reader(cap: Capabilities, names: Names, symbols: Symbols) -> Read:
    """From a reply's object to the answer in it; raises ValueError."""
    if cap.form is not None and cap.form.top == 0:
        return lambda data: read_text(data, symbols.read)
    least = 1 if cap.form is None else min(cap.form.top, cap.top_k)
    return lambda data: read_answer(data, names, least)


async def gather(level: Level, plan: Plan, read: Read, ask: Ask) -> Findings:
    """The answers to the plan's probes, each read, scored and held against what suffices."""
    findings, material, form = Findings(), level.material, plan.capabilities.form
    if form is None:
        return findings
    evidence = None if level.scorer is None else level.scorer.start()
    judge = _Judge(material, level.offer.k, level.scorer, evidence, findings)

    def question(probe: Probe) -> Question:
        body = form.body(material.settings.served, probe.ids, probe.text)
        return Question(f"probe-{probe.set}-{probe.id}", form.route, body)

    async def answer(probe: Probe) -> Answer | str:
        try:
            return read((await ask(question(probe), lambda reply: read(reply.data))).data)
        except Refused as error:
            if error.status not in NOT_THIS:
                raise
            return str(error)
        except Invalid as error:
            return str(error)

    jobs = [lambda p=p: answer(p) for p in plan.probes]

    def see(at: int, found: Answer | str) -> bool:
        findings.names.append(question(plan.probes[at]).name)
        return judge.see(plan.probes[at], found)

    await in_order(jobs, material.settings.window, see)
    return findings


@dataclass(slots=True)
class _Judge:
    """Feeds answers to the evidence, in the plan's order, and says when it suffices."""

    material: Material
    k: int
    scorer: Scorer | None
    evidence: Evidence | None
    findings: Findings
    _parted_at: int | None = field(default=None)

    def see(self, probe: Probe, found: Answer | str) -> bool:
        """Returns whether to stop."""
        f, settings = self.findings, self.material.settings
        if isinstance(found, str):
            f.unusable.append(found)
            return False
        ids, logprobs = clipped(found, self.k)
        seen = Observation(settings.model, [(probe.set, probe.id)], ids[None], logprobs[None])
        f.add(probe, found, seen)
        if self.scorer is None or self.evidence is None:
            return False  # this level has a fixed number of probes
        f.scores.append(self.scorer.scores(seen)[..., 0])
        f.processes.append(self.evidence.add(f.scores[-1]))
        claimed = self.material.claimed
        left = rules.left(self.scorer, f, settings.alpha)
        may_be = claimed.classes if claimed else ()
        parted = len(left) <= 1 or set(left) <= set(may_be)
        self._parted_at = (self._parted_at or len(f.processes)) if parted else None
        enough = rules.enough(f, may_be, settings.alpha, self._parted_at)
        return enough and not (claimed and rules.format_is_to_tell(self.scorer, f, claimed, left))


async def in_order(jobs: Sequence[Callable[[], Awaitable[T]]], window: int, see: Callable[[int, T], bool]) -> list[T]:
    """Results in order. At most `window` jobs run ahead of what `see(index, result)` has passed.

    Once `see` returns True no further job starts; those that run are awaited and seen too. Which jobs run depends on
    the results alone, never on their timing.
    """
    running: deque[asyncio.Task[T]] = deque()
    results: list[T] = []
    started, stop = 0, False
    try:
        while True:
            while not stop and started < len(jobs) and len(running) < window:
                running.append(asyncio.ensure_future(jobs[started]()))  # type: ignore[arg-type]
                started += 1
            if not running:
                return results
            results.append(await running[0])
            running.popleft()
            stop = see(len(results) - 1, results[-1]) or stop
    finally:
        if running:  # an error: what is under way may still be answered, and paid for
            await asyncio.gather(*running, return_exceptions=True)
