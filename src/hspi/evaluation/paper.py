"""HSPI-LD, the paper's own method (arXiv 2411.05197, section 4.2), on the splits that every other level has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.estimators import HspiLd
from hspi.evaluation.measures import Accuracy, macro_accuracy, mean_of
from hspi.evidence.distribution import hspi_ld
from hspi.evidence.equivalence import Classes
from hspi.evidence.replay import F32
from hspi.signatures.schema import Signature
from hspi.splits import split_probes

WORDS = "words"  # the probe set whose signatures hold the rows that the paper's protocol wants


class PaperBench:
    """One model's HSPI-LD samples: 4 prompts × positions × top-k of the words set, split by prompt."""

    def __init__(self, signatures: Sequence[Signature], classes: Classes, seed: int) -> None:
        words = [s for s in signatures if s.header.probe_set == WORDS and s.header.platform.id in classes.platform_ids]
        size = max(int(s.probe_id.max()) + 1 for s in words)
        split = split_probes([(WORDS, i) for i in range(size)], seed)
        train, test = np.concatenate([split.fit, split.calibrate]), split.test
        self.settings = sorted({s.header.nuisance.name for s in words})
        self.rows: dict[str, dict[str, list[tuple[str, F32]]]] = {"train": {}, "test": {}}
        for s in words:
            values = s.topk_logprobs.reshape(size, s.header.positions, s.header.top_k)
            name = classes.name(classes.label[classes.platform_ids.index(s.header.platform.id)])
            for part, pool in (("train", train), ("test", test)):
                own = self.rows[part].setdefault(s.header.nuisance.name, [])
                own.append((name, hspi_ld(values[pool])))

    def samples(self, part: str, settings: Sequence[str]) -> tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64]]:
        rows = [r for s in settings for r in self.rows[part].get(s, [])]
        x = np.concatenate([f for _, f in rows])
        y = np.concatenate([[name] * len(f) for name, f in rows])
        return x, y, np.concatenate([np.arange(len(f)) for _, f in rows])


def evaluate_paper(
    benches: Sequence[PaperBench], step: Callable[[str], object] = lambda s: None
) -> dict[str, Accuracy]:
    """The paper's detector on the same splits: a machine for each model (white-box), and one for a model never seen."""
    out: dict[str, Accuracy] = {}
    white = []
    for i, bench in enumerate(benches):
        step(f"HSPI-LD: held-out probes, model {i + 1}/{len(benches)}")
        x, y, _ = bench.samples("train", bench.settings[:-1])
        detector = HspiLd().fit(x, y)
        white.append(_paper_score(detector, bench, bench.settings[-1:]))
    out["hspi_ld.probes.macro_accuracy"] = mean_of(white)
    if len(benches) > 1:
        black = []
        for i, bench in enumerate(benches):
            step(f"HSPI-LD: held-out model {i + 1}/{len(benches)}")
            parts = [b.samples("train", b.settings[:1]) for j, b in enumerate(benches) if j != i]
            detector = HspiLd().fit(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            black.append(_paper_score(detector, bench, bench.settings[:1]))
        out["hspi_ld.unseen_model.macro_accuracy"] = mean_of(black)
    return out


def _paper_score(detector: HspiLd, bench: PaperBench, settings: Sequence[str]) -> Accuracy:
    x, y, block = bench.samples("test", settings)
    right = (detector.predict(x) == y).astype(float)
    return macro_accuracy(right, y, block, len(np.unique(block)), 1 / len(detector.classes_), 32)
