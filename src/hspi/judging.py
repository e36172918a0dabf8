"""Verdicts on signature files, and the demonstration that hides a label."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hspi import params, stages
from hspi.detectors.detector import Detector
from hspi.errors import DataError, PlatformError
from hspi.evidence.aligned import Aligned
from hspi.evidence.observation import Observation
from hspi.platforms import catalogue, machine
from hspi.platforms.claim import Claim
from hspi.signatures.schema import read_signature
from hspi.signatures.store import iter_store
from hspi.splits import split_probes
from hspi.verdict import Verdict

HIDDEN_BATCH = 3  # no default nuisance setting has it


def judge(
    file: str | Path,
    *,
    claim: str | None = None,
    claim_hardware: str | None = None,
    alpha: float = 0.01,
    probes: int = 32,
    top_k: int = 20,
    detector: str | Path | None = None,
) -> Verdict:
    """The verdict on the first `probes` rows of a signature, `top_k` tokens each, at level alpha.

    claim: software, or hardware/software; claim_hardware: a pattern of hardware (`platforms/claim.py`). detector: a
    folder, else as `load_detector` finds it. Raises DataError for a file that is no signature, of other
    weights than the library's or of other probes, and for a claim that is no candidate; UnknownName for a model that
    the detector has no library of.
    """
    seen = Observation.of(read_signature(file), top_k)
    some = seen.take(range(min(probes, len(seen.probes))))
    return load_detector(detector).judge(some, alpha=alpha, claim=Claim.parse(claim, claim_hardware))


def load_detector(folder: str | Path | None = None) -> Detector:
    """The given one, else the registry's champion, else the last one trained. Raises DataError if there is none."""
    if folder is not None:
        return Detector.load(folder)
    from hspi import tracking

    try:
        return tracking.champion()
    except DataError:
        return Detector.load(stages.DETECTOR)


# ---------------------------------------------------------------- the demonstration


def demo(hide: str | None, seed: int | None, say: Callable[[str], object]) -> tuple[str, Verdict, Verdict]:
    """(the hidden platform's full id, the verdict on its answers, the verdict on a false claim about it).

    The platform runs for real, in a process of its own, at a batch size that no training signature has, on probes
    that trained nothing. hide: the platform, or None to draw one; seed: of the draws; say: is told what happens.
    Raises PlatformError where the platform does not run here, DataError where no detector was trained.
    """
    p = params.load()
    rng = random.Random(seed)
    runnable = [i for i in p.demo.collect if machine.availability(catalogue.get(i)).runnable]
    if hide is not None and hide not in runnable:
        raise PlatformError(f"the hidden platform must run here and be in params.yaml's demo.collect, but got {hide!r}")
    hidden = hide or rng.choice(runnable)
    model = rng.choice(p.models)
    say(f"A hidden platform answers the text probes with model {model}, {HIDDEN_BATCH} at a time …")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hspi", "collect", "--platform", hidden, "--model", model]
        command += ["--probes", "text", "--out", folder, "--batch-size", str(HIDDEN_BATCH), "--progress", "none"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        signature = read_signature(next(iter_store(folder)))
    detector = load_detector()
    seen = Observation.of(signature, 20)
    test = held_out(seen.probes, detector.library(seen.model).data, p.evaluation.seed)
    chosen = np.random.default_rng(seed).choice(test, min(32, len(test)), replace=False)
    one = seen.take(chosen.tolist())
    found = detector.judge(one)
    library, placed = detector.library(seen.model), signature.header.placed
    others = [p.id for p in library.data.platforms if p.hardware == placed.hardware]
    claim = rng.choice(sorted(set(others) - set(library.class_of(placed.id))) or library.platform_ids)
    return placed.id, found, detector.judge(one, claim=Claim.parse(claim))


def report_files() -> list[Path]:
    """What the pipeline left for people to look at, as far as it is there."""
    return [f for f in (stages.HTML, stages.METRICS, stages.TABLES, Path("mlruns/mlflow.db")) if f.exists()]


def held_out(probes: list[tuple[str, int]], library: Aligned, seed: int) -> list[int]:
    """Of these probes, those that neither trained nor calibrated: indices into `probes`."""
    test = {library.probes[i] for i in split_probes(library.probes, seed).test}
    return [i for i, probe in enumerate(probes) if probe in test]
