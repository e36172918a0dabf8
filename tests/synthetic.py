"""A synthetic world: seeded noise on random logits stands for platforms. Nothing here ran on any platform.

Two models x six platforms x four batch classes x 96 probes (two sets of 48). A platform is a fixed pattern of noise on
the logits of each probe, as large as its number format would make it; each batch class adds a tenth of that. A restless
platform adds it anew in every company of a batch, and nothing where it is asked alone. `bf16-twin` has the pattern of
`bf16-a`, so that the two differ by company alone and are one class. `fp32-b` has that of `fp32-a`, and is as far from
it as their batch classes are from each other; but both are steady, so that they are two.

On each of MACHINES every pattern is another one, but for that of `fp32-a`, which computes alike on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.detectors.detector import Detector
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat, SampleBench
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.evidence.aligned import align
from hspi.evidence.library import Library
from hspi.platforms.record import Nuisance, Platform
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS
from hspi.signatures import batch_classes
from hspi.signatures.batch_classes import BatchClasses
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, Signature
from hspi.signatures.top_k import top_k

MODELS = ("one", "two")
SETS = ("text", "words")
PROBES, VOCAB, POSITIONS, TOP_K = 48, 96, 2, 64
CLASSES = BatchClasses({"b1": "1", "b2": "2", "b3": "3", "b4": "4-64"})
SETTINGS = tuple(CLASSES.sizes)
SEED = 1

# platform: (number format, size of its noise, what draws its pattern)
PATTERNS = {
    "bf16-a": ("bf16", 2e-2, 1),
    "bf16-b": ("bf16", 2e-2, 2),
    "bf16-twin": ("bf16", 2e-2, 1),
    "fp32-a": ("fp32", 2e-5, 3),
    "fp32-b": ("fp32", 2e-5, 3),
    "int8-a": ("int8", 2e-1, 5),
}
RESTLESS = {"bf16-a", "bf16-twin", "int8-a"}  # nobody searched the first two for classes
FLAGS = "sse4_2 avx fma avx2 f16c"
MACHINES: dict[str, dict[str, str]] = {  # what their CPUs say; "cpu" says nothing
    "cpu": {},
    "amd-zen2": {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": "23/49/0", "cpu_flags": FLAGS},
    "intel-haswell": {"cpu_vendor": "GenuineIntel", "cpu_family_model_stepping": "6/63/2", "cpu_flags": FLAGS},
}


def log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def logits_of(model: str, probe_set: str) -> npt.NDArray[np.float64]:
    """float64 (PROBES, POSITIONS, VOCAB)."""
    return np.random.default_rng([11, MODELS.index(model), SETS.index(probe_set)]).normal(
        scale=2.0, size=(PROBES, POSITIONS, VOCAB)
    )


def record(platform: str) -> Platform:
    """All but the twin have kernels of their own."""
    kernel = "bf16-a" if platform == "bf16-twin" else platform
    dtype = PATTERNS[platform][0]
    return Platform(platform, "synthetic", provenance="emulated", dtype=dtype, options={"kernel": kernel})


def classes_of(platform: str) -> BatchClasses | None:
    """What a search said of the platform."""
    if platform not in RESTLESS:
        return CLASSES
    return batch_classes.unsteady(0.9) if platform == "int8-a" else None


def noise(
    platform: str, model: str, probe_set: str, setting: str, machine: str, company: int
) -> npt.NDArray[np.float64]:
    """On the logits, as a share of the platform's own size: (PROBES, POSITIONS, VOCAB)."""
    place = [MODELS.index(model), SETS.index(probe_set)]
    shape = (PROBES, POSITIONS, VOCAB)
    at = 0 if platform == "fp32-a" else list(MACHINES).index(machine)
    pattern = np.random.default_rng([*place, PATTERNS[platform][2] + 100 * at]).normal(size=shape)
    if platform in RESTLESS and setting == "b1":
        return pattern
    own = [*place, sorted(PATTERNS).index(platform) + 100 * at, SETTINGS.index(setting)]
    more = [company] if platform in RESTLESS and company else []
    return pattern + 0.1 * np.random.default_rng([7, *own, *more]).normal(size=shape)


