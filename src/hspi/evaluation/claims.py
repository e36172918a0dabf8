"""The check of a claim under the protocol: true claims, with their batch class in the library and without, and false
ones. The worst (platform, batch class) counts as well as the mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import AGREES, Calibration
from hspi.detectors.grounds import Grounds
from hspi.detectors.number_format import NumberFormat, SampleBench, format_of
from hspi.detectors.training import Bench
from hspi.detectors.verifier import Row, class_scores, score, spread, tabulate
from hspi.evaluation.measures import upper_bound, wilson
from hspi.evaluation.replay import Fold, Line, ReplayReport
from hspi.evidence.explained import EXPLAINED_STATISTICS
from hspi.evidence.replay import F32, PAIR_FEATURES
from hspi.splits import draw

ALPHAS = (0.01, 0.05)
PROBES, TOP_K = 32, 20
AUDITS = 256  # of each (platform, batch class) on each model: over four models a thousand
FALSE_AUDITS = 16  # of each beside every false claim
Bools = npt.NDArray[np.bool_]


class Rates:
    """How often something happened, by (platform, batch class)."""

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, who: tuple[str, str], happened: Bools) -> None:
        self.by[who][0] += int(happened.sum())
        self.by[who][1] += len(happened)

    @property
    def total(self) -> tuple[int, int]:
        return sum(h for h, _ in self.by.values()), sum(n for _, n in self.by.values())

    @property
    def rate(self) -> float:
        happened, n = self.total
        return happened / n if n else float("nan")

    @property
    def mean(self) -> float:
        """Of the rates, each (platform, batch class) or pair weighing alike."""
        return float(np.mean([happened / n for happened, n in self.by.values()]))

    @property
    def worst(self) -> tuple[tuple[str, str], float, float]:
        """(who, rate, one-sided 95 % upper bound) of the largest rate."""
        who, (happened, n) = max(self.by.items(), key=lambda item: item[1][0] / item[1][1])
        return who, happened / n, upper_bound(happened, n)


class Judged:
    """Many observations of one row, judged as `Detector.judge` judges one: p (B, K) by class, fits (B, C); beyond the
    verifier's rivals p is least and nothing fits.
    """

    def __init__(self, fold: Fold, levels: Calibration, bench: Bench, row: Row, samples: int, apart: bool) -> None:
        rng = np.random.default_rng([row[0], row[1]])
        self.drawn = draw(bench.split.test, min(PROBES, len(bench.split.test)), samples, rng)
        pool = np.concatenate([bench.split.fit, bench.split.calibrate])
        table = tabulate(bench.comparisons[TOP_K], [row], self.drawn, pool, apart)
        count, margin = len(bench.data.platforms), score(fold.verifier, table)
        names = [f"{bench.data.model}/{bench.classes.name(c)}" for c in range(bench.classes.count)]
        scores = class_scores(spread(margin, table.who, count), bench.classes)
        self.p = levels.p_value(scores, PROBES, TOP_K, names)
        pairs = table.features[..., : len(PAIR_FEATURES)]
        self.fits = self.same = np.zeros((samples, count), bool)
        self.pairs = pairs
        self._pairs, self._agrees, self._who = pairs, margin >= AGREES, table.who

    def fit_by(self, grounds: Grounds) -> Judged:
        """With what fits, which the library's state decides."""
        full = np.full((*self.fits.shape, self._pairs.shape[-1]), np.nan, np.float32)
        np.put_along_axis(full, self._who[..., None], self._pairs, axis=1)
        agrees = np.zeros(self.fits.shape, bool)
        np.put_along_axis(agrees, self._who, self._agrees, axis=1)
        self.fits, self.same, self.pairs = grounds.fits(full, agrees), grounds.same(full), full
        return self

    def contradicts(self, grounds: Grounds, claimed: int, label: int, alpha: float, coarser: Bools) -> Bools:
        """Whether the claim of one platform of a class falls: (B,). coarser (B,): the residuals exclude its format."""
        excluded = (self.p[:, label] <= alpha) | grounds.decides([claimed], True, self.same)
        rival = grounds.speaks([claimed], True, self.fits, self.pairs).any(axis=1)
        ground = rival | coarser | grounds.strays([claimed], True, self.pairs)
        return np.asarray(excluded & ground & ~self.same[:, claimed])


