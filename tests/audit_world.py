"""A small world to audit: platforms that answer by formula, with residuals of their own, and a detector for them.

Each platform adds to a float64 reference a residual that is fixed for each probe and token (its rounding), and one that
changes with the batch (its nuisance). Most are steady: they have two batch classes, each with bits of its own that come
again. Others answer otherwise in every batch. No engine, no weights: a whole audit takes a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from hspi.audits.answers import Answer
from hspi.audits.discovery import Capabilities, Form
from hspi.audits.gathering import gather
from hspi.audits.levels.level import Offer
from hspi.audits.levels.replay import Replay, ReplayScorer
from hspi.audits.material import CHAT, Material, Probe, Settings
from hspi.audits.run import Request
from hspi.client import Question, Reply
from hspi.detectors.detector import Detector
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat, SampleBench
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.library import Library
from hspi.platforms.record import Platform
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS
from hspi.signatures.batch_classes import BatchClasses, unsteady
from hspi.signatures.schema import Header, Signature
from hspi.signatures.top_k import top_k
from hspi.splits import split_probes
from hspi.verdict import Verdict

VOCABULARY, LENGTH, SIZE, TOP, SEED = 500, 6, 160, 64, 1
TEMPLATE = 9  # tokens that a chat template puts around a prompt
STEADY, UNSTEADY = BatchClasses({"b1": "1-15", "b16": "16-64"}), unsteady(0.9)
CPUS = {"amd-zen3": "25/1/1", "amd-zen4": "25/17/1", "amd-zen5": "26/2/1"}  # family, model and stepping, as CPUID says


@dataclass(frozen=True)
class Formula:
    """scale: of the residual; kin: seed of a part shared with other platforms, `shared` its share; unrest: what a batch
    changes, as a share of the scale; steady: whether it changes with the class of the batch alone.

    machine: of CPUS, "" for one that says nothing of itself, whose hardware is `cpu`.
    """

    software: str
    seed: int
    scale: float
    dtype: str
    engine: str = "pytorch"
    attention: str = "sdpa"
    kin: int = 0
    shared: float = 0.0
    unrest: float = 0.15
    steady: bool = True
    isa_cap: str = "none"
    machine: str = ""

    @property
    def id(self) -> str:
        return f"{self.machine or 'cpu'}/{self.software}"

    @property
    def platform(self) -> Platform:
        """As a signature's header has it."""
        kernels = {"attention": self.attention, "isa_cap": self.isa_cap}
        return Platform(self.software, self.engine, dtype=self.dtype, **kernels)

    @property
    def classes(self) -> BatchClasses:
        return STEADY if self.steady else UNSTEADY


def by_id(formulas: Iterable[Formula]) -> dict[str, Formula]:
    return {f.id: f for f in formulas}


FORMULAS = by_id(
    (
        Formula("fp32", 1, 2e-6, "fp32"),
        Formula("fp32-other", 2, 2e-6, "fp32", attention="eager", kin=9, shared=0.6),
        Formula("fp32-engine", 3, 2e-6, "fp32", "onnx", kin=9, shared=0.6, steady=False),
        Formula("bf16", 4, 1e-2, "bf16"),
        Formula("bf16-eager", 5, 1e-2, "bf16", attention="eager", kin=4, shared=0.7),
        Formula("int8", 6, 6e-2, "int8", steady=False),
    )
)
# Two machines, of which the second has a platform that is held to the first one's instruction set.
FLEET = by_id(
    (
        Formula("fp32", 1, 2e-6, "fp32", machine="amd-zen3"),
        Formula("fp32-engine", 3, 2e-6, "fp32", "onnx", machine="amd-zen3", kin=1, shared=0.5),
        Formula("bf16", 4, 1e-2, "bf16", machine="amd-zen3"),
        Formula("fp32", 11, 2e-6, "fp32", machine="amd-zen4", kin=1, shared=0.7),
        Formula("fp32-avx2", 12, 2e-6, "fp32", machine="amd-zen4", kin=1, shared=0.7, isa_cap="avx2"),
        Formula("bf16", 14, 1e-2, "bf16", machine="amd-zen4", kin=4, shared=0.7),
        Formula("int8", 16, 6e-2, "int8", machine="amd-zen4", steady=False),
    )
)
STRANGER = Formula("fp32", 21, 2e-6, "fp32", machine="amd-zen5", kin=1, shared=0.7)  # in no library
EVERYONE = {**FORMULAS, **FLEET, STRANGER.id: STRANGER}


@cache
def contexts() -> np.ndarray:
    return np.random.default_rng(7).integers(0, VOCABULARY, (SIZE, LENGTH))


@cache
def reference() -> np.ndarray:
    logits = np.random.default_rng(8).normal(0, 2.5, (SIZE, VOCABULARY))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def noise(seed: int, *more: int) -> np.ndarray:
    return np.random.default_rng([seed, *more]).normal(size=(SIZE, VOCABULARY))


