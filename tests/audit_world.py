"""A small world to audit: platforms that answer by formula, with residuals of their own, and a detector for them.

Each platform adds to a float64 reference a residual that is fixed for each probe and token (its rounding), and one that
changes with the setting (its nuisance). No engine, no weights: a whole audit takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from hspi.audits.material import Material, Probe, Settings
from hspi.audits.run import Request
from hspi.detectors.detector import Detector
from hspi.detectors.number_format import NumberFormat
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.evidence.aligned import align
from hspi.evidence.library import Library
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.schema import Header, Signature
from hspi.signatures.top_k import top_k
from hspi.splits import split_probes

VOCABULARY, LENGTH, SIZE, TOP, SEED = 500, 6, 160, 64, 1
SETTINGS = ("b1", "b4", "b7", "b16")


@dataclass(frozen=True)
class Formula:
    """scale: of the residual; kin: seed of a part shared with other platforms, `shared` its share; unrest: what a
    setting changes, as a share of the scale.
    """

    id: str
    seed: int
    scale: float
    dtype: str
    engine: str = "pytorch"
    kin: int = 0
    shared: float = 0.0
    unrest: float = 0.15


FORMULAS = {
    f.id: f
    for f in (
        Formula("fp32", 1, 2e-6, "fp32"),
        Formula("fp32-other", 2, 2e-6, "fp32", kin=9, shared=0.6),
        Formula("fp32-engine", 3, 2e-6, "fp32", "onnx", kin=9, shared=0.6),
        Formula("bf16", 4, 1e-2, "bf16"),
        Formula("bf16-eager", 5, 1e-2, "bf16", kin=4, shared=0.7),
        Formula("int8", 6, 6e-2, "int8"),
    )
}


@cache
def contexts() -> np.ndarray:
    return np.random.default_rng(7).integers(0, VOCABULARY, (SIZE, LENGTH))


@cache
def reference() -> np.ndarray:
    logits = np.random.default_rng(8).normal(0, 2.5, (SIZE, VOCABULARY))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def noise(seed: int, *more: int) -> np.ndarray:
    return np.random.default_rng([seed, *more]).normal(size=(SIZE, VOCABULARY))


def answers(formula: Formula, nuisance: int) -> np.ndarray:
    """Log-probabilities of all probes under a setting, float32 (SIZE, VOCABULARY)."""
    own = np.sqrt(1 - formula.shared) * noise(formula.seed) + np.sqrt(formula.shared) * noise(formula.kin)
    changed = noise(formula.seed, 100 + nuisance)
    logits = reference() + formula.scale * (own + formula.unrest * changed)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def signature(formula: Formula, setting: int) -> Signature:
    ids, values = top_k(answers(formula, setting), TOP)
    platform = Platform(formula.id, formula.engine, dtype=formula.dtype)
    header = Header(platform, "toy", "0" * 64, "tokens", "p" * 64, Nuisance(SETTINGS[setting]), 1, TOP)
    n = np.arange(SIZE, dtype=np.int32)
    return Signature(header, n, 0 * n, 0 * n + LENGTH, ids[:, 0], ids, values)


@cache
def detector() -> Detector:
    signatures = [signature(f, s) for f in FORMULAS.values() for s in range(len(SETTINGS))]
    data = align("toy", signatures, {"tokens": reference()})
    library = Library.measured(data, SEED, 20)
    bench = Bench.of(library, SEED, (20, 5))
    verifier = fit_verifier([bench])
    levels = calibrate(verifier, [bench])
    return Detector(verifier, NumberFormat(verifier), levels, {"toy": library}).slim("toy")


def probe(i: int) -> Probe:
    ids = contexts()[i].tolist()
    return Probe("tokens", i, ids, text_of(ids), True)


def text_of(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def material(
    base_url: str, claim: str | None = "bf16", budget: int = 60, window: int = 4, seed: int = SEED
) -> Material:
    settings = Settings(base_url, "toy", "toy", "0" * 64, claim, 0.01, budget, 1.0, window, ["store"], SEED)
    split = split_probes(detector().library("toy").data.probes, SEED)
    order = np.random.default_rng(seed).permutation(split.test)[:budget]
    warm_up = [probe(int(i)) for i in split.fit[:2]]
    vocabulary = [text_of([i]) for i in range(VOCABULARY)]
    return Material(settings, detector(), [probe(int(i)) for i in order], warm_up, vocabulary, {"version_hspi": "test"})


class Supply:
    """Hands this material to `audits.run.start`."""

    refer = None
    scores = None

    def __init__(self, made: Material) -> None:
        self.made, self.settings = made, made.settings

    def material(self) -> Material:
        return self.made

    def request(self) -> Request:
        s = self.settings
        claims = {"claim": s.claim, "claim_format": s.claim_format}
        return Request(base_url=s.base_url, served=s.served, weights=s.model, alpha=s.alpha, **claims)


def find(ids: list[int]) -> int:
    """The probe with these ids."""
    return int(np.flatnonzero((contexts() == np.asarray(ids)).all(axis=1))[0])
