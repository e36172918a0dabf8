"""The number format that rounds a platform's answers, told from one observation alone, on any model.

Trees read the residual beside what each format is foretold to do (`evidence.explained`); they are trained on samples of
single observations and know no platform by name. An answer is believed only where blocks of probes that share nothing
agree, and a claim is excluded only by a format that is no finer: a server that computes more finely than it says has
cheated nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hspi.detectors.estimators import Boosted
from hspi.evidence.aligned import Aligned
from hspi.evidence.distribution import DISTRIBUTION_FEATURES, GRID_BITS, grid_statistics
from hspi.evidence.explained import EXPLAINED_STATISTICS as COLUMNS
from hspi.evidence.explained import all_statistics, class_features, explained_statistics, format_features
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32
from hspi.platforms.record import Platform
from hspi.reference.hypotheses import HYPOTHESES
from hspi.splits import Index, ProbeSplit, draw, partitions, split_probes

FORMATS = {
    "int8-weights": "int8",  # the coarsest rounding is the weights'; activations in int8 or float are the same format
    "int4-weights": "int4",
    "int8-int4-weights": "int4",  # int8 activations are finer than 4-bit weights
    "fp8-weights": "fp8-e4m3",  # quanto's qfloat8 and torchao's default are OCP E4M3
    "fp8": "fp8-e4m3",
    "nf4-weights": "nf4",
    "fp4-weights": "fp4",
    "q8_0": "int8",  # llama.cpp's blocks of 32 integers with one scale
    "q4_0": "int4",
}

KNOWN = {"fp32", "fp16", *(h.format for h in HYPOTHESES)}  # that something is foretold of, or nothing must be

BLOCKS = 4  # that must agree
SURE, RULED_OUT = 0.9, 0.01  # posterior in every block: of the format found at least, of the one claimed at most
STRAY = 6.0  # log2 of the residual's size over that of bf16's rounding, above which other weights or tokens answer

# Bits of significand that rounding leaves: IEEE 754; bfloat16; OCP 8-bit floats and microscaling; integers of b bits
# hold b − 1 and a sign; NF4 and FP4 are 16 values. The fewer, the cheaper.
BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "int8": 7, "mxint8": 7, "fp8-e3m4": 5, "fp8-e4m3": 4}
BITS |= {"fp8-e5m2": 3, "int4": 3, "nf4": 3, "fp4": 3}


def format_of(platform: Platform) -> str:
    """What rounds, not where nor by whose code: the quantization where there is one, else the dtype.

    `matmul_precision` moves no platform out of fp32: on a CPU without AMX, PyTorch at `medium` was as exact as the
    other fp32 platforms whose products oneDNN computes.
    """
    return FORMATS.get(platform.number_format, platform.number_format)


def rounds_once(platform: Platform) -> bool:
    """Whether one KNOWN format rounds a platform's answers, so that they show what that format does.

    Of two (bf16 beside int8 weights, float16 keys under float32) the coarser hides the other, and its name with it: a
    detector that was taught such names took honest bf16 for int8.
    """
    kept = platform.kv_cache in ("none", platform.dtype)
    exact = platform.options.get("matmul_precision", "highest") == "highest"
    one = platform.quantization == "none" or (platform.dtype == "fp32" and platform.quantization != "int8-int4-weights")
    return kept and exact and one and format_of(platform) in KNOWN


# ---------------------------------------------------------------- what is told


@dataclass(frozen=True, slots=True)
class Formats:
    """What BLOCKS disjoint parts of the answers say of the number format.

    posterior: {format: lowest and highest probability over the blocks}; size: log2 of the residual's root mean square
    over what bf16's rounding is foretold to leave.
    """

    posterior: dict[str, tuple[float, float]]
    size: float

    @property
    def found(self) -> str | None:
        """The format that every block names with SURE, if the answers are these weights' at all."""
        best = max(self.posterior, key=lambda f: self.posterior[f][0])
        return best if self.posterior[best][0] >= SURE and not self.stray else None

    @property
    def stray(self) -> bool:
        """Whether residuals are so large that other weights or other tokens must have answered."""
        return self.size > STRAY

    def excludes(self, claimed: str) -> bool:
        """Whether every block rules the claimed format out, for one that is no finer."""
        found = self.found
        if found is None or claimed not in self.posterior or found not in BITS or claimed not in BITS:
            return False
        return found != claimed and self.posterior[claimed][1] <= RULED_OUT and BITS[found] <= BITS[claimed]


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """The detector of number formats: fitted on samples of known platforms, it tells the format of an observation.

    trees: of the features of `evidence.explained.format_features`; their classes are the formats seen in training.
    """

    trees: Boosted

    def fit(self, benches: Sequence[SampleBench]) -> Self:
        """On TRAINING_SAMPLES samples of PROBES probes of every platform and setting of these models."""
        tables = training_tables(benches)
        self.trees.fit(np.concatenate([x for x, _ in tables]), np.concatenate([y for _, y in tables]))
        return self

    @property
    def formats(self) -> list[str]:
        """Those that training saw; no other one can be found or excluded."""
        return [str(f) for f in self.trees.classes_.tolist()]

    def tell(self, reference: Aligned, seen: Observation) -> Formats:
        """The format of answers to at least BLOCKS of the reference's probes, block by block.

        reference: holds the answered probes, with `predicted` (`Aligned`). Raises KeyError for a probe that it lacks.
        """
        return self.of_statistics(explained_statistics(seen.beside(reference), 0, 0, seen.ids.shape[1]))

    def of_statistics(self, statistics: F32) -> Formats:
        """The same from statistics (n, len(EXPLAINED_STATISTICS)) of n probes, at least BLOCKS."""
        return self.of_samples(statistics[None])[0]

    def of_samples(self, statistics: F32) -> list[Formats]:
        """The same of B samples of n probes each: (B, n, len(EXPLAINED_STATISTICS))."""
        means = np.stack([statistics[:, i::BLOCKS].mean(axis=1) for i in range(BLOCKS)], axis=1)
        p = self.trees.predict_proba(format_features(means.reshape(-1, means.shape[-1])))
        p = p.reshape(len(means), BLOCKS, -1)
        low, high, mean = p.min(axis=1), p.max(axis=1), statistics.mean(axis=1).astype(np.float64)
        size = 0.5 * np.log2((mean[:, COLUMNS.index("rr")] + 1e-30) / (mean[:, COLUMNS.index("xx_bf16")] + 1e-30))
        ends = [
            dict(zip(self.formats, zip(a, b, strict=True), strict=True))
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]
        return [Formats(e, float(s)) for e, s in zip(ends, size, strict=True)]

    def posterior(self, reference: Aligned, seen: Observation) -> dict[str, float]:
        """{format: probability}, of sum 1, from all answers together, however few. Raises as `tell` does."""
        mean = explained_statistics(seen.beside(reference), 0, 0, seen.ids.shape[1]).mean(axis=0, keepdims=True)
        return dict(zip(self.formats, self.trees.predict_proba(format_features(mean))[0].tolist(), strict=True))

    def save(self, path: Path) -> None:
        """As `Boosted.save`."""
        self.trees.save(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises DataError if it is not there or not whole."""
        return cls(Boosted.load(path))


def lean(seen: Observation) -> str:
    """What the log-probabilities alone suggest: how coarse a grid their differences stand on."""
    mean = grid_statistics(seen.logprobs).mean(axis=0)[: len(GRID_BITS)]
    on = [j for j, distance in zip(GRID_BITS, mean, strict=True) if distance < 0.02]
    if not on:
        return "their differences stand on no 16-bit grid, so the last layer was not stored in 16 bits"
    kind = "bf16" if on[0] <= 8 else "fp16" if on[0] <= 11 else "neither bf16 nor fp16"
    return f"their differences stand on a grid of 2^-{on[0]}, as of {kind} logits"


# ---------------------------------------------------------------- samples to train and score on

PROBES, TOP_K = 32, 20
TRAINING_SAMPLES = 12  # of each platform and setting

# `residual` tells the number format on any model; `residual-classes` adds what holds on the models trained on alone
FEATURES: dict[str, Callable[[F32], F32]] = {
    "residual": format_features,
    "residual-classes": class_features,
    "distribution": lambda mean: mean,
}
Samples = tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64], int]


def sample_table(
    statistics: F32, data: Aligned, labels: Sequence[str], settings: Sequence[int], samples: Index
) -> tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Means over the probes of each sample: X (n, F), labels (n,), block (n,). Platforms without a label have none."""
    xs, ys, blocks = [], [], []
    present = data.present
    for c in range(len(data.platforms)):
        for s in settings:
            if present[c, s] and labels[c]:
                xs.append(statistics[c, s][samples].mean(axis=1))
                ys += [labels[c]] * len(samples)
                blocks.append(np.arange(len(samples)))
    return np.concatenate(xs), np.asarray(ys), np.concatenate(blocks)


class SampleBench:
    """One model's statistics of single observations, ready to be sampled; the distribution's are the last columns.

    formats: of each platform that `rounds_once`, "" for the others, which teach and test no number format.
    """

    def __init__(self, library: Library, seed: int) -> None:
        data, classes = library.data, library.classes
        self.data = data
        self.split: ProbeSplit = split_probes(data.probes, seed)
        self.statistics = all_statistics(data, TOP_K)
        self.formats = [format_of(p) if rounds_once(p) else "" for p in data.platforms]
        self.names = [classes.name(label) for label in classes.label]

    @property
    def settings(self) -> list[int]:
        return list(range(self.data.present.shape[1]))

    def _sampled(self, level: str, labels: Sequence[str], settings: Sequence[int], samples: Index) -> Any:
        columns = slice(-len(DISTRIBUTION_FEATURES), None) if level == "distribution" else slice(None)
        x, y, block = sample_table(self.statistics[..., columns], self.data, labels, settings, samples)
        return FEATURES[level](x), y, block

    def training(self, level: str, labels: Sequence[str], settings: Sequence[int], seed: int) -> Any:
        pool = np.concatenate([self.split.fit, self.split.calibrate])
        chosen = draw(pool, min(PROBES, len(pool)), TRAINING_SAMPLES, np.random.default_rng(seed))
        return self._sampled(level, labels, settings, chosen)

    def test(self, level: str, labels: Sequence[str], settings: Sequence[int], seed: int) -> Any:
        pool = self.split.test
        blocks = partitions(pool, min(PROBES, len(pool)), 8, np.random.default_rng(seed))
        found = self._sampled(level, labels, settings, blocks.reshape(-1, blocks.shape[2]))
        return (*found, blocks.shape[1])


def training_tables(benches: Sequence[SampleBench]) -> list[tuple[F32, npt.NDArray[Any]]]:
    """Samples of every platform and setting with their formats, model by model: (X, y)."""
    return [b.training("residual", b.formats, b.settings, i)[:2] for i, b in enumerate(benches)]
