"""The replay detector under the protocol: held-out probes and nuisance, model, platform; open set; claims; null."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import Calibration
from hspi.detectors.estimators import Boosted
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.detectors.verifier import Table, class_scores, score, tabulate
from hspi.evaluation.measures import Accuracy, auroc, macro_accuracy, pair_accuracies, reliability, wilson
from hspi.evidence.cores import on_all_cores
from hspi.evidence.replay import F32
from hspi.splits import group_folds, partitions

Row = dict[str, Any]
REPEATS = {32: 8, 16: 4, 8: 3}  # random partitions of the test probes into samples of that size; else 1
TOKEN_GRID = ((1, 5), (1, 20), (2, 20), (4, 20), (8, 5), (8, 20), (16, 20), (32, 5), (32, 20))
PLATFORM_FOLDS = 5
ALPHAS = (0.01, 0.05)


@dataclass
class Scored:
    """Samples of one model under one detector. scores (n, K) by class; truth (n,) class; block (n,)."""

    bench: Bench
    table: Table
    scores: F32
    truth: npt.NDArray[np.int64]
    per_partition: int
    fold: int = 0

    @property
    def right(self) -> npt.NDArray[np.float64]:
        return (self.scores.argmax(axis=1) == self.truth).astype(float)

    def nearest(self) -> npt.NDArray[np.float64]:
        """The naive nearest candidate (DESIGN.md §2) on the same samples."""
        label = np.asarray(self.bench.classes.label)
        return (label[self.table.distance.argmin(axis=1)] == self.truth).astype(float)


def score_samples(
    verifier: Boosted,
    bench: Bench,
    probes: int,
    k: int,
    observed_settings: Sequence[int],
    library: Sequence[int],
    platforms: Sequence[int] | None = None,
    fold: int = 0,
) -> Scored:
    """Test probes only, in random partitions into disjoint samples."""
    rng = np.random.default_rng([0, probes, k])
    blocks = partitions(bench.split.test, min(probes, len(bench.split.test)), REPEATS.get(probes, 1), rng)
    pool = np.concatenate([bench.split.fit, bench.split.calibrate])
    pairs = bench.comparisons[k]
    observed = pairs.observed(observed_settings, platforms)
    table = tabulate(pairs, observed, library, blocks.reshape(-1, blocks.shape[2]), pool)
    scores = class_scores(score(verifier, table), bench.classes)
    truth = np.asarray(bench.classes.label)[table.truth]
    return Scored(bench, table, scores, truth, blocks.shape[1], fold)


def pooled(parts: Iterable[Scored], tokens: int, right: Callable[[Scored], np.ndarray] = lambda p: p.right) -> Accuracy:
    """One macro accuracy over classes of all models; each (model, class) weighs alike."""
    parts = list(parts)
    names = np.concatenate([[f"{p.bench.data.model}/{c}" for c in p.truth] for p in parts])
    # Blocks of one model share probes across folds; those of another model are other probes.
    models = {p.bench.data.model: i for i, p in enumerate(parts)}
    block = np.concatenate([p.table.block + 100_000 * models[p.bench.data.model] for p in parts])
    disjoint = sum({p.bench.data.model: p.per_partition for p in parts}.values())
    chance = float(np.mean([1 / p.bench.classes.count for p in parts]))
    return macro_accuracy(np.concatenate([right(p) for p in parts]), names, block, disjoint, chance, tokens)


@dataclass
class ReplayReport:
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, name: str, rows: Iterable[Row]) -> None:
        self.tables.setdefault(name, []).extend(rows)


def evaluate_replay(
    benches: Sequence[Bench],
    parameters: dict[str, Any],
    step: Callable[[str], object] = lambda s: None,
) -> ReplayReport:
    """Everything that the protocol asks of replay. `step` is called with the name of each part as it starts."""
    report = ReplayReport()
    nuisances = benches[0].data.nuisances
    _held_out_nuisance(benches, parameters, nuisances, report, step)
    _held_out_model(benches, parameters, report, step)
    _held_out_platform(benches, parameters, nuisances[-1], report, step)
    step("permuted labels")
    null = fit_verifier(benches, parameters=parameters, held_out_setting=nuisances[-1], permute=True)
    parts = [_white_box(null, b, nuisances[-1], 32, 20) for b in benches]
    for part in parts:  # labels are permuted in the whole run: whatever still agrees has leaked past the evidence
        part.truth = np.random.default_rng(0).permutation(part.truth)
    report.accuracies["null.macro_accuracy"] = pooled(parts, 32)
    return report


def _white_box(verifier: Boosted, bench: Bench, setting: str, probes: int, k: int, fold: int = 0) -> Scored:
    at = bench.data.nuisances.index(setting)
    return score_samples(verifier, bench, probes, k, [at], bench.settings, fold=fold)


def _held_out_nuisance(
    benches: Sequence[Bench], parameters: dict[str, Any], nuisances: list[str], report: ReplayReport, step: Any
) -> None:
    by_size: dict[tuple[int, int], list[Scored]] = {size: [] for size in TOKEN_GRID}
    calibrations: list[Calibration] = []

    def one(fold: int) -> tuple[Calibration, dict[tuple[int, int], list[Scored]]]:
        setting = nuisances[fold]
        step(f"held-out nuisance {setting}")
        verifier = fit_verifier(benches, parameters=parameters, held_out_setting=setting)
        levels = calibrate(verifier, benches, held_out_setting=setting)
        found = {(n, k): [_white_box(verifier, b, setting, n, k, fold) for b in benches] for n, k in TOKEN_GRID}
        return levels, found

    for levels, found in on_all_cores(one, range(len(nuisances))):
        calibrations.append(levels)
        for size, some in found.items():
            by_size[size].extend(some)
    main = by_size[32, 20]
    report.accuracies["replay.probes.macro_accuracy"] = pooled(main, 32)
    report.accuracies["nearest.probes.macro_accuracy"] = pooled(main, 32, Scored.nearest)
    for n, k in ((8, 5), (1, 20)):
        for name, right in (("replay", lambda p: p.right), ("nearest", Scored.nearest)):
            report.accuracies[f"{name}.probes.macro_accuracy.{n}x{k}"] = pooled(by_size[n, k], n, right)
    for (n, k), parts in by_size.items():
        for level, right in (("replay", lambda p: p.right), ("nearest", Scored.nearest)):
            a = pooled(parts, n, right)
            report.add("accuracy_by_tokens", [_token_row(level, n, k, a)])
    _tokens_to(report, by_size)
    _pairs(report, main)
    _claims(report, main, calibrations)
    _reliability(report, main, calibrations)
    _factors(report, main)


def _token_row(level: str, n: int, k: int, a: Accuracy) -> Row:
    return {
        "level": level,
        "probes": n,
        "top_k": k,
        "tokens": n,
        "accuracy": a.value,
        "ci_low": a.ci_low,
        "ci_high": a.ci_high,
        "chance": a.chance,
    }


def _tokens_to(report: ReplayReport, by_size: dict[tuple[int, int], list[Scored]]) -> None:
    enough = [n for (n, k), parts in sorted(by_size.items()) if k == 20 and pooled(parts, n).value >= 0.99]
    report.figures["replay.tokens_to_99"] = float(min(enough)) if enough else float("nan")


def _pairs(report: ReplayReport, parts: Sequence[Scored]) -> None:
    """Accuracy of each pair of classes on each model, all held-out settings together, and its minimum."""
    worst = 1.0
    for model in dict.fromkeys(p.bench.data.model for p in parts):
        own = [p for p in parts if p.bench.data.model == model]
        classes = own[0].bench.classes
        scores, truth = np.concatenate([p.scores for p in own]), np.concatenate([p.truth for p in own])
        matrix = pair_accuracies(scores, truth)
        worst = min(worst, float(np.nanmin(matrix)))
        disjoint = sum(p.per_partition for p in own)
        for a in range(classes.count):
            for b in range(a):
                low, high = wilson(matrix[a, b] * 2 * disjoint, 2 * disjoint)
                row: Row = {"level": "replay", "split": "probes", "model": model}
                row |= {"platform_a": classes.name(a), "platform_b": classes.name(b), "accuracy": matrix[a, b]}
                report.add("pair_accuracy", [row | {"ci_low": low, "ci_high": high, "n": 2 * disjoint}])
        guess = scores.argmax(axis=1)
        for t, g in sorted(set(zip(truth.tolist(), guess.tolist(), strict=True))):
            count = int(((truth == t) & (guess == g)).sum())
            seen: Row = {"model": model, "truth": classes.name(t), "answer": classes.name(g), "count": count}
            report.add("confusion", [seen])
    report.figures["replay.probes.min_pair_accuracy"] = worst
    from sklearn.metrics import f1_score, matthews_corrcoef

    truth = np.concatenate([[f"{p.bench.data.model}/{c}" for c in p.truth] for p in parts])
    guess = np.concatenate([[f"{p.bench.data.model}/{c}" for c in p.scores.argmax(axis=1)] for p in parts])
    report.figures["replay.probes.macro_f1"] = float(f1_score(truth, guess, average="macro"))
    report.figures["replay.probes.mcc"] = float(matthews_corrcoef(truth, guess))


def _claims(report: ReplayReport, parts: Sequence[Scored], calibrations: Sequence[Calibration]) -> None:
    """Honest claims wrongly rejected, under a setting and on probes that neither detector nor calibration saw."""
    p_values, wrong = [], []
    for part in parts:
        rows = np.arange(len(part.truth))
        names = [f"{part.bench.data.model}/{part.bench.classes.name(c)}" for c in range(part.scores.shape[1])]
        p = calibrations[part.fold].p_value(part.scores, 32, 20, names)
        p_values.append(p[rows, part.truth])
        p[rows, part.truth] = np.nan
        wrong.append(p[np.isfinite(p)])
    honest, false = np.concatenate(p_values), np.concatenate(wrong)
    disjoint = len(honest) * parts[0].per_partition / (parts[0].table.block.max() + 1)
    for alpha in ALPHAS:
        rate = float((honest <= alpha).mean())
        low, high = wilson(rate * disjoint, disjoint)
        report.figures[f"claim.false_alarm.{alpha}"] = rate
        report.figures[f"claim.power.{alpha}"] = float((false <= alpha).mean())
        report.add(
            "false_alarm",
            [{"alpha": alpha, "rate": rate, "ci_low": low, "ci_high": high, "n": len(honest)}],
        )


def _reliability(report: ReplayReport, parts: Sequence[Scored], calibrations: Sequence[Calibration]) -> None:
    posteriors = [calibrations[p.fold].posterior(p.scores)[:, :-1] for p in parts]
    confidence = np.concatenate([x.max(axis=1) for x in posteriors])
    right = np.concatenate([p.right for p in parts])
    report.add("reliability", reliability(confidence, right))
    report.figures["replay.probes.brier"] = float(((confidence - right) ** 2).mean())


def _factors(report: ReplayReport, parts: Sequence[Scored]) -> None:
    """Of each factor, how often the answer's value is the truth's, by the truth's value."""
    for factor in ("engine", "number_format", "attention", "isa_cap", "provenance"):
        right: dict[str, list[float]] = {}
        for part in parts:
            platforms = {p.id: p for p in part.bench.data.platforms}
            value = [str(getattr(platforms[part.bench.classes.name(c)], factor)) for c in range(part.scores.shape[1])]
            for t, g in zip(part.truth, part.scores.argmax(axis=1), strict=True):
                right.setdefault(value[t], []).append(float(value[t] == value[g]))
        for v, some in sorted(right.items()):
            row = {"factor": factor, "value": v, "accuracy": float(np.mean(some)), "samples": len(some)}
            report.add("by_factor", [row])


