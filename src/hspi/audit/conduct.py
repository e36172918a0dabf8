"""An audit from its first question to its verdict. The same code runs live, after a kill, and on a sealed detector:
only where answers come from differs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hspi.audit import material as materials
from hspi.audit import page
from hspi.audit.agreement import Symbols
from hspi.audit.answers import Answer, Names, clipped, read_answer, read_text
from hspi.audit.conclude import Findings, conclude
from hspi.audit.discovery import Ask, Capabilities, discover
from hspi.audit.format_verdict import conclude_formats
from hspi.audit.levels import TOP_K, Level, choose_level, make_scorer
from hspi.audit.material import Material, Probe
from hspi.audit.plan import Plan, make_plan
from hspi.audit.records import Records, check_seal, is_sealed, seal
from hspi.audit.scoring import Evidence, Scorer
from hspi.client import Endpoint, Invalid, Question
from hspi.detectors.virtual_families import Families
from hspi.errors import ConfigError, DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.observation import Observation
from hspi.files import read_json, write_json, write_text
from hspi.verdict import Verdict

AFTER_CONTRADICTION = 16  # answers more, in the hope of naming what serves instead
AT_LEAST = 24  # answers before a class may be named, so that what is in no library has time to show

Say = Callable[[str], object]
T = TypeVar("T")


async def audit(
    material: Material,
    endpoint: Endpoint | None,
    folder: Path,
    say: Say,
    *,
    dry_run: bool = False,
    cache: Path | None = None,
    refer: Refer | None = None,
) -> tuple[Plan, Verdict | None]:
    """Ask, judge, write the detector. Without an endpoint the answers in `folder` must suffice.

    cache: a folder where the candidates' own scores are kept from audit to audit; refer: makes the reference that the
    residual level needs, where the folder holds none.

    Raises EndpointError when a question stays unanswered; what was answered is kept, and the same call goes on.
    """
    with Records(folder, endpoint) as records:
        names, symbols = Names(material.vocabulary), Symbols(material.vocabulary, material.special)
        prompts = [(p.ids, p.text) for p in material.warm_up]
        cap = await discover(records.ask, material.settings.served, prompts, names, symbols.read)
        level = choose_level(cap, material)
        scorer = make_scorer(level, cap, material, cache)
        plan = make_plan(material, cap, level, scorer)
        for line in plan.lines():
            say(line)
        if dry_run:
            return plan, None
        reference = _reference(folder, plan, level, refer)
        findings = await _findings(material, plan, scorer, _reader(cap, names, symbols), records.ask)
        if level.kind in ("residual", "distribution"):
            found = conclude_formats(material, plan, findings, reference)
        else:
            found = conclude(material, plan, scorer, findings)
        if endpoint is not None and not is_sealed(folder):
            records.finish([*_discovery_names(records), *findings.names])
            write_json(folder / "plan.json", plan.to_dict())
            write_json(folder / "verdict.json", found.to_dict())
            page.write(folder / "report.html", plan, found, material)
            seal(folder)
    return plan, found


Refer = Callable[[Sequence[Probe], Sequence[Sequence[int]]], Aligned]
"""Probes and the contexts that reach the model → their reference, as `formats.refer` makes it."""


def open_folder(folder: Path, material: Callable[[], Material], settings: materials.Settings) -> Material:
    """The material in the folder if it is of these settings, else that of `material`, saved there.

    Raises ConfigError if the folder holds another audit, DataError if a sealed one was changed.
    """
    if is_sealed(folder):
        check_seal(folder)
    if (folder / "settings.json").exists():
        found = materials.read_settings(folder)
        if found != settings:
            raise ConfigError(f"{folder} must hold no other audit, but it holds one of {found.served!r}: name another")
        if (folder / READY).exists():
            return materials.load(folder)
    elif folder.exists() and any(not f.name.endswith(".tmp") for f in folder.iterdir()):
        raise ConfigError(f"{folder} must be empty or hold this audit, but it does not")
    made = material()
    materials.save(made, folder)
    write_text(folder / READY, "")
    return materials.load(folder)


REFERENCE = "reference.safetensors"
READY = "ready"  # stands once the material is whole


def replay(folder: Path, say: Say) -> tuple[Plan, Verdict]:
    """Score a sealed detector again, offline. Raises DataError if a byte changed or the verdict would be another."""
    check_seal(folder)
    plan, conclusion = asyncio.run(audit(materials.load(folder), None, folder, say))
    assert conclusion is not None
    if not conclusion.agrees_with(read_json(folder / "verdict.json")):
        raise DataError(f"{folder} must score to its verdict again, but it does not with these versions")
    return plan, conclusion


# ---------------------------------------------------------------- parts


def _reference(folder: Path, plan: Plan, level: Level, refer: Refer | None) -> Aligned | None:
    """Of the plan's probes at the residual level: the one in the folder, else made and put there."""
    if level.kind != "residual" or not plan.probes:
        return None
    path = folder / REFERENCE
    if not path.exists():
        if refer is None:
            raise DataError(f"{path} must hold the reference of these weights, but it is missing")
        contexts = [p.variants[level.context] if level.context else p.ids for p in plan.probes]
        refer(plan.probes, contexts).save(path)
    return Aligned.load(path)


Read = Callable[[dict[str, Any]], Answer]


def _reader(cap: Capabilities, names: Names, symbols: Symbols) -> Read:
    """From a reply's object to the answer in it; raises ValueError."""
    if cap.form is not None and cap.form.top == 0:
        return lambda data: read_text(data, symbols.read)
    least = 1 if cap.form is None else min(cap.form.top, cap.top_k)
    return lambda data: read_answer(data, names, least)


def _discovery_names(records: Records) -> list[str]:
    return sorted(name for name in records.rows if name.startswith("discover-"))


async def _findings(material: Material, plan: Plan, scorer: Scorer | None, read: Read, ask: Ask) -> Findings:
    findings = Findings()
    form = plan.capabilities.form
    if form is None:
        return findings
    k = min(TOP_K, plan.capabilities.top_k)
    judge = _Judge(material, k, scorer, None if scorer is None else scorer.start(), findings)

    def question(probe: Probe) -> Question:
        body = form.body(material.settings.served, probe.ids, probe.text)
        return Question(f"probe-{probe.set}-{probe.id}", form.route, body)

    async def answer(probe: Probe) -> Answer | str:
        try:
            return read((await ask(question(probe), lambda reply: read(reply.data))).data)
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
        f = self.findings
        if isinstance(found, str):
            f.unusable.append(found)
            return False
        ids, logprobs = clipped(found, self.k)
        seen = Observation(self.material.settings.model, [(probe.set, probe.id)], ids[None], logprobs[None])
        f.add(probe, found, seen)
        if self.scorer is None or self.evidence is None:
            return False  # this level has a fixed number of probes
        f.scores.append(self.scorer.scores(seen)[..., 0])
        f.processes.append(self.evidence.add(f.scores[-1]))
        return self.enough(self.scorer.told)

    def enough(self, told: Families) -> bool:
        settings = self.material.settings
        t = len(self.findings.processes)
        out = self.findings.excluded(settings.alpha)
        if settings.claim is not None:
            crossed = self.findings.crossed(told.index(settings.claim), settings.alpha)
            if crossed is not None and t >= crossed + AFTER_CONTRADICTION:
                return True
        if out.sum() < told.count - 1:
            return False
        self._parted_at = self._parted_at or t
        return bool(out.all()) or t >= max(AT_LEAST, 2 * self._parted_at)


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
