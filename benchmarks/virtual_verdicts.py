"""Verdicts of a trained detector on virtual GPUs that it never saw: their signatures join its library, nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from plan_search.search import Answers
from virtual_world import FOREIGN, World

from hspi.detectors.detector import Detector
from hspi.detectors.virtual_families import family_name
from hspi.evidence.aligned import Aligned
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.platforms.claim import Claim
from hspi.platforms.hardware import hardware_of
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import virtual
from hspi.platforms.virtual.plans import PlanBook
from hspi.verdict import UNKNOWN

CLASSES = {"b1": "1-64"}  # an emulated product has the same bits in every batch
TOP_K = 20


def verdicts(world: World, folder: Path, books: int) -> list[dict[str, Any]]:
    """For each condition: the share of right, unknown and wrong answers, and of true claims contradicted."""
    each, library = list(enumerate(world.architectures)), world.library()
    detector = joined(world, Detector.load(folder), library)
    conditions: dict[str, list[tuple[int, Answers, Detector]]] = {
        "plan in the library": [(c, x, detector) for (c, _), x in library.items()],
        "plan left out": [(c, x, without(world, detector, n)) for (c, n), x in library.items()],
        "foreign plan": [(c, world.run(a, PlanBook(n)), detector) for c, a in each for n in FOREIGN],
        "plan differs by product": [
            (c, world.run(a, world.mixed_book(c, i)), detector) for c, a in each for i in range(books)
        ],
        "plan differs by layer": [
            (c, world.run(a, world.layered_book(c, i)), detector) for c, a in each for i in range(books)
        ],
    }
    rows = []
    for condition, cases in conditions.items():
        found = [judged(world, truth, answers, judge) for truth, answers, judge in cases]
        outcome = Counter(f[0] for f in found)
        rows.append(
            {"model": world.model, "dtype": world.dtype, "condition": condition, "probes": len(world.contexts)}
            | {"top_k": TOP_K, "truths": len(found)}
            | {name: round(outcome[name] / len(found), 4) for name in ("right", "unknown", "wrong")}
            | {"best score right": round(float(np.mean([f[1] for f in found])), 4)}
            | {"true claims contradicted": round(float(np.mean([f[2] for f in found])), 4)}
        )
        print(rows[-1], flush=True)
    return rows


def judged(world: World, truth: int, answers: Answers, detector: Detector) -> tuple[str, bool, bool]:
    """The answer beside the truth, whether the true family has the best score, and whether a true claim falls."""
    order = np.argsort(answers.rank, axis=1, kind="stable")[:, :TOP_K]
    missing = np.take_along_axis(answers.rank, order, axis=1) >= TOP_K
    ids = np.where(missing, -1, np.take_along_axis(world.slots, order, axis=1)).astype(np.int32)
    logprobs = np.take_along_axis(answers.logprobs, order, axis=1)
    seen = Observation(world.model, [("text", i) for i in range(len(ids))], ids, logprobs)
    family = family_name(list(world.classes.values())[truth])
    claim = next(p.software for p in detector.library(world.model).data.platforms if family_name(p) == family)
    found = detector.judge(seen, claim=Claim(claim))
    best = max((p, n) for n, p in found.posterior.items() if n != UNKNOWN)[1]
    answer = "right" if found.answer == family else UNKNOWN if found.answer == UNKNOWN else "wrong"
    return answer, best == family, found.outcome == "contradicted"


def joined(world: World, trained: Detector, library: dict[tuple[int, str], Answers]) -> Detector:
    """The detector with the virtual GPUs for its library."""
    gpus = [p.device.removeprefix("virtual ") for p in world.classes.values()]
    platforms = [placed(virtual(gpus[c], world.dtype, n)) for c, n in library]
    logprobs, rank = (np.stack([getattr(x, name) for x in library.values()]) for name in ("logprobs", "rank"))
    raw = np.nan_to_num(np.take_along_axis(logprobs, np.argsort(rank, axis=2, kind="stable"), axis=2), nan=-99.0)
    arrays = world.slots, world.reference, logprobs[:, None], rank[:, None], raw[:, None]
    probes, known = [("text", i) for i in range(len(world.contexts))], [True] * len(platforms)
    data = Aligned(world.model, platforms, [CLASSES] * len(platforms), probes, *arrays, steady=known, complete=known)
    return replace(trained, libraries={world.model: Library(data, by_bits(data))})


def by_bits(data: Aligned) -> Classes:
    """Candidates with the same bits are one class."""
    bits = [data.logprobs[i].tobytes() for i in range(len(data.platforms))]
    label = [list(dict.fromkeys(bits)).index(b) for b in bits]
    empty = np.full((len(bits), len(bits)), np.nan)
    return Classes(data.model, data.platform_ids(), label, empty, empty, empty)


def placed(platform: Platform) -> Platform:
    return platform.on(hardware_of(platform, {}).id)


def without(world: World, detector: Detector, plan: str) -> Detector:
    """The same, less one plan of every GPU."""
    data = detector.library(world.model).data
    kept = data.only([i for i, p in enumerate(data.platforms) if p.options["plan"] != plan])
    return replace(detector, libraries={world.model: Library(kept, by_bits(kept))})
