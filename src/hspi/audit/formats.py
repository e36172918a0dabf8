"""The residual and distribution levels: a number format from the answers alone, without any candidate's signatures.

There is no bound on false alarms here that holds at every stopping time: the number of probes is fixed, and what the
rule is worth was measured on models and platforms that the classifier never saw. It speaks only when blocks of probes
that share nothing agree, and contradicts only a claim whose format is finer than what the answers show; a server that
computes more finely than it says has cheated nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hspi import probes as probe_sets
from hspi.evidence.aligned import ABSENT, SLOTS, Aligned, likeliest
from hspi.hypotheses import NAMES, cached_predictions
from hspi.reference import cached_reference, normaliser

if TYPE_CHECKING:
    from hspi.audit.material import Probe
    from hspi.zoo import ModelRef

PROBES = 64  # asked for at this level


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
