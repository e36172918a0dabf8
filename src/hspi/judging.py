"""Verdicts on signature files."""

from __future__ import annotations

from pathlib import Path

from hspi import stages
from hspi.detectors.detector import Detector
from hspi.errors import DataError
from hspi.evidence.observation import Observation
from hspi.signatures import read_signature
from hspi.verdict import Verdict


def judge(
    file: str | Path,
    *,
    claim: str | None = None,
    alpha: float = 0.01,
    probes: int = 32,
    top_k: int = 20,
    detector: str | Path | None = None,
) -> Verdict:
    """The verdict on the first `probes` rows of a signature, `top_k` tokens each, at level alpha.

    detector: a folder, else as `load_detector` finds it. Raises DataError for a file that is no signature, of other
    weights than the library's or of other probes, and for a claim that is no candidate; UnknownName for a model that
    the detector has no library of.
    """
    seen = Observation.of(read_signature(file), top_k)
    return load_detector(detector).judge(seen.take(range(min(probes, len(seen.probes)))), alpha=alpha, claim=claim)


def load_detector(folder: str | Path | None = None) -> Detector:
    """The given one, else the registry's champion, else the last one trained. Raises DataError if there is none."""
    if folder is not None:
        return Detector.load(folder)
    from hspi import tracking

    try:
        return tracking.champion()
    except DataError:
        return Detector.load(stages.DETECTOR)
