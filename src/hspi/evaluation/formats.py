"""Detectors that see one observation alone, under the protocol: the number format, and the class, at two levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import PROBES, SampleBench, Samples
from hspi.evaluation.measures import Accuracy, macro_accuracy, mean_of
from hspi.evidence.replay import F32


def _fit_and_score(
    train: Sequence[tuple[F32, npt.NDArray[Any], Any]], test: Sequence[Samples], parameters: dict[str, Any], tokens: int
) -> Accuracy:
    x, y = np.concatenate([t[0] for t in train]), np.concatenate([t[1] for t in train])
    detector = Boosted(**parameters).fit(x, y)
    right = np.concatenate([(detector.predict(t[0]) == t[1]).astype(float) for t in test])
    truth = np.concatenate([t[1] for t in test])
    block = np.concatenate([t[2] + 100_000 * i for i, t in enumerate(test)])
    return macro_accuracy(right, truth, block, sum(t[3] for t in test), 1 / len(np.unique(y)), tokens)


def evaluate_formats(
    benches: Sequence[SampleBench], parameters: dict[str, Any], step: Callable[[str], object] = lambda s: None
) -> dict[str, Accuracy]:
    """Number format on held-out probes and on held-out models; classes on held-out probes."""
    out: dict[str, Accuracy] = {}
    for level in ("residual", "distribution"):
        step(f"{level}: held-out probes")
        classes = "residual-classes" if level == "residual" else level
        for name, table, labels_of in (("family", level, lambda b: b.formats), ("macro", classes, lambda b: b.names)):
            train = [b.training(table, labels_of(b), b.settings, i) for i, b in enumerate(benches)]
            test = [b.test(table, labels_of(b), b.settings, i) for i, b in enumerate(benches)]
            out[f"{level}.probes.{name}_accuracy"] = _fit_and_score(train, test, parameters, PROBES)
        if len(benches) < 2:
            continue
        step(f"{level}: held-out models")
        folds = []
        for i, held in enumerate(benches):
            train = [b.training(level, b.formats, b.settings, j) for j, b in enumerate(benches) if j != i]
            folds.append(_fit_and_score(train, [held.test(level, held.formats, held.settings, i)], parameters, PROBES))
        out[f"{level}.unseen_model.family_accuracy"] = mean_of(folds)
    return out
