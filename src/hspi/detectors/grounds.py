"""What speaks against a claim that its own signatures do not fit: one rule, for files and for endpoints.

That an observation is unlike the claim's signatures is no ground to accuse: it may come from a batch class that nobody
collected, and such a class may be as far from the platform's others as the next platform is. The pattern of residuals
parts the two at no distance: a bound from the classes seen of an engine and number format accused held-out ones. Their
size does, for another kernel rounds otherwise, not more. So a claim is contradicted where besides

- a rival's signature fits, bit for bit, that the claimed software cannot be in disguise, or
- the residuals exclude the claimed number format for a coarser one, or
- the claim names its hardware, and residuals are far larger than its own: other weights, or a much coarser computation.

Nothing speaks against a claim whose own signatures gave these very values, whatever its levels say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hspi.detectors.number_format import Formats, format_of
from hspi.evidence.aligned import Aligned
from hspi.evidence.replay import F32, PAIR_FEATURES
from hspi.platforms.record import Platform

FITS = 0.98  # share of values that are bit for bit equal; a class that is served again gives all of them
# log10 of squared residuals over another's. Two batch classes of one platform differed by 0.8 at most (32 probes;
# the shipped datasets' torch-fp32-strict and torch-int8-x86), one number format and the next finer one by 1 to 8.
LIKE, STRAYS = 0.8, 2.0
EQUAL, MISSING, SCALE, DISTANCE = (PAIR_FEATURES.index(n) for n in ("equal", "missing", "scale_ratio", "distance"))
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Grounds:
    """Of one library's C platforms. label: what a verdict tells apart; steady, complete: as `Aligned` has them."""

    platforms: tuple[Platform, ...]
    label: tuple[int, ...]
    steady: tuple[bool, ...]
    complete: tuple[bool, ...]

    @classmethod
    def of(cls, data: Aligned, label: Sequence[int]) -> Grounds:
        return cls(tuple(data.platforms), tuple(label), tuple(data.steady), tuple(data.complete))

    def without(self, platform: int) -> Grounds:
        """The same where one of a platform's classes is not known."""
        return replace(self, complete=tuple(x and i != platform for i, x in enumerate(self.complete)))

    def fits(self, pairs: F32, agrees: Bools) -> Bools:
        """Which candidates the answers are those of: (…, C).

        pairs (…, C, F): pair features; agrees (…, C): where the verifier takes both for one platform, which is all that
        can be asked of an unsteady one, beside residuals of its own size.
        """
        alike = agrees & (np.abs(np.nan_to_num(pairs[..., SCALE], nan=np.inf)) <= LIKE)
        return np.where(np.asarray(self.steady), self.same(pairs), alike)

    @staticmethod
    def same(pairs: F32) -> Bools:
        """Which candidates gave these very values: (…, C)."""
        return np.asarray((pairs[..., EQUAL] >= FITS) & (pairs[..., MISSING] <= 1 - FITS))

    def others(self, claimed: Sequence[int], hardware: bool) -> Bools:
        """Whose very values contradict a claim that the platforms `claimed` are: (C,). hardware: whether it names any.

        Those of another engine or number format do, and those with other kernels. The same software on other hardware
        or held to another ISA may share kernels with a batch class of the claim's: it counts only against a claim that
        names its hardware, and where no batch class is missing.
        """
        own = {self.label[i] for i in claimed}
        whole = hardware and all(self.complete[i] for i in claimed)
        recipes = {self.platforms[i].recipe for i in claimed}
        return np.array(
            [
                bool(claimed) and self.label[r] not in own and (whole or p.recipe not in recipes)
                for r, p in enumerate(self.platforms)
            ]
        )

    def rivals(self, claimed: Sequence[int], hardware: bool) -> Bools:
        """Whose likeness alone contradicts such a claim: (C,).

        What an unsteady one of the others may answer is wide. So it counts only if its number format is another, or
        beside steady quantized platforms on the hardware that the claim names: their errors of quantizing stay where
        the batch changes, so that a class of theirs that nobody collected is nearer to them than to the rival.
        """
        formats = {format_of(self.platforms[i]) for i in claimed}
        known = hardware and all(self.steady[i] and self.platforms[i].quantization != "none" for i in claimed)
        told = [s or known or format_of(p) not in formats for s, p in zip(self.steady, self.platforms, strict=True)]
        return np.asarray(self.others(claimed, hardware) & np.array(told))

    def speaks(self, claimed: Sequence[int], hardware: bool, fits: Bools, pairs: F32) -> Bools:
        """The rivals that gave these very values, or fit; none where somebody claimed gave these values: (…, C).

        fits (…, C), pairs (…, C, F). An unsteady rival that fits must be nearer than everybody claimed as well: it fits
        whatever is no farther from it than it is from itself, honest platforms on hardware that nobody collected among
        them.
        """
        own, same = list(claimed), self.same(pairs)
        distance = np.nan_to_num(pairs[..., DISTANCE], nan=np.inf)
        nearer = distance < distance[..., own].min(axis=-1, initial=np.inf, keepdims=True)
        alike = fits & self.rivals(claimed, hardware) & (np.asarray(self.steady) | nearer)
        theirs = same[..., own].any(axis=-1, keepdims=True)
        return np.asarray((alike | (same & self.others(claimed, hardware))) & ~theirs)

    def decides(self, claimed: Sequence[int], hardware: bool, same: Bools) -> Bools:
        """Whether a rival gave these very values and nobody claimed did, which needs no level: (…).

        same (…, C). A platform whose answers vary is never excluded by its own levels from what lies among them, but
        it does not give another's values bit for bit.
        """
        others = self.others(claimed, hardware)
        return np.asarray((same & others).any(axis=-1) & ~same[..., list(claimed)].any(axis=-1))

    @staticmethod
    def strays(claimed: Sequence[int], hardware: bool, pairs: F32) -> Bools:
        """Whether residuals are far larger than those of every platform that the claim may mean: (…). pairs (…, C, F).

        Of other hardware nothing is known: the same software may compute in a coarser format there.
        """
        if not claimed or not hardware:
            return np.zeros(pairs.shape[:-2], bool)
        return np.asarray(np.nan_to_num(pairs[..., list(claimed), SCALE], nan=-np.inf).min(axis=-1) > STRAYS)

    def against(self, claimed: Sequence[int], hardware: bool, fits: Bools, pairs: F32 | None) -> str:
        """Whose answers they are, or that they are nobody's who rounds as is claimed; nothing where neither holds.

        fits (C,); pairs (C, F), None where residuals are not seen.
        """
        if pairs is None:
            found = np.flatnonzero(fits & self.rivals(claimed, hardware))
        else:
            found = np.flatnonzero(self.speaks(claimed, hardware, fits, pairs))
        if len(found):
            return f"the answers are those of {self.platforms[int(found[0])].id}"
        if pairs is not None and self.strays(claimed, hardware, pairs):
            return "its residuals are far larger: other weights answer, or a much coarser computation"
        return ""


def not_tested(claim: str, claimed: str | None, told: Formats | None) -> str:
    """What is said where no candidate is what is claimed, and its number format, if any, does not fall."""
    said = f"no candidate is {claim}, so the claim itself was not tested"
    return f"{said}; its number format, {claimed}, was, and is not contradicted" if claimed and told else said


def against_format(told: Formats | None, claimed: str | None) -> str:
    """What the residuals say against a claimed number format, or nothing."""
    if told is None or claimed is None or not told.excludes(claimed):
        return ""
    return f"every part of the answers shows the number format {told.found}, none the claimed {claimed}"
