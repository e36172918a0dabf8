"""What an observation says of the logits behind it: intervals, as wide as the storage type's rounding.

A log-probability is a rounded logit less a normaliser. The normaliser is not known, but all logits of a probe share it,
and a run that is near says which multiple of the storage type's spacing it must be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hspi.evidence.replay import F32, top_slots

Floats = npt.NDArray[np.float64]
FP32 = 23
FINE = 0.01  # of a spacing of the number type: nearer than this is as good as equal
DOUBT = 1e-3  # probability of a logit that no book foretells


@dataclass(frozen=True, slots=True)
class Target:
    """columns (T,): which of the P·K logits were observed; middle, half (T,): the interval that each lies in;
    fine (T,): distances below it do not count; probe (T,): whose logit it is. centred: only differences within a probe
    count."""

    columns: npt.NDArray[np.int64]
    middle: Floats
    half: Floats
    fine: Floats
    probe: npt.NDArray[np.int64]
    centred: bool

    @classmethod
    def of(cls, logprobs: F32, rank: npt.NDArray[np.uint8], k: int, near: Floats, mantissa: tuple[int, int]) -> Target:
        """near (P, K): the logits of a run that is near; mantissa: bits of the storage and of the number type."""
        stored, number = mantissa
        slots = top_slots(rank, k).astype(np.int64)
        row, at = np.nonzero(slots >= 0)
        slot = slots[row, at]
        below = logprobs.astype(float)[row, slot] - logprobs.astype(float)[row, slots[row, 0]]
        logits = near[row, slot]
        apart = np.full(slots.shape, np.nan)
        apart[row, at] = logits - below
        top = np.nanmedian(apart, axis=1)
        if stored < FP32:
            top = _snap(top, spacing(top, stored))
        middle = below + top[row]
        width = spacing(middle, stored)
        if stored < FP32:
            middle = _snap(middle, width)
        fine = FINE * spacing(middle, number)
        return cls(row * near.shape[1] + slot, middle, width / 2, fine, row, stored >= FP32)

    def log_likelihood(self, logits: Floats, unknown: Floats, variance: Floats) -> Floats:
        """logits (M, T) foretold, up to the part `unknown` (M,) of their variance (T,) → (M,)."""
        from scipy.special import ndtr

        by_probe = np.bincount(self.probe, variance) / np.maximum(np.bincount(self.probe), 1)
        sigma = np.sqrt(unknown[:, None] * by_probe[self.probe] + self.fine**2)
        off = self._apart(logits)
        half = np.maximum(self.half, 0.25 * sigma)
        inside = ndtr((off + half) / sigma) - ndtr((off - half) / sigma)
        return np.asarray(np.log(inside + DOUBT).sum(axis=1))

    def distance(self, logits: Floats) -> float:
        """Of a run (P·K,): mean over probes of log10 of one plus the mean squared distance beyond the intervals, in
        units of `fine`."""
        beyond = np.maximum(np.abs(self._apart(logits[self.columns][None])[0]) - self.half, 0) / self.fine
        mean = np.bincount(self.probe, beyond**2) / np.maximum(np.bincount(self.probe), 1)
        return float(np.log10(1 + mean).mean())

    def _apart(self, logits: Floats) -> Floats:
        off = logits - self.middle
        if self.centred:
            count = np.maximum(np.bincount(self.probe), 1)
            off = off - np.stack([np.bincount(self.probe, o) / count for o in off])[:, self.probe]
        return off


def spacing(x: Floats, mantissa_bits: int) -> Floats:
    """Of numbers with this many mantissa bits, at x (subnormals left out)."""
    return np.asarray(2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 1e-6))) - mantissa_bits))


def _snap(x: Floats, width: Floats) -> Floats:
    return np.asarray(np.round(x / width) * width)
