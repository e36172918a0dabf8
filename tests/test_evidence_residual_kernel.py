"""The compiled pass says what its specification in NumPy says."""

from __future__ import annotations

import numpy as np
import pytest

from hspi.evidence.aligned import Aligned
from hspi.evidence.residual import gather, residual_statistics, statistics_of
from hspi.platforms.record import Platform


def made_up(scale: float, missing: float, tied: bool, seed: int = 0) -> Aligned:
    """Two platforms, two settings, noise of a given size; some tokens stand in no slot, some values are equal."""
    rng = np.random.default_rng(seed)
    p, slots, k = 40, 64, 32
    reference = np.sort(-rng.exponential(4, (p, slots)))[:, ::-1].copy()
    logprobs = (reference + scale * rng.standard_normal((2, 2, p, slots))).astype(np.float32)
    if tied:
        logprobs = (np.round(logprobs * 16) / 16).astype(np.float32)
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    rank = np.full(logprobs.shape, 255, np.uint8)
    np.put_along_axis(
        rank, order[..., :k], np.broadcast_to(np.arange(k, dtype=np.uint8), order[..., :k].shape), axis=-1
    )
    raw = np.take_along_axis(logprobs, order[..., :k], axis=-1)
    gone = rng.random(rank.shape) < missing
    rank[gone] = 255
    logprobs[rank == 255] = np.nan
    raw[:, :, 0, 20:] = np.nan  # a row that came short
    records = [Platform(f"p{i}", "none", "emulated") for i in range(2)]
    place = np.broadcast_to(np.arange(slots, dtype=np.int32), (p, slots)).copy()
    names = [("text", i) for i in range(p)]
    return Aligned("m", records, [{"a": "", "b": ""}] * 2, names, place, reference, logprobs, rank, raw)


@pytest.mark.parametrize("k", [2, 5, 20, 32])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("scale", "missing"), [(1e-7, 0.0), (1e-2, 0.3), (3.0, 0.0), (0.0, 0.9)])
def test_kernel_equals_its_specification(k: int, tied: bool, scale: float, missing: float) -> None:
    data = made_up(scale, missing, tied)
    found = statistics_of(data, k)
    for c, s in np.ndindex(2, 2):
        residual, reference = gather(data, c, s, k)
        np.testing.assert_allclose(
            found[c, s], residual_statistics(residual, reference, data.raw[c, s, :, :k]), rtol=2e-5, atol=2e-6
        )
