"""Training the pair verifier: which samples it sees, and the calibration of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hspi.detectors.calibration import Calibration, fit_temperature
from hspi.detectors.estimators import Boosted
from hspi.detectors.unsteady import origin, with_twins
from hspi.detectors.verifier import (
    MONOTONE,
    Comparisons,
    Table,
    class_scores,
    score,
    self_scores,
    tabulate,
    training_rows,
)
from hspi.evidence.aligned import Aligned
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library
from hspi.splits import ProbeSplit, draw, split_probes

# (probes, top-k, samples of each observation): sizes that an API gives, mixed, so that one verifier serves them all
TRAINING_SIZES = ((32, 20, 6), (8, 20, 6), (2, 20, 8), (1, 20, 12), (32, 5, 3), (8, 5, 6), (1, 5, 8))
OWN_SAMPLES = 60  # of each setting: with three settings, p-values down to 1/181
CALIBRATION_SIZES = ((32, 20), (8, 20), (1, 20), (32, 5), (8, 5), (1, 5))


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, ready to be sampled: its comparisons by top-k, its classes and its split of probes.

    unsteady: twins of some platforms, to train with alone (`detectors/unsteady.py`).
    """

    library: Library
    split: ProbeSplit
    comparisons: dict[int, Comparisons]
    unsteady: Bench | None = None

    @classmethod
    def of(cls, library: Library, seed: int, top_ks: Sequence[int] = (20, 5)) -> Bench:
        """To train with; seed splits the probes, and draws the twins' noise."""
        return replace(cls.plain(library, seed, top_ks), unsteady=cls.plain(with_twins(library, seed), seed, top_ks))

    @classmethod
    def plain(cls, library: Library, seed: int, top_ks: Sequence[int]) -> Bench:
        """Without twins: to score on, not to train with."""
        pairs = {k: Comparisons.of(library.data, k) for k in top_ks}
        return cls(library, split_probes(library.data.probes, seed), pairs)

    @property
    def data(self) -> Aligned:
        return self.library.data

    @property
    def classes(self) -> Classes:
        return self.library.classes

    @property
    def settings(self) -> list[int]:
        return list(range(len(self.data.nuisances)))

    def settings_but(self, held_out: str | None) -> list[int]:
        return [s for s in self.settings if self.data.nuisances[s] != held_out]


def fit_verifier(
    benches: Sequence[Bench],
    *,
    parameters: dict[str, Any] | None = None,
    held_out_setting: str | None = None,
    dropped: Sequence[str] = (),
    permute: bool = False,
    sizes: Sequence[tuple[int, int, int]] = TRAINING_SIZES,
) -> Boosted:
    """Fit on the `fit` probes of these models, without one nuisance setting and without some platforms.

    parameters: of `Boosted`; sizes: (probes, top-k, samples of each observation) that are mixed; permute: give each
    sample the label of another one (the null of the protocol). Raises DataError without a second setting.
    """
    rng = np.random.default_rng(0)
    xs, ys, ws = [], [], []
    for bench in [*benches, *(b.unsteady for b in benches if b.unsteady)]:
        drop = [i for i, p in enumerate(bench.data.platform_ids()) if origin(p) in set(dropped)]
        keep = [i for i in range(len(bench.data.platforms)) if i not in drop]
        if not keep:  # few platforms, and every one that has twins is held out
            continue
        settings = bench.settings_but(held_out_setting)
        for n, k, samples in sizes:
            pairs = bench.comparisons[k]
            chosen = draw(bench.split.fit, min(n, len(bench.split.fit)), samples, rng)
            table = tabulate(
                pairs,
                pairs.observed(settings, keep),
                settings,
                chosen,
                bench.split.calibrate,
            )
            if permute:
                table = Table(table.features, rng.permutation(table.truth), table.setting, table.block, table.distance)
            x, y, w = training_rows(table, bench.classes, rng, drop)
            xs.append(x)
            ys.append(y)
            ws.append(w)
    verifier = Boosted(**{"monotone": MONOTONE, **(parameters or {})})
    return verifier.fit(np.concatenate(xs), np.concatenate(ys), sample_weight=np.concatenate(ws))


def calibrate(verifier: Boosted, benches: Sequence[Bench], held_out_setting: str | None = None) -> Calibration:
    """Levels of the verifier's scores on the `calibrate` probes, which it was not fitted on, at CALIBRATION_SIZES.

    held_out_setting: left out of observations and libraries alike.
    """
    rng = np.random.default_rng(1)
    true_scores: dict[str, list[float]] = {}
    temperatures, unknown = [], []
    for n, k in CALIBRATION_SIZES:
        right: list[float] = []
        for bench in benches:
            settings = bench.settings_but(held_out_setting)
            pool = bench.split.calibrate
            pairs = bench.comparisons[k]
            samples = draw(pool, min(n, len(pool)), 12, rng)
            table = tabulate(pairs, pairs.observed(settings), settings, samples, bench.split.fit)
            found = class_scores(score(verifier, table), bench.classes)
            truth = np.asarray(bench.classes.label)[table.truth]
            rows = np.arange(len(truth))
            right.extend(found[rows, truth].tolist())
            temperatures.append(fit_temperature(found, truth))
            if n == 32:
                others = found.copy()
                others[rows, truth] = -np.inf
                unknown.append((np.quantile(found[rows, truth], 0.005), np.quantile(others.max(axis=1), 0.995)))
        true_scores[f"{n}x{k}"] = sorted(right)
    # Between what right candidates hardly ever fall below and wrong ones hardly ever reach.
    level = float(np.mean([0.5 * (a + b) for a, b in unknown])) if unknown else 0.0
    own = own_scores(verifier, benches, held_out_setting, rng)
    return Calibration(true_scores, float(np.median(temperatures)), level, own)


def own_scores(
    verifier: Boosted, benches: Sequence[Bench], held_out_setting: str | None, rng: np.random.Generator
) -> dict[str, dict[str, list[float]]]:
    """Each class's scores against itself, setting against setting: {"model/class": {"32x20": sorted scores}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for bench in benches:
        settings = bench.settings_but(held_out_setting)
        for n, k in CALIBRATION_SIZES:
            samples = draw(bench.split.calibrate, min(n, len(bench.split.calibrate)), OWN_SAMPLES, rng)
            for i, label in enumerate(bench.classes.label):
                scores = self_scores(verifier, bench.comparisons[k], i, settings, samples, bench.split.fit)
                name = f"{bench.data.model}/{bench.classes.name(label)}"
                own = found.setdefault(name, {}).setdefault(f"{n}x{k}", [])
                own.extend(scores.tolist())
    return {name: {size: sorted(s) for size, s in by_size.items() if s} for name, by_size in found.items()}