def _held_out_model(benches: Sequence[Bench], parameters: dict[str, Any], report: ReplayReport, step: Any) -> None:
    parts = []
    for i, bench in enumerate(benches):
        others = [b for j, b in enumerate(benches) if j != i]
        if not others:
            return
        step(f"held-out model {bench.data.model}")
        verifier = fit_verifier(others, parameters=parameters)
        parts.append(score_samples(verifier, bench, 32, 20, bench.settings, bench.settings))
        a = pooled([parts[-1]], 32)
        report.add("held_out_model", [{"model": bench.data.model, "accuracy": a.value, "ci_low": a.ci_low}])
    report.accuracies["replay.unseen_model.macro_accuracy"] = pooled(parts, 32)
    report.accuracies["nearest.unseen_model.macro_accuracy"] = pooled(parts, 32, Scored.nearest)


def _held_out_platform(
    benches: Sequence[Bench], parameters: dict[str, Any], setting: str, report: ReplayReport, step: Any
) -> None:
    """Platforms never trained on, in folds that keep classes whole; and the same with the truth not offered."""
    groups = _joint_classes(benches)
    names = sorted(groups)
    known, unknown, parts = [], [], []
    for fold, members in enumerate(group_folds([groups[n] for n in names], PLATFORM_FOLDS, seed=0)):
        dropped = [names[i] for i in members]
        step(f"held-out platforms {fold + 1}/{PLATFORM_FOLDS}")
        verifier = fit_verifier(benches, parameters=parameters, held_out_setting=setting, dropped=dropped)
        for bench in benches:
            ids = bench.data.platform_ids()
            chosen = [i for i, p in enumerate(ids) if p in dropped]
            if not chosen:  # a platform that this model was not collected on
                continue
            at = bench.data.nuisances.index(setting)
            part = score_samples(verifier, bench, 32, 20, [at], bench.settings, chosen)
            parts.append(part)
            known.append(part.scores.max(axis=1))
            without = part.scores.copy()
            without[np.arange(len(without)), part.truth] = -np.inf
            unknown.append(without.max(axis=1))
    report.accuracies["replay.unseen_platform.macro_accuracy"] = pooled(parts, 32)
    report.accuracies["nearest.unseen_platform.macro_accuracy"] = pooled(parts, 32, Scored.nearest)
    inside, outside = np.concatenate(known), np.concatenate(unknown)
    report.figures["replay.open_set.auroc"] = auroc(inside, outside)
    for scores, is_known in ((inside, 1), (outside, 0)):
        keep = np.linspace(0, len(scores) - 1, min(2000, len(scores))).astype(int)
        report.add("open_set", [{"score": float(s), "is_known": is_known} for s in np.sort(scores)[keep]])


def _joint_classes(benches: Sequence[Bench]) -> dict[str, str]:
    """Platforms that are one class on any model share a group, so that no fold trains on a twin."""
    group: dict[str, str] = {}
    for bench in benches:
        for i, p in enumerate(bench.data.platform_ids()):
            twin = bench.classes.name(bench.classes.label[i])
            old, new = group.setdefault(p, p), group.setdefault(twin, twin)
            group = {k: (new if v == old else v) for k, v in group.items()}
    return group
