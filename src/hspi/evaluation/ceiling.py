"""What no detector can pass on one answer: classes that give the same bits there are told apart by guessing alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hspi.detectors.training import Bench
from hspi.evaluation.replay import alike
from hspi.evidence.replay import top_slots


def one_probe_ceiling(benches: Sequence[Bench], k: int) -> float:
    """The greatest macro accuracy on one test probe, over all models' classes: whoever knows every platform's bits and
    how often each batch class occurs (here: alike often) names the likeliest class of those that give them.

    k: tokens of an answer. An answer in company, which nobody repeats, counts as always told, so that the figure is
    still too high where platforms are unsteady.
    """
    by_class = [_of_model(bench, k) for bench in benches]
    return float(np.mean(np.concatenate(by_class)))


def _of_model(bench: Bench, k: int) -> np.ndarray:
    data, label = bench.data, np.asarray(bench.classes.label)
    rows = data.rows
    share = 1 / np.bincount([label[c] for c, _ in rows], minlength=bench.classes.count)
    told = {row: alike(bench, row) for row in rows}
    right = np.zeros((bench.classes.count, len(bench.split.test)))
    for j, p in enumerate(bench.split.test):
        groups: dict[object, list[tuple[int, int]]] = defaultdict(list)
        for c, s in rows:
            slots = top_slots(data.rank[c, s, p][None], k)
            bits = data.logprobs[c, s, p][slots].tobytes() + slots.tobytes()
            groups[bits if data.repeats(c, s) else (c, s)].append((c, s))
        for some in groups.values():
            best = sum(share[label[c]] * told[c, s] for c, s in some).argmax()  # type: ignore[union-attr]
            for c, s in some:
                right[label[c], j] += share[label[c]] * told[c, s][best]
    return np.asarray(right.mean(axis=1))
