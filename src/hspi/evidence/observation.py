"""What somebody answered, before anything is known of who it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from hspi.evidence.aligned import Aligned, place
from hspi.reference.logits import SLOTS
from hspi.signatures.schema import Signature


@dataclass(frozen=True, slots=True)
class Observation:
    """What somebody answered: one row for each probe. ids int32 and logprobs float32 (n, k), most likely first.

    weights_hash and probe_hashes (by set) say with which model and to which probes, where that is known.
    """

    model: str
    probes: list[tuple[str, int]]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    weights_hash: str = ""
    probe_hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, signature: Signature, top_k: int) -> Observation:
        """The last position of each probe of a signature: what one output token of an API shows."""
        last = signature.last_position()
        probes = [(signature.header.probe_set, int(i)) for i in last.probe_id]
        h = signature.header
        k = min(top_k, h.top_k, SLOTS)
        answers = last.topk_ids[:, :k], last.topk_logprobs[:, :k]
        return cls(h.model, probes, *answers, h.weights_hash, {h.probe_set: h.probe_hash})

    def take(self, rows: Sequence[int]) -> Observation:
        at = list(rows)
        return replace(self, probes=[self.probes[i] for i in at], ids=self.ids[at], logprobs=self.logprobs[at])

    def beside(self, reference: Aligned) -> Aligned:
        """The answers in the slots of a reference that holds their probes: it as the only platform there is.

        Raises KeyError for a probe that the reference does not hold.
        """
        index = {p: i for i, p in enumerate(reference.probes)}
        part = reference.on_probes(np.asarray([index[p] for p in self.probes]))
        return part.with_observation(*place(part.slots, self.ids, self.logprobs), self.logprobs)
