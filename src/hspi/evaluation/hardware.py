"""A whole machine held out: its platforms named by a verifier that never saw it, and told to be unknown without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hspi.detectors.calibration import AGREES
from hspi.detectors.grounds import Grounds
from hspi.detectors.training import Bench, fit_verifier
from hspi.evaluation.measures import auroc, wilson
from hspi.evaluation.replay import Line, ReplayReport, Scored, pooled, score_dropped
from hspi.evidence.library import Library
from hspi.evidence.replay import F32, PAIR_FEATURES
from hspi.platforms.claim import Claim

FEWEST = 2  # platforms that a machine must have
PROBES = 32


def evaluate_hardware(
    benches: Sequence[Bench],
    parameters: dict[str, Any],
    report: ReplayReport,
    step: Callable[[str], object] = lambda s: None,
) -> None:
    """Adds to the report what is known of a machine that nobody trained on, and what becomes of claims that name none.

    Given its signatures, its platforms are to be named. Without them, an answer is to be called unknown, unless its
    class has a member on another machine. And no true claim that names software alone may be contradicted.
    """
    machines = sorted({p.hardware for b in benches for p in b.data.platforms})
    machines = [m for m in machines if all(_count(b, m) >= FEWEST for b in benches)]
    if len(machines) < 2:
        return
    parts, known, unknown, contradicted = [], [], [], [0, 0]
    for machine in machines:
        step(f"held-out hardware {machine}")
        dropped = {p.id for b in benches for p in b.data.platforms if p.hardware == machine}
        verifier = fit_verifier(benches, parameters=parameters, dropped=dropped)
        own = score_dropped(verifier, benches, dropped)
        parts += own
        inside, outside = [], []
        for part in own:
            inside.append(part.scores.max(axis=1))
            alone, best = _without(part, machine)
            outside.append(best[alone])
            found = _software_claims(part, machine)
            contradicted = [a + b for a, b in zip(contradicted, found, strict=True)]
        known += inside
        unknown += outside
        accuracy = pooled(own, PROBES)
        row: Line = {"hardware": machine, "question": "named, given its signatures", "value": accuracy.value}
        report.add("hardware", [row | {"ci_low": accuracy.ci_low, "ci_high": accuracy.ci_high, "n": accuracy.samples}])
        scores = np.concatenate(outside)
        if len(scores):  # else all of it computes as somebody elsewhere does
            said = float((scores < AGREES).mean())
            low, high = wilson(said * len(scores), len(scores))
            row = {"hardware": machine, "question": "said to be unknown, without them", "value": said}
            report.add("hardware", [row | {"ci_low": low, "ci_high": high, "n": len(scores)}])
    report.accuracies["replay.unseen_hardware.macro_accuracy"] = pooled(parts, PROBES)
    strangers = np.concatenate(unknown)
    if len(strangers):
        report.figures["replay.unseen_hardware.auroc"] = auroc(np.concatenate(known), strangers)
    if contradicted[1]:  # else no software is on two machines
        report.figures["claim.contradicted.other_hardware"] = contradicted[0] / contradicted[1]


def _count(bench: Bench, machine: str) -> int:
    return sum(p.hardware == machine for p in bench.data.platforms)


def _without(part: Scored, machine: str) -> tuple[np.ndarray, F32]:
    """Which samples no class of another machine answers alike, (n,), and the best score of others' classes, (n,)."""
    platforms, label = part.bench.data.platforms, part.bench.classes.label
    elsewhere = {c for c, p in zip(label, platforms, strict=True) if p.hardware != machine}
    offered = np.array([c in elsewhere for c in range(part.scores.shape[1])])
    alone = ~(part.alike & offered).any(axis=1)
    return alone, np.where(offered, part.scores, -np.inf).max(axis=1)


def _software_claims(part: Scored, machine: str) -> list[int]:
    """[contradicted, all] true claims of a machine's samples that name software alone, its signatures being unknown.

    The claim is tested on the other machines' platforms of that software; it counts as excluded whatever they score.
    """
    bench = part.bench
    grounds = Grounds.of(bench.data, bench.classes.label)
    platforms = bench.data.platforms
    elsewhere = np.array([p.hardware != machine for p in platforms])
    pairs = part.table.features[..., : len(PAIR_FEATURES)]
    full = np.full((len(pairs), len(platforms), pairs.shape[-1]), np.nan, np.float32)
    np.put_along_axis(full, part.table.who[..., None], pairs, axis=1)
    fits = grounds.fits(full, np.zeros(full.shape[:2], bool)) & elsewhere
    found = [0, 0]
    for c in np.unique(part.table.truth):
        claim = Claim(platforms[c].software)
        claimed = [i for i in claim.covers(platforms) if elsewhere[i]]
        some = part.table.truth == c
        if claimed:
            found[0] += int((fits[some] & grounds.rivals(claimed, hardware=False)).any(axis=1).sum())
            found[1] += int(some.sum())
    return found


def spans(libraries: Sequence[Library]) -> list[Line]:
    """The classes that have members on several machines, model by model."""
    rows = []
    for library in libraries:
        hardware = {p.id: p.hardware for p in library.data.platforms}
        for c in range(library.classes.count):
            members = library.classes.members(c)
            machines = sorted({hardware[m] for m in members})
            if len(machines) > 1:
                row: Line = {"model": library.model, "class": members[0], "platforms": " ".join(members)}
                rows.append(row | {"hardware": " ".join(machines)})
    return rows
