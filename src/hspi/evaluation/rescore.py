"""Detectors that were trained on other data, side by side on the present evaluation set.

A champion's own figures are of the set that it was evaluated on. Once that changes, only the two detectors as they are
can be compared: each verifier answers for the same test probes, which fitted neither (the split of probes does not
change with the signatures), with every setting once as the observation and the others as the library. Settings fitted
both, so these figures serve the comparison alone; the protocol's own hold settings out too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hspi.detectors.detector import Detector
from hspi.detectors.training import Bench
from hspi.errors import DataError
from hspi.evaluation.replay import pooled, score_samples
from hspi.evidence.library import Library

SIZES = {"replay.probes.macro_accuracy": (32, 20), "replay.probes.macro_accuracy.1x20": (1, 20)}


def benches_of(libraries: Sequence[Library], seed: int) -> list[Bench]:
    """What `score_detector` compares on, made once for several detectors."""
    return [Bench.plain(library, seed, (20,)) for library in libraries]


def score_detector(folder: str | Path, benches: Sequence[Bench]) -> dict[str, float]:
    """Macro accuracies of the detector's verifier on the test probes, by the names that the protocol gives them.

    Raises DataError if the folder holds no detector, or one that reads other features than this version makes.
    """
    verifier = Detector.load(folder).verifier
    found = {}
    for name, (probes, k) in SIZES.items():
        try:
            parts = [score_samples(verifier, b, probes, k, b.data.rows) for b in benches]
        except ValueError as error:  # XGBoost's own errors are of this kind
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "it does not answer"
            raise DataError(f"{folder} must read the features of this version, but: {reason}") from error
        found[name] = pooled(parts, probes).value
    return found
