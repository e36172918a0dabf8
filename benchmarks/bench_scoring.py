"""What an audit spends on scoring against 200 candidates' stored signatures: a made-up library, 40 answers.

Seconds of the wall. The candidates' own scores (the calibration of the tests) depend on detector and library alone, and
are kept from one audit to the next: the first audit pays for them.

Example:  python benchmarks/bench_scoring.py --candidates 200 --answers 40
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from hspi.audits.levels.replay import ReplayScorer
from hspi.detectors.calibration import Calibration
from hspi.detectors.detector import Detector
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat
from hspi.detectors.verifier import VERIFIER_FEATURES
from hspi.evidence.aligned import Aligned
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.platforms.record import Platform
from hspi.reference.logits import SLOTS

T = TypeVar("T")
PROBES, SETTINGS, K = 288, 4, 20


def library(candidates: int, rng: np.random.Generator) -> Library:
    """Platforms whose log-probabilities are a reference and noise, all in its order; each fourth is unsteady."""
    reference = -np.sort(rng.exponential(3, (PROBES, SLOTS)), axis=1) - 1
    noise = rng.normal(0, 1e-3, (candidates, 1, PROBES, SLOTS)) + rng.normal(0, 1e-4, (1, SETTINGS, PROBES, SLOTS))
    logprobs = (reference + noise).astype(np.float32)
    rank = np.argsort(np.argsort(-logprobs, axis=-1), axis=-1).astype(np.uint8)
    platforms = [Platform(f"made-up-{i}", "none") for i in range(candidates)]
    probes = [("made-up", i) for i in range(PROBES)]
    slots = np.tile(np.arange(SLOTS, dtype=np.int32), (PROBES, 1))
    classes = [{f"b{i}": str(i) for i in range(1, SETTINGS + 1)}] * candidates
    steady = [i % 4 != 0 for i in range(candidates)]
    arrays = slots, reference, logprobs, rank, logprobs[..., :1]
    data = Aligned("toy", platforms, classes, probes, *arrays, steady=steady)
    separation = rng.uniform(0.6, 1, (candidates, candidates))
    of_pairs = separation, separation, separation
    return Library(data, Classes("toy", data.platform_ids(), list(range(candidates)), *of_pairs))


def verifier(rng: np.random.Generator) -> Boosted:
    """As many trees, and as deep, as the shipped parameters tune the verifier to; on made-up pairs."""
    x = rng.normal(size=(20_000, len(VERIFIER_FEATURES))).astype(np.float32)
    return Boosted(n_estimators=160, max_depth=4).fit(x, (x[:, 0] + x[:, 3] > 0).astype(int))


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Of the wall, and what the work gave."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def score(scorer: ReplayScorer, data: Aligned, answers: int) -> None:
    evidence = scorer.start()
    for at in scorer.split.test[:answers]:
        evidence.add(scorer.scores(observation(data, [int(at)]))[..., 0])


def main(candidates: int, answers: int) -> None:
    rng = np.random.default_rng(0)
    made, trees = library(candidates, rng), verifier(rng)
    data = made.data
    detector = Detector(trees, NumberFormat(trees), Calibration(), {"toy": made})
    with tempfile.TemporaryDirectory() as folder:
        ReplayScorer(detector, "toy", K, 1, Path(folder))  # compiles the kernels
        cold, scorer = seconds(lambda: ReplayScorer(detector, "toy", K, 0, Path(folder)))
        warm, _ = seconds(lambda: ReplayScorer(detector, "toy", K, 0, Path(folder)))
    scorer.scores(observation(data, [0]))
    audit, _ = seconds(lambda: score(scorer, data, answers))
    print(f"{candidates} candidates × {SETTINGS} settings, {answers} answers")
    print(f"scores of the candidates themselves, first audit   {cold:7.3f} s")
    print(f"the same, kept from an earlier audit               {warm:7.3f} s")
    print(f"scoring of the answers                             {audit:7.3f} s")
    print(f"all scoring of a first audit                       {cold + audit:7.3f} s")
    print(f"all scoring of a later audit                       {warm + audit:7.3f} s (to reach: 1 s)")


def observation(data: Aligned, at: list[int]) -> Observation:
    order = np.argsort(data.rank[0, 0, at], axis=1)[:, :K]
    values = np.take_along_axis(data.logprobs[0, 0, at], order, 1)
    return Observation("toy", [data.probes[i] for i in at], order.astype(np.int32), values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--answers", type=int, default=40)
    a = parser.parse_args()
    main(a.candidates, a.answers)
