"""What the levels that see a number format alone may say of a claim."""

from __future__ import annotations

from hspi.audit.conclude import EXACT, Findings, conclusion, inconclusive
from hspi.audit.material import Material
from hspi.audit.plan import Plan
from hspi.detectors.number_format import BLOCKS, Formats, format_of, lean
from hspi.evidence.aligned import Aligned
from hspi.platforms import catalogue
from hspi.verdict import Verdict

FEWEST = 8 * BLOCKS  # answers
SIGNATURES = "signatures of these weights in this form (--candidates local,store), which tell platforms apart"


def conclude_formats(material: Material, plan: Plan, found: Findings, reference: Aligned | None) -> Verdict:
    """`reference`: of the contexts that were asked; without it the answers' own grid is all there is."""
    if spoilt := found.spoilt():
        return inconclusive(material, plan, found, spoilt, EXACT)
    if len(found.seen) < FEWEST:
        few = f"{FEWEST} usable answers are needed at least, but {len(found.seen)} came"
        return inconclusive(material, plan, found, few, "raise --max-tokens")
    seen = found.together()
    if reference is None:
        return inconclusive(material, plan, found, f"no detector is trained on this level; {lean(seen)}", EXACT)
    told = material.detector.number_format.tell(reference, seen)
    claimed = claimed_format(material)
    outcome, why = said_of(told, claimed, material.settings.claim)
    factors = {"number format": [str(claimed), str(told.found)]} if outcome == "contradicted" else {}
    lowest = {name: round(ends[0], 6) for name, ends in told.posterior.items()}
    return conclusion(
        material,
        plan,
        found,
        outcome=outcome,
        why=why,
        formats=lowest,
        failed_factors=factors,
        to_tell_more=SIGNATURES,
    )


def claimed_format(material: Material) -> str | None:
    s = material.settings
    if s.claim_format is not None or s.claim is None:
        return s.claim_format
    known = {} if material.library is None else {p.id: p for p in material.library.data.platforms}
    return format_of(known.get(s.claim) or catalogue.get(s.claim))


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