def answers(formula: Formula, batch: int) -> np.ndarray:
    """Log-probabilities of all probes in a batch, float32 (SIZE, VOCABULARY).

    Batches of a steady platform are of its two classes in turn; an unsteady one's are each their own.
    """
    own = np.sqrt(1 - formula.shared) * noise(formula.seed) + np.sqrt(formula.shared) * noise(formula.kin)
    changed = noise(formula.seed, 100 + (batch % 2 if formula.steady else batch))
    logits = reference() + formula.scale * (own + formula.unrest * changed)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def uncollected(formula: Formula, unrest: float) -> Formula:
    """The same platform in a batch class that nobody collected, and so far from its others: see `answers`."""
    return replace(formula, steady=False, unrest=unrest)


def signature(formula: Formula, batch: int) -> Signature:
    """One of its batch classes, in their order."""
    ids, values = top_k(answers(formula, batch), TOP)
    numbers = CPUS.get(formula.machine)
    facts = {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": numbers} if numbers else {}
    header = Header(
        formula.platform, "toy", "0" * 64, "tokens", "p" * 64, formula.classes.settings()[batch], 1, TOP,
        facts=facts, batch_classes=formula.classes,
    )  # fmt: skip
    n = np.arange(SIZE, dtype=np.int32)
    return Signature(header, n, 0 * n, 0 * n + LENGTH, ids[:, 0], ids, values)


def signatures(formulas: Iterable[Formula]) -> list[Signature]:
    return [signature(f, i) for f in formulas for i in range(len(f.classes.sizes))]


def predicted() -> np.ndarray:
    """What hypotheses foretell here: noise that nobody's residual follows, half as large as bf16's."""
    return np.random.default_rng(10).normal(scale=5e-3, size=(len(NAMES), SIZE, SLOTS)).astype(np.float32)


def library_of(formulas: Iterable[Formula]) -> Library:
    data = align("toy", signatures(formulas), {"tokens": reference()}, predicted={"tokens": predicted()})
    return Library.measured(data, SEED, 20)


@cache
def library() -> Library:
    return library_of(FORMULAS.values())


@cache
def detector() -> Detector:
    bench = Bench.of(library(), SEED, (20, 5))
    verifier = fit_verifier([bench])
    levels = calibrate(verifier, [bench])
    trees = Boosted(n_estimators=100, max_depth=3, learning_rate=0.3, min_child_weight=0.1)  # sure, of few samples
    formats = NumberFormat(trees).fit([SampleBench(library(), SEED)])
    return Detector(verifier, formats, levels, {"toy": library()}).slim("toy")


@cache
def fleet() -> Detector:
    """The same trees, with the signatures of two machines, none of which they were trained on."""
    calibration = replace(detector().calibration, own_scores={})
    return replace(detector(), calibration=calibration).with_library(library_of(FLEET.values())).slim("toy")


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
    claim_hardware: str | None = None,
    signatures: bool = True,
    weights: bool = False,
    among: Detector | None = None,
    alpha: float = 0.01,
) -> Material:
    """signatures, weights: whether they are at hand; with the weights comes the chat template. among: the candidates,
    those of `detector` by default.
    """
    settings = Settings(base_url, "toy", "toy", "0" * 64, claim, alpha, budget, 1.0, window, ["store"], SEED)
    settings = replace(settings, claim_format=claim_format, claim_hardware=claim_hardware)
    split = split_probes(library().data.probes, SEED)
    order = np.random.default_rng(seed).permutation(split.test)[:budget]
    probes, first = ([probe(int(i), TEMPLATE * weights) for i in some] for some in (order, warm_up()))
    vocabulary = [text_of([i]) for i in range(VOCABULARY)]
    at_hand = among or detector()
    at_hand = at_hand if signatures else at_hand.without_libraries()
    return Material(settings, at_hand, probes, first, vocabulary, {"version_hspi": "test"}, weights=weights)


@cache
def scorer(of: Callable[[], Detector]) -> ReplayScorer:
    return ReplayScorer(of(), "toy", 20, SEED)


def verdict_on(formula: Formula, claim: str | None, batch: int = 17, **more: Any) -> Verdict:
    """What an audit says of a platform's answers, without a server: at the replay level. more: as `material`."""
    made = material("http://h", claim, **more)
    level = Replay(Offer(Capabilities(Form("completions", True, True, 20), top_k=20), made), "")
    level.scorer = scorer(fleet if made.detector is fleet() else detector)
    rows, plan = answers(formula, batch), level.plan()

    async def ask(question: Question, check: object) -> Reply:
        at = int(question.name.rpartition("-")[2])
        ids, values = top_k(rows[at : at + 1], 20)
        return Reply(question.name, "", {"answer": Answer(ids[0], values[0], int(ids[0, 0]), 0, LENGTH, 1)})

    found = asyncio.run(gather(level, plan, lambda data: data["answer"], ask))
    return level.conclude(plan, found)


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
        claims = {"claim": s.claim, "claim_format": s.claim_format, "claim_hardware": s.claim_hardware}
        return Request(base_url=s.base_url, served=s.served, weights=s.model, alpha=s.alpha, **claims)


def find(ids: list[int]) -> int:
    """The probe with these ids."""
    return int(np.flatnonzero((contexts() == np.asarray(ids)).all(axis=1))[0])
