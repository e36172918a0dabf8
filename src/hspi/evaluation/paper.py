"""HSPI-LD, the paper's own method (arXiv 2411.05197, section 4.2), on the splits that every other level has.

The paper joins 4 prompts of 8 tokens with 256 values each into a sample. What ships has one token and 64 values a
prompt, so a sample joins 32 prompts: as many tokens, a quarter of the values. On samples of the full size the method
did no better (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.estimators import HspiLd
from hspi.evaluation.measures import Accuracy, macro_accuracy, mean_of
from hspi.evidence.distribution import hspi_ld
from hspi.evidence.library import Library
from hspi.evidence.replay import F32
from hspi.splits import Index, draw, partitions, split_probes

PROMPTS = 32  # in a sample
TRAINING_SAMPLES, REPEATS = 4, 4  # of each platform; partitions of the test probes


class PaperBench:
    """One model's HSPI-LD samples, split by prompt: prompts × top-k of one token each."""

    def __init__(self, library: Library, seed: int) -> None:
        self.library = library
        self.raw = library.data.raw
        split = split_probes(library.data.probes, seed)
        pool, rng = np.concatenate([split.fit, split.calibrate]), np.random.default_rng(seed)
        self.train = draw(pool, min(PROMPTS, len(pool)), TRAINING_SAMPLES, rng)
        blocks = partitions(split.test, min(PROMPTS, len(split.test)), REPEATS, rng)
        self.test, self.per_partition = blocks.reshape(-1, blocks.shape[2]), blocks.shape[1]

    def samples(self, chosen: Index) -> tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64]]:
        """(X, class names, block): each sample of prompts (B, n) of every platform, in its first batch class alone: a
        machine for each pair of classes takes its time."""
        classes, rows = self.library.classes, [row for row in self.library.data.rows if row[1] == 0]
        values = [hspi_ld(self.raw[c, s][chosen].reshape(-1, 1, self.raw.shape[-1]), chosen.shape[1]) for c, s in rows]
        names = np.repeat([classes.name(classes.label[c]) for c, _ in rows], len(chosen))
        return np.concatenate(values), names, np.tile(np.arange(len(chosen)), len(rows))


def evaluate_paper(
    benches: Sequence[PaperBench], step: Callable[[str], object] = lambda s: None
) -> dict[str, Accuracy]:
    """The paper's detector on the same splits: a machine for each model (white-box), and one for a model never seen."""
    out: dict[str, Accuracy] = {}
    white = []
    for i, bench in enumerate(benches):
        step(f"HSPI-LD: held-out probes, model {i + 1}/{len(benches)}")
        white.append(_score(HspiLd().fit(*bench.samples(bench.train)[:2]), bench))
    out["hspi_ld.probes.macro_accuracy"] = mean_of(white)
    if len(benches) > 1:
        black = []
        for i, bench in enumerate(benches):
            step(f"HSPI-LD: held-out model {i + 1}/{len(benches)}")
            parts = [b.samples(b.train[:2]) for j, b in enumerate(benches) if j != i]
            detector = HspiLd().fit(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            black.append(_score(detector, bench))
        out["hspi_ld.unseen_model.macro_accuracy"] = mean_of(black)
    return out


def _score(detector: HspiLd, bench: PaperBench) -> Accuracy:
    x, y, block = bench.samples(bench.test)
    right = (detector.predict(x) == y).astype(float)
    return macro_accuracy(right, y, block, bench.per_partition, 1 / len(detector.classes_), PROMPTS)