def signature(
    platform: str, model: str, probe_set: str, setting: str, machine: str = "cpu", company: int = 0
) -> Signature:
    """What the synthetic platform answers; another company changes a restless one's answers alone."""
    added = PATTERNS[platform][1] * noise(platform, model, probe_set, setting, machine, company)
    answered = log_softmax(logits_of(model, probe_set) + added).astype(np.float32)
    ids, values = top_k(answered, TOP_K)
    nuisance = Nuisance(setting, int(setting[1:]))
    header = Header(
        *(record(platform), model, f"weights-{model}", probe_set, f"probes-{probe_set}", nuisance),
        positions=POSITIONS,
        top_k=TOP_K,
        facts=MACHINES[machine],
        batch_classes=classes_of(platform),
    )
    rows = PROBES * POSITIONS
    ids, values = ids.reshape(rows, TOP_K), values.reshape(rows, TOP_K)
    position = np.tile(np.arange(POSITIONS, dtype=np.int32), PROBES)
    probe = np.repeat(np.arange(PROBES, dtype=np.int32), POSITIONS)
    return Signature(header, probe, position, position + 9, ids[:, 0].copy(), ids, values)


def signatures(
    model: str, platforms: Sequence[str] = tuple(PATTERNS), machines: Sequence[str] = ("cpu",)
) -> list[Signature]:
    return [signature(p, model, s, n, m) for m in machines for p in platforms for s in SETS for n in SETTINGS]


def reference(model: str) -> dict[str, npt.NDArray[np.float64]]:
    return {s: log_softmax(logits_of(model, s))[:, -1] for s in SETS}


def predicted(model: str) -> dict[str, npt.NDArray[np.float32]]:
    """What hypotheses foretell here: noise that no platform's pattern follows, as large as bf16's."""
    rng = np.random.default_rng([13, MODELS.index(model)])
    shape = (len(NAMES), PROBES, SLOTS)
    return {s: rng.normal(scale=2e-2, size=shape).astype(np.float32) for s in SETS}


def library(model: str, platforms: Sequence[str] = tuple(PATTERNS), machines: Sequence[str] = ("cpu",)) -> Library:
    return library_of(model, signatures(model, platforms, machines))


def library_of(model: str, some: Sequence[Signature]) -> Library:
    data = align(model, some, reference(model), predicted=predicted(model))
    return Library.measured(data, SEED, 20)


def write(one: Signature, path: Path) -> Path:
    """As a file."""
    shape = (PROBES, POSITIONS, TOP_K)
    with Journal(path, one.header) as journal:
        answers = one.topk_ids.reshape(shape), one.topk_logprobs.reshape(shape)
        journal.append(to_batch(journal.schema, np.arange(PROBES), 10, *answers))
        return journal.finish()


@dataclass(frozen=True)
class World:
    libraries: list[Library]


def world(machines: Sequence[str] = ("cpu",)) -> World:
    return World([library(m, machines=machines) for m in MODELS])


def trained(world: World, without: Sequence[str] = ()) -> Detector:
    """A small detector, as the train stage makes it; `without` platforms train nothing."""
    trees = {"n_estimators": 40, "max_depth": 4}
    benches = [Bench.of(x, SEED) for x in world.libraries]
    verifier = fit_verifier(benches, parameters=trees, dropped=without)
    singles = [SampleBench(x, SEED) for x in world.libraries]
    sure = Boosted(n_estimators=100, max_depth=3, learning_rate=0.3, min_child_weight=0.1)  # of few samples
    formats = NumberFormat(sure).fit(singles)
    return Detector(verifier, formats, calibrate(verifier, benches), {x.model: x for x in world.libraries})
