"""A small world to audit: platforms that answer by formula, with residuals of their own, and a detector for them.

Each platform adds to a float64 reference a residual that is fixed for each probe and token (its rounding), and one that
changes with the setting (its nuisance). No engine, no weights: a whole audit takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from hspi.audits.material import CHAT, Material, Probe, Settings
from hspi.audits.run import Request
from hspi.detectors.detector import Detector
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat, SampleBench
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.library import Library
from hspi.platforms.record import Nuisance, Platform
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS
from hspi.signatures.schema import Header, Signature
from hspi.signatures.top_k import top_k
from hspi.splits import split_probes

VOCABULARY, LENGTH, SIZE, TOP, SEED = 500, 6, 160, 64, 1
SETTINGS = ("b1", "b4", "b7", "b16")
TEMPLATE = 9  # tokens that a chat template puts around a prompt


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
    header = Header(platform, "toy", "0" * 64, "tokens", "p" * 64, Nuisance(SETTINGS[setting], int(SETTINGS[setting][1:])), 1, TOP)
    n = np.arange(SIZE, dtype=np.int32)
    return Signature(header, n, 0 * n, 0 * n + LENGTH, ids[:, 0], ids, values)


def predicted() -> np.ndarray:
    """What hypotheses foretell here: noise that nobody's residual follows, half as large as bf16's."""
    return np.random.default_rng(10).normal(scale=5e-3, size=(len(NAMES), SIZE, SLOTS)).astype(np.float32)


@cache
def library() -> Library:
    signatures = [signature(f, s) for f in FORMULAS.values() for s in range(len(SETTINGS))]
    data = align("toy", signatures, {"tokens": reference()}, predicted={"tokens": predicted()})
    return Library.measured(data, SEED, 20)


@cache
def detector() -> Detector:
    bench = Bench.of(library(), SEED, (20, 5))
    verifier = fit_verifier([bench])
    levels = calibrate(verifier, [bench])
    trees = Boosted(n_estimators=100, max_depth=3, learning_rate=0.3, min_child_weight=0.1)  # sure, of few samples
    formats = NumberFormat(trees).fit([SampleBench(library(), SEED)])
    return Detector(verifier, formats, levels, {"toy": library()}).slim("toy")


def probe(i: int, template: int = 0) -> Probe:
    """template: tokens of it that are known, 0 where there is none."""
    ids = contexts()[i].tolist()
    return Probe("tokens", i, ids, text_of(ids), True, {CHAT: [*ids, *range(template)]} if template else {})


def refer(probes: Sequence[Probe], asked: Sequence[Sequence[int]]) -> Aligned:
    """The reference after each context. A template changes nothing here, as `Misbehaving` has it."""
    at, data = [p.id for p in probes], library().data
    assert [list(c[:LENGTH]) for c in asked] == contexts()[at].tolist()
    return data.on_probes(np.asarray(at)).only([])


def warm_up() -> list[int]:
    """Probes that find out what an endpoint gives."""
    return [int(i) for i in split_probes(library().data.probes, SEED).fit[:2]]


def text_of(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def material(
    base_url: str,
    claim: str | None = "bf16",
    budget: int = 60,
    window: int = 4,
    seed: int = SEED,
    claim_format: str | None = None,
    signatures: bool = True,
    weights: bool = False,
) -> Material:
    """signatures, weights: whether they are at hand; with the weights comes the chat template."""
    settings = Settings(base_url, "toy", "toy", "0" * 64, claim, 0.01, budget, 1.0, window, ["store"], SEED)
    settings = replace(settings, claim_format=claim_format)
    split = split_probes(library().data.probes, SEED)
    order = np.random.default_rng(seed).permutation(split.test)[:budget]
    probes, first = ([probe(int(i), TEMPLATE * weights) for i in some] for some in (order, warm_up()))
    vocabulary = [text_of([i]) for i in range(VOCABULARY)]
    at_hand = detector() if signatures else detector().without_libraries()
    return Material(settings, at_hand, probes, first, vocabulary, {"version_hspi": "test"}, weights=weights)


class Supply:
    """Hands this material to `audits.run.start`."""

    refer = staticmethod(refer)
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
