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
from hspi.bundle import Bundle, Observation
from hspi.errors import DataError, PlatformError
from hspi.platforms import catalogue, machine
from hspi.signatures.schema import read_signature
from hspi.verdict import Verdict

HIDDEN_BATCH = 3  # no default nuisance setting has it


def load_bundle(detector: Path | None = None) -> Bundle:
    """The given bundle, else the registry's champion, else the last one trained."""
    if detector is not None:
        return Bundle.load(detector)
    from hspi import tracking

    try:
        return tracking.champion()
    except DataError:
        return Bundle.load(stages.BUNDLE)


def judge_file(
    file: Path, *, probes: int, top_k: int, alpha: float, claim: str | None = None, detector: Path | None = None
) -> Verdict:
    """The verdict on the first `probes` rows of a signature."""
    seen = Observation.of(read_signature(file), top_k)
    return load_bundle(detector).judge(seen.take(range(min(probes, len(seen.probes)))), alpha=alpha, claim=claim)


def demo(hide: str | None, seed: int | None, say: Callable[[str], object]) -> tuple[str, Verdict, Verdict]:
    """(the hidden platform, the verdict on its answers, the verdict on a false claim about it).

    The platform runs for real, in a process of its own, at a batch size that no training signature has, on probes
    that trained nothing.
    """
    p = params.load()
    rng = random.Random(seed)
    runnable = [i for i in p.platforms if machine.availability(catalogue.get(i)).runnable]
    if hide is not None and hide not in runnable:
        raise PlatformError(f"the hidden platform must run here and be in params.yaml, but got {hide!r}")
    hidden = hide or rng.choice(runnable)
    model = rng.choice(p.models)
    say(f"A hidden platform answers the text probes with model {model}, {HIDDEN_BATCH} at a time …")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hspi", "collect", "--platform", hidden, "--model", model]
        command += ["--probes", "text", "--out", folder, "--batch-size", str(HIDDEN_BATCH), "--progress", "none"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        signature = read_signature(next(Path(folder).glob("*/*/*.parquet")))
    bundle = load_bundle()
    seen = Observation.of(signature, 20)
    test = stages.test_probes(seen.probes, bundle.library[seen.model], p.evaluation.seed)
    chosen = np.random.default_rng(seed).choice(test, min(32, len(test)), replace=False)
    one = seen.take(chosen.tolist())
    found = bundle.judge(one)
    others = [i for i in runnable if i not in bundle.classes[seen.model].members_of(hidden)]
    return hidden, found, bundle.judge(one, claim=rng.choice(others))


def report_files() -> list[Path]:
    return [f for f in (stages.HTML, stages.METRICS, stages.TABLES, Path("mlruns/mlflow.db")) if f.exists()]
