"""Training the pair verifier: which samples it sees, and the calibration of its scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import Calibration, OwnScores, fit_temperature
from hspi.detectors.estimators import Boosted
from hspi.detectors.unsteady import origin, with_twins
from hspi.detectors.verifier import (
    ALL_EQUAL,
    MONOTONE,
    Comparisons,
    Row,
    class_scores,
    score,
    self_rows,
    self_scores,
    spread,
    tabulate,
    training_rows,
)
from hspi.evidence.aligned import Aligned
from hspi.evidence.equivalence import Classes
from hspi.evidence.library import Library
from hspi.splits import ProbeSplit, draw, split_probes

# (probes, top-k, samples of each observation): sizes that an API gives, mixed, so that one verifier serves them all
TRAINING_SIZES = ((32, 20, 6), (8, 20, 6), (2, 20, 8), (1, 20, 12), (32, 5, 3), (8, 5, 6), (1, 5, 8))
OWN_SAMPLES = 240  # of each setting: p-values down to 1/241
CALIBRATION_SIZES = ((32, 20), (8, 20), (1, 20), (32, 5), (8, 5), (1, 5))

Held = Mapping[str, Collection[Row]]
"""By model, the (platform, setting) that are not observed."""


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
        apart = library.classes.distance
        pairs = {k: Comparisons.of(library.data, k, None if np.isnan(apart).all() else apart) for k in top_ks}
        return cls(library, split_probes(library.data.probes, seed), pairs)

    @property
    def data(self) -> Aligned:
        return self.library.data

    @property
    def classes(self) -> Classes:
        return self.library.classes

    def observed(self, held: Collection[Row] = (), but: Collection[int] = ()) -> list[Row]:
        """What was collected, less the rows `held` and the platforms `but`."""
        return [row for row in self.data.rows if row not in held and row[0] not in but]


def fit_verifier(
    benches: Sequence[Bench],
    *,
    parameters: dict[str, Any] | None = None,
    held: Held | None = None,
    dropped: Collection[str] = (),
    permute: bool = False,
    sizes: Sequence[tuple[int, int, int]] = TRAINING_SIZES,
) -> Boosted:
    """Fit on the `fit` probes of these models, without the rows `held` and without the platforms `dropped`.

    A steady platform is beside itself with the class that is observed, for it answers so again; an unsteady one without
    that setting, so that the verifier learns what company changes. parameters: of `Boosted`; sizes: (probes, top-k,
    samples of each observation) that are mixed; permute: give each sample the label of another one (the null of the
    protocol).
    """
    rng = np.random.default_rng(0)
    xs, ys, ws = [], [], []
    for bench in [*benches, *(b.unsteady for b in benches if b.unsteady)]:
        drop = [i for i, p in enumerate(bench.data.platform_ids()) if origin(p) in dropped]
        rows = bench.observed((held or {}).get(bench.data.model, ()) if bench.unsteady else (), drop)
        if not rows:  # few platforms, and every one that has twins is held out
            continue
        for n, k, samples in sizes:
            chosen = draw(bench.split.fit, min(n, len(bench.split.fit)), samples, rng)
            table = tabulate(bench.comparisons[k], rows, chosen, bench.split.calibrate, apart=False)
            if permute:
                table = replace(table, truth=rng.permutation(table.truth))
            x, y, w = training_rows(table, bench.classes, rng, drop)
            xs.append(x)
            ys.append(y)
            ws.append(w)
    verifier = Boosted(**{"monotone": MONOTONE, **(parameters or {})})
    return verifier.fit(np.concatenate(xs), np.concatenate(ys), sample_weight=np.concatenate(ws))


def calibrate(verifier: Boosted, benches: Sequence[Bench], held: Held | None = None) -> Calibration:
    """Levels of the verifier's scores on the `calibrate` probes, which it was not fitted on, at CALIBRATION_SIZES.

    held: rows that are not observed, and stand in no library of their own platform.
    """
    rng = np.random.default_rng(1)
    true_scores: dict[str, list[float]] = {}
    temperatures, unknown = [], []
    for n, k in CALIBRATION_SIZES:
        right: list[float] = []
        for bench in benches:
            pool = bench.split.calibrate
            samples = draw(pool, min(n, len(pool)), 12, rng)
            rows = bench.observed((held or {}).get(bench.data.model, ())) or bench.observed()
            table = tabulate(bench.comparisons[k], rows, samples, bench.split.fit, apart=False)
            found = class_scores(spread(score(verifier, table), table.who, len(bench.data.platforms)), bench.classes)
            truth = np.asarray(bench.classes.label)[table.truth]
            at = np.arange(len(truth))
            right.extend(found[at, truth].tolist())
            temperatures.append(fit_temperature(np.maximum(found, FAR), truth))
            if n == 32:
                same = spread(table.features[..., ALL_EQUAL], table.who, len(bench.data.platforms))
                others = np.where(class_scores(same, bench.classes) == 1, -np.inf, found)  # those are no wrong ones
                others[at, truth] = -np.inf
                unknown.append((np.quantile(found[at, truth], 0.005), np.quantile(others.max(axis=1), 0.995)))
        true_scores[f"{n}x{k}"] = sorted(right)
    # Between what right candidates hardly ever fall below and wrong ones hardly ever reach.
    level = float(np.mean([0.5 * (a + b) for a, b in unknown])) if unknown else 0.0
    return Calibration(true_scores, float(np.median(temperatures)), level, own_scores(verifier, benches, held, rng))


FAR = -30.0  # log-odds of a candidate that is not even compared


def own_scores(verifier: Boosted, benches: Sequence[Bench], held: Held | None, rng: np.random.Generator) -> OwnScores:
    """Each class's scores against itself: {"model/class": {"32x20": {"platform b1": sorted scores}}}."""
    found: OwnScores = {}
    for bench in benches:
        out = (held or {}).get(bench.data.model, ())
        chosen = [left(on, [s for c, s in out if c == i]) for i, on in enumerate(bench.data.present)]
        for n, k in CALIBRATION_SIZES:
            samples = draw(bench.split.calibrate, min(n, len(bench.split.calibrate)), OWN_SAMPLES, rng)
            pairs = bench.comparisons[k]
            every = [self_rows(pairs, i, some, samples, bench.split.fit) for i, some in enumerate(chosen)]
            for i, scores in enumerate(self_scores(verifier, every)):
                name = f"{bench.data.model}/{bench.classes.name(bench.classes.label[i])}"
                own = found.setdefault(name, {}).setdefault(f"{n}x{k}", {})
                own |= {f"{bench.data.platforms[i].id} {setting}": some for setting, some in scores.items()}
    return found


def left(present: npt.NDArray[np.bool_], held: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The settings (S,) of a platform without those held out; all of them where none else is left."""
    rest = present.copy()
    rest[list(held)] = False
    return rest if rest.any() else present
