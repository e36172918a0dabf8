"""The residual level: a number format from the answers and the weights, without any candidate's signatures.

There is no bound on false alarms here that holds at every stopping time: the number of probes is fixed, and what the
rule is worth was measured on models and platforms that the classifier never saw. It speaks only when blocks of probes
that share nothing agree, and contradicts only a claim whose format is finer than what the answers show; a server that
computes more finely than it says has cheated nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from hspi import probes as probe_sets
from hspi.audits import rules
from hspi.audits.levels.level import Level, Offer, Refer
from hspi.audits.material import Material
from hspi.audits.plan import Plan
from hspi.audits.rules import EXACT, Findings
from hspi.detectors.number_format import BLOCKS, Formats, format_of
from hspi.errors import DataError
from hspi.evidence.aligned import ABSENT, Aligned
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS, likeliest, normaliser
from hspi.reference.store import cached_predictions, cached_reference
from hspi.verdict import Verdict

if TYPE_CHECKING:
    from hspi.audits.material import Probe
    from hspi.zoo import ModelRef

PROBES = 64  # asked for at this level
FEWEST = 8 * BLOCKS  # answers
REFERENCE = "reference.safetensors"
SIGNATURES = "signatures of these weights in this form (--candidates local,store), which tell platforms apart"


class Residual(Level):
    """Needs exact log-probabilities on tokens that are known, and the weights; tests a number format, no platform."""

    kind: ClassVar[str] = "residual"
    limits: ClassVar[str] = (
        "The number format of the weights' rounding, not the platform. No bound alpha holds here: the rule speaks "
        "where disjoint parts of the answers agree, and made no false accusation on models left out of training."
    )
    most: ClassVar[int | None] = PROBES
    reference: Aligned

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        if not offer.top or offer.cap.decimals is not None or offer.context is None or not offer.material.weights:
            return None
        how = f"prompts {offer.context}" if offer.context else "prompts as they stand"
        return cls(offer, f"{offer.numbers} at full precision and the weights, on {how}; {offer.lacks}")

    def prepare(self, plan: Plan, folder: Path, refer: Refer | None) -> None:
        """The reference of the plan's probes: the one in the folder, else made and put there."""
        if not plan.probes:
            return
        path, context = folder / REFERENCE, self.offer.context
        if not path.exists():
            if refer is None:
                raise DataError(f"{path} must hold the reference of these weights, but it is missing")
            refer(plan.probes, [p.variants[context] if context else p.ids for p in plan.probes]).save(path)
        self.reference = Aligned.load(path)
        if not np.isfinite(self.reference.predicted).all():  # what is NaN would look like a format that fits nothing
            raise DataError(f"{path} must hold what each number format foretells, but it lacks some")

    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        if said := unfit(found):
            return rules.inconclusive(self.material, plan, found, *said)
        told = self.material.detector.number_format.tell(self.reference, found.together())
        claimed = claimed_format(self.material)
        claim = self.material.settings.claimed
        outcome, why = said_of(told, claimed, None if claim is None else str(claim))
        return rules.conclusion(
            self.material,
            plan,
            found,
            outcome=outcome,
            why=why,
            formats={name: round(ends[0], 6) for name, ends in told.posterior.items()},
            failed_factors={"number format": [str(claimed), str(told.found)]} if outcome == "contradicted" else {},
            to_tell_more=SIGNATURES,
        )


def unfit(found: Findings) -> tuple[str, str] | None:
    """Why answers do not serve a level without candidates, and what would; None where they do."""
    if spoilt := found.spoilt():
        return spoilt, EXACT
    if len(found.seen) < FEWEST:
        return f"{FEWEST} usable answers are needed at least, but {len(found.seen)} came", "raise --max-tokens"
    return None


def claimed_format(material: Material) -> str | None:
    """The format that the claim comes to; None without a claim."""
    s = material.settings
    if s.claim_format is not None or s.claimed is None:
        return s.claim_format
    record = s.claimed.record([] if material.library is None else material.library.data.platforms)
    return None if record is None else format_of(record)


def said_of(told: Formats, claimed: str | None, platform: str | None) -> tuple[str, str]:
    """(outcome, why). A platform is never confirmed here: others have its number format too."""
    found = told.found
    if told.stray:
        return "inconclusive", "the answers stray from these weights: other weights or other tokens give them"
    if found is None:
        return "inconclusive", "no number format explains every part of the answers"
    if claimed is None:
        return "inconclusive", f"the number format is {found}; which platform it is was not tested"
    if told.excludes(claimed):
        return "contradicted", f"every part of the answers shows the number format {found}, none the claimed {claimed}"
    if found == claimed and platform is None:
        return "consistent", f"every part of the answers shows the number format {found}"
    if found == claimed:
        return "inconclusive", f"consistent with {platform}'s number format {found}; the platform was not tested"
    if claimed not in told.posterior:
        return "inconclusive", f"the answers look like {found}, but the detector was never shown {claimed}"
    return "inconclusive", f"the answers look like {found}, which is not coarse enough to contradict {claimed}"


# ---------------------------------------------------------------- the reference


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
    none = np.empty((0, 0, *slots.shape), np.float32)
    ranks, names = np.full(none.shape, ABSENT, np.uint8), [(p.set, p.id) for p in asked]
    arrays = (slots, reference, none, ranks, none[..., :1], lse, predicted)
    return Aligned(ref.id, [], [], names, *arrays, weights_hash=ref.weights_hash)
