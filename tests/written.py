"""Small signatures: a header, what probe i answers, and a file of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header

HEADER = Header(
    platform=Platform("p", "pytorch", env={"A": "1"}, needs_cpu=("avx2",)),
    model="m",
    weights_hash="w",
    probe_set="text",
    probe_hash="h",
    nuisance=Nuisance("b2", 2),
    positions=2,
    top_k=3,
    facts={"torch": "0"},
    created="2026-01-01T00:00:00+00:00",
)


def answers(probe_ids: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """What probe i answers, whatever the batch: ids and log-probabilities (n, positions, k)."""
    rows = [np.random.default_rng(i) for i in probe_ids]
    values = np.stack([-np.sort(r.exponential(size=(2, 3))).astype(np.float32) for r in rows])
    return np.stack([r.permutation(9)[:6].reshape(2, 3) for r in rows]).astype(np.int32), values


def write(path: Path, batches: list[list[int]], header: Header = HEADER) -> Path:
    with Journal(path, header) as journal:
        for probes in batches:
            if not journal.done.issuperset(probes):
                journal.append(to_batch(journal.schema, np.array(probes), 5, *answers(probes)))
        return journal.finish()
