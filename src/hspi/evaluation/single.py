"""Detectors that see one observation alone: statistics with trees at two levels, and the paper's HSPI-LD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.classifiers import Boosted, HspiLd
from hspi.evaluation.measures import Accuracy, macro_accuracy
from hspi.evidence.aligned import Aligned
from hspi.evidence.distribution import DISTRIBUTION_FEATURES, hspi_ld
from hspi.evidence.equivalence import Classes
from hspi.evidence.explained import all_statistics, class_features, family_features
from hspi.evidence.replay import F32
from hspi.platforms.families import format_family
from hspi.signatures.schema import Signature
from hspi.splits import Index, ProbeSplit, draw, partitions, split_probes

PROBES, TOP_K = 32, 20
TRAINING_SAMPLES = 12  # of each platform and setting
WORDS = "words"  # the probe set whose signatures hold the rows that the paper's protocol wants

# `residual` tells the family on any model; `residual-classes` adds what holds on the models trained on alone
FEATURES: dict[str, Callable[[F32], F32]] = {
    "residual": family_features,
    "residual-classes": class_features,
    "distribution": lambda mean: mean,
}
Samples = tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64], int]


def sample_table(
    statistics: F32, data: Aligned, labels: Sequence[str], settings: Sequence[int], samples: Index
) -> tuple[F32, npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Means over the probes of each sample: X (n, F), labels (n,), block (n,)."""
    xs, ys, blocks = [], [], []
    for c in range(len(data.platforms)):
        for s in settings:
            if data.present[c, s]:
                xs.append(statistics[c, s][samples].mean(axis=1))
                ys += [labels[c]] * len(samples)
                blocks.append(np.arange(len(samples)))
    return np.concatenate(xs), np.asarray(ys), np.concatenate(blocks)


class SingleBench:
    """One model's statistics of single observations, ready to be sampled; the distribution's are the last columns."""

    def __init__(self, data: Aligned, classes: Classes, seed: int) -> None:
        self.data, self.classes = data, classes
        self.split: ProbeSplit = split_probes(data.probes, seed)
        self.statistics = all_statistics(data, TOP_K)
        self.families = [format_family(p) for p in data.platforms]
        self.names = [classes.name(label) for label in classes.label]

    def _sampled(self, level: str, labels: Sequence[str], settings: Sequence[int], samples: Index) -> Any:
        columns = slice(-len(DISTRIBUTION_FEATURES), None) if level == "distribution" else slice(None)
        x, y, block = sample_table(self.statistics[..., columns], self.data, labels, settings, samples)
        return FEATURES[level](x), y, block

    def training(self, level: str, labels: Sequence[str], settings: Sequence[int], seed: int) -> Any:
        pool = np.concatenate([self.split.fit, self.split.calibrate])
        chosen = draw(pool, min(PROBES, len(pool)), TRAINING_SAMPLES, np.random.default_rng(seed))
        return self._sampled(level, labels, settings, chosen)

    def test(self, level: str, labels: Sequence[str], settings: Sequence[int], seed: int) -> Any:
        pool = self.split.test
        blocks = partitions(pool, min(PROBES, len(pool)), 8, np.random.default_rng(seed))
        found = self._sampled(level, labels, settings, blocks.reshape(-1, blocks.shape[2]))
        return (*found, blocks.shape[1])


def _fit_and_score(
    train: Sequence[tuple[F32, npt.NDArray[Any], Any]], test: Sequence[Samples], parameters: dict[str, Any], tokens: int
) -> Accuracy:
    x, y = np.concatenate([t[0] for t in train]), np.concatenate([t[1] for t in train])
    detector = Boosted(**parameters).fit(x, y)
    right = np.concatenate([(detector.predict(t[0]) == t[1]).astype(float) for t in test])
    truth = np.concatenate([t[1] for t in test])
    block = np.concatenate([t[2] + 100_000 * i for i, t in enumerate(test)])
    return macro_accuracy(right, truth, block, sum(t[3] for t in test), 1 / len(np.unique(y)), tokens)


def evaluate_single(
    benches: Sequence[SingleBench], parameters: dict[str, Any], step: Callable[[str], object] = lambda s: None
) -> dict[str, Accuracy]:
    """Number-format family on held-out probes and nuisance, and on held-out models; classes on held-out probes."""
    out: dict[str, Accuracy] = {}
    for level in ("residual", "distribution"):
        step(f"{level}: held-out probes")
        last = len(benches[0].data.nuisances) - 1
        classes = "residual-classes" if level == "residual" else level
        for name, table, labels_of in (("family", level, lambda b: b.families), ("macro", classes, lambda b: b.names)):
            train = [b.training(table, labels_of(b), list(range(last)), i) for i, b in enumerate(benches)]
            test = [b.test(table, labels_of(b), [last], i) for i, b in enumerate(benches)]
            out[f"{level}.probes.{name}_accuracy"] = _fit_and_score(train, test, parameters, PROBES)
        if len(benches) < 2:
            continue
        step(f"{level}: held-out models")
        folds = []
        for i, held in enumerate(benches):
            every = list(range(last + 1))
            train = [b.training(level, b.families, every, j) for j, b in enumerate(benches) if j != i]
            folds.append(_fit_and_score(train, [held.test(level, held.families, every, i)], parameters, PROBES))
        out[f"{level}.unseen_model.family_accuracy"] = mean_of(folds)
    return out


def mean_of(parts: Sequence[Accuracy]) -> Accuracy:
    """Mean of accuracies measured on disjoint data; the interval is the mean of the intervals, which is wider."""
    value, low, high, chance = (
        float(np.mean([getattr(p, f) for p in parts])) for f in ("value", "ci_low", "ci_high", "chance")
    )
    return Accuracy(value, low, high, chance, sum(p.samples for p in parts), parts[0].tokens)


class PaperBench:
    """One model's HSPI-LD samples: 4 prompts × positions × top-k of the words set, split by prompt."""

    def __init__(self, signatures: Sequence[Signature], classes: Classes, seed: int, batch: int = 4) -> None:
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
                own.append((name, hspi_ld(values[pool], batch)))

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


__all__ = ["PaperBench", "SingleBench", "evaluate_paper", "evaluate_single"]