def evaluate_claims(
    benches: Sequence[Bench], folds: Sequence[Fold], singles: Sequence[SampleBench], formats: NumberFormat,
    report: ReplayReport,
) -> None:  # fmt: skip
    """Adds what becomes of claims to the report. benches, folds: of `evaluate_replay`; singles, formats: the number
    format's detector, fitted on probes that are not asked here, and its statistics.
    """
    inside = {alpha: Rates() for alpha in ALPHAS}
    excluded = {alpha: Rates() for alpha in ALPHAS}
    outside, unfit, power = Rates(), Rates(), {name: Rates() for name in ("format", "kernel", "hardware")}
    for i, (bench, single) in enumerate(zip(benches, singles, strict=True)):
        grounds = Grounds.of(bench.data, bench.classes.label)
        for fold in folds:
            for row in fold.rows[i]:
                who = bench.data.platforms[row[0]].id, _setting(bench, row)
                seen = Judged(fold, fold.levels, bench, row, AUDITS, apart=False).fit_by(grounds)
                coarser = _coarser(formats, single, row, seen.drawn)
                label = bench.classes.label[row[0]]
                for alpha in ALPHAS:
                    excluded[alpha].add(who, seen.p[:, label] <= alpha)
                    inside[alpha].add(who, seen.contradicts(grounds, row[0], label, alpha, coarser))
                _false_claims(bench, grounds, row, seen, power)
                if (parted := _parted(bench, grounds, row)) is not None:
                    far = Judged(fold, fold.levels_apart, bench, row, AUDITS, apart=True).fit_by(parted)
                    unfit.add(who, far.p[:, label] <= ALPHAS[-1])
                    outside.add(who, far.contradicts(parted, row[0], label, ALPHAS[-1], coarser))
    _report(report, inside, excluded, outside, unfit, power)


def _setting(bench: Bench, row: Row) -> str:
    return list(bench.data.settings[row[0]])[row[1]]


def _parted(bench: Bench, grounds: Grounds, row: Row) -> Grounds | None:
    """What is known where the row's batch class is held out; None where the platform has no other."""
    platform, setting = row
    rest = bench.data.present[platform].copy()
    rest[setting] = False
    if not rest.any():
        return None
    return grounds.without(platform)


def _coarser(formats: NumberFormat, single: SampleBench, row: Row, samples: npt.NDArray[np.int64]) -> Bools:
    """Whether the residuals exclude the true number format: (B,)."""
    claimed = format_of(single.data.platforms[row[0]])
    statistics: F32 = single.statistics[row[0], row[1]][:, : len(EXPLAINED_STATISTICS)]
    return np.array([told.excludes(claimed) for told in formats.of_samples(statistics[samples])])


def _false_claims(bench: Bench, grounds: Grounds, row: Row, seen: Judged, power: dict[str, Rates]) -> None:
    """What becomes of the claim of each platform that the row is not told to be."""
    truth = bench.data.platforms[row[0]]
    for claimed, platform in enumerate(bench.data.platforms):
        label = bench.classes.label[claimed]
        if label == bench.classes.label[row[0]]:
            continue
        if format_of(platform) != format_of(truth):
            relation = "format"
        else:  # the same software on another machine, or held to another ISA, is no other kernel but other hardware
            relation = "hardware" if platform.recipe == truth.recipe else "kernel"
        no = np.zeros(len(seen.p), bool)
        lost = seen.contradicts(grounds, claimed, label, ALPHAS[0], no)
        power[relation].add((truth.id, platform.id), lost[:FALSE_AUDITS])


def _report(
    report: ReplayReport,
    inside: dict[float, Rates],
    excluded: dict[float, Rates],
    outside: Rates,
    unfit: Rates,
    power: dict[str, Rates],
) -> None:
    for alpha in ALPHAS:
        rates = inside[alpha]
        (platform, name), worst, upper = rates.worst
        report.figures[f"claim.false_alarm.{alpha}"] = rates.rate
        report.figures[f"claim.false_alarm.{alpha}.worst"] = worst
        report.figures[f"claim.false_alarm.{alpha}.worst.upper"] = upper
        report.figures[f"claim.excluded.{alpha}"] = excluded[alpha].rate
        report.figures[f"claim.excluded.{alpha}.worst"] = excluded[alpha].worst[1]
        low, high = wilson(rates.total[0], rates.total[1])
        row: Line = {"alpha": alpha, "rate": rates.rate, "ci_low": low, "ci_high": high, "n": rates.total[1]}
        row |= {"worst": worst, "worst_platform": platform, "worst_class": name, "worst_upper": upper}
        report.add("false_alarm", [row | {"n_of_worst": rates.by[platform, name][1]}])
    if outside.by:
        report.figures["claim.contradicted.held_out_class"] = outside.rate
        report.figures["claim.contradicted.held_out_class.worst"] = outside.worst[1]
        report.figures["claim.excluded.held_out_class"] = unfit.rate
    for name, rates in power.items():
        if rates.by:
            report.figures[f"claim.power.{name}"] = rates.mean
    for label, some in {"class in the library": inside[ALPHAS[0]], "class held out": outside}.items():
        for (platform, name), (happened, n) in sorted(some.by.items()):
            line: Line = {"library": label, "platform": platform, "batch_class": name}
            report.add("true_claims", [line | {"contradicted": happened, "audits": n}])
    for relation, some in power.items():
        for (truth, claimed), (happened, n) in sorted(some.by.items()):
            if happened < n:
                line = {"differ_in": relation, "truth": truth, "claim": claimed}
                report.add("undetected", [line | {"contradicted": happened, "audits": n}])
