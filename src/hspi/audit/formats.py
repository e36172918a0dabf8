"""The residual and distribution levels: a number format from the answers alone, without any candidate's signatures.

There is no bound on false alarms here that holds at every stopping time: the number of probes is fixed, and what the
rule is worth was measured on models and platforms that the classifier never saw. It speaks only when blocks of probes
that share nothing agree, and contradicts only a claim whose format is finer than what the answers show; a server that
computes more finely than it says has cheated nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hspi import probes as probe_sets
from hspi.evidence.aligned import ABSENT, Aligned, place
from hspi.evidence.distribution import GRID_BITS, grid_statistics
from hspi.evidence.explained import EXPLAINED_STATISTICS as COLUMNS
from hspi.evidence.explained import explained_statistics, family_features
from hspi.evidence.replay import F32
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS, likeliest, normaliser
from hspi.reference.store import cached_predictions, cached_reference

if TYPE_CHECKING:
    from hspi.audit.material import Probe
    from hspi.bundle import Bundle, Observation
    from hspi.detectors.classifiers import Boosted
    from hspi.zoo import ModelRef

PROBES = 64  # asked for at this level
BLOCKS = 4  # that must agree
SURE, RULED_OUT = 0.9, 0.01  # posterior in every block: of the format found at least, of the one claimed at most
STRAY = 6.0  # log2 of the residual's size over that of bf16's rounding, above which other weights or tokens answer

# Bits of significand that rounding leaves: IEEE 754; bfloat16; OCP 8-bit floats and microscaling; integers of b bits
# hold b − 1 and a sign; NF4 and FP4 are 16 values. The fewer, the cheaper.
BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "int8": 7, "mxint8": 7, "fp8-e3m4": 5, "fp8-e4m3": 4}
BITS |= {"fp8-e5m2": 3, "int4": 3, "nf4": 3, "fp4": 3}


@dataclass(frozen=True, slots=True)
class Formats:
    """posterior: {format: lowest and highest probability over the blocks}; size: log2 of the residual over bf16's."""

    posterior: dict[str, tuple[float, float]]
    size: float

    @property
    def found(self) -> str | None:
        """The format that every block names with SURE, if the answers are these weights' at all."""
        best = max(self.posterior, key=lambda f: self.posterior[f][0])
        return best if self.posterior[best][0] >= SURE and not self.stray else None

    @property
    def stray(self) -> bool:
        return self.size > STRAY

    def excludes(self, claimed: str) -> bool:
        """Whether every block rules the claimed format out, for one that is no finer."""
        found = self.found
        if found is None or claimed not in self.posterior or found not in BITS or claimed not in BITS:
            return False
        return found != claimed and self.posterior[claimed][1] <= RULED_OUT and BITS[found] <= BITS[claimed]


def refer(ref: ModelRef, asked: Sequence[Probe], contexts: Sequence[Sequence[int]], cache: Path) -> Aligned:
    """The reference of these weights after each context, and what each format would change, with no platform in it.

    contexts: token ids of each probe, of any lengths. Made once for each (weights, contexts) and kept in `cache`.
    """
    slots = np.empty((len(asked), SLOTS), np.int32)
    reference, lse = np.empty((len(asked), SLOTS)), np.empty(len(asked))
    predicted = np.empty((len(NAMES), len(asked), SLOTS), np.float32)
    lengths = np.array([len(c) for c in contexts])
    for length in np.unique(lengths):
        at = np.flatnonzero(lengths == length)
        ids = np.array([contexts[int(i)] for i in at], np.int64)
        name = probe_sets.content_hash("text", ids)
        logits = cached_reference(ref, name, list(ids), 1, cache)[:, -1]
        slots[at], lse[at] = likeliest(logits), normaliser(logits)
        reference[at] = np.take_along_axis(logits, slots[at].astype(np.int64), axis=1) - lse[at][:, None]
        predicted[:, at] = cached_predictions(ref, name, list(ids), slots[at], cache)
    return without_platforms(ref.id, ref.weights_hash, asked, slots, reference, lse, predicted)


def without_platforms(
    model: str,
    weights_hash: str,
    asked: Sequence[Probe],
    slots: npt.NDArray[np.int32],
    reference: npt.NDArray[np.float64],
    lse: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.float32],
) -> Aligned:
    none = np.empty((0, 0, *slots.shape), np.float32)
    ranks = np.full(none.shape, ABSENT, np.uint8)
    names = [(p.set, p.id) for p in asked]
    return Aligned(
        model, [], [], names, slots, reference, none, ranks, none[..., :1], lse, predicted, weights_hash=weights_hash
    )


def tell(bundle: Bundle, reference: Aligned, seen: Observation) -> Formats:
    """The format of answers to at least BLOCKS of the reference's probes."""
    index = {p: i for i, p in enumerate(reference.probes)}
    part = reference.on_probes(np.asarray([index[p] for p in seen.probes]))
    one = part.with_observation(*place(part.slots, seen.ids, seen.logprobs), seen.logprobs)
    return formats_of(bundle.family, explained_statistics(one, 0, 0, seen.ids.shape[1]))


def formats_of(family: Boosted, statistics: F32) -> Formats:
    """statistics (n, len(EXPLAINED_STATISTICS)) of n probes, at least BLOCKS; family: trained on `family_features`."""
    means = np.stack([statistics[i::BLOCKS].mean(axis=0) for i in range(BLOCKS)])
    p = family.predict_proba(family_features(means))
    ends = {str(f): (float(p[:, i].min()), float(p[:, i].max())) for i, f in enumerate(family.classes_.tolist())}
    mean = statistics.mean(axis=0)
    own, foretold = (float(mean[COLUMNS.index(name)]) + 1e-30 for name in ("rr", "xx_bf16"))
    return Formats(ends, 0.5 * float(np.log2(own / foretold)))


def lean(seen: Observation) -> str:
    """What the log-probabilities alone suggest: how coarse a grid their differences stand on."""
    mean = grid_statistics(seen.logprobs).mean(axis=0)[: len(GRID_BITS)]
    on = [j for j, distance in zip(GRID_BITS, mean, strict=True) if distance < 0.02]
    if not on:
        return "their differences stand on no 16-bit grid, so the last layer was not stored in 16 bits"
    kind = "bf16" if on[0] <= 8 else "fp16" if on[0] <= 11 else "neither bf16 nor fp16"
    return f"their differences stand on a grid of 2^-{on[0]}, as of {kind} logits"
