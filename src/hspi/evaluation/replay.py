"""The replay detector under the protocol: held-out probes and batch class, model, platform; open set; null."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import Calibration
from hspi.detectors.estimators import Boosted
from hspi.detectors.training import Bench, calibrate, fit_verifier
from hspi.detectors.verifier import Row, Table, class_scores, score, spread, tabulate
from hspi.evaluation.measures import Accuracy, auroc, macro_accuracy, pair_accuracies, reliability, wilson
from hspi.evidence.cores import on_all_cores
from hspi.evidence.replay import F32
from hspi.platforms.record import Platform
from hspi.splits import group_folds, partitions

Line = dict[str, Any]
REPEATS = {32: 8, 16: 4, 8: 3}  # random partitions of the test probes into samples of that size; else 1
TOKEN_GRID = ((1, 5), (1, 20), (2, 20), (4, 20), (8, 5), (8, 20), (16, 20), (32, 5), (32, 20))
PLATFORM_FOLDS, CLASS_FOLDS = 5, 4


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
        return self._credit(self.scores)

    def nearest(self) -> npt.NDArray[np.float64]:
        """The naive nearest candidate (DESIGN.md §2) on the same samples."""
        label = np.asarray(self.bench.classes.label)
        found = class_scores(spread(-self.table.distance, self.table.who, len(label)), self.bench.classes)
        return self._credit(found)

    @property
    def alike(self) -> npt.NDArray[np.bool_]:
        """(n, K): the classes that answer so too in that batch class, bit for bit, the truth among them."""
        rows = list(zip(self.table.truth.tolist(), self.table.setting.tolist(), strict=True))
        same = {row: alike(self.bench, row) for row in set(rows)}
        return np.stack([same[row] for row in rows])

    def _credit(self, scores: F32) -> npt.NDArray[np.float64]:
        """1 where the likeliest class is the truth, or one that nobody could tell from it."""
        return self.alike[np.arange(len(scores)), scores.argmax(axis=1)].astype(float)


def score_samples(
    verifier: Boosted, bench: Bench, probes: int, k: int, rows: Sequence[Row], fold: int = 0, apart: bool = False
) -> Scored:
    """Test probes only, in random partitions into disjoint samples. apart: with the observed batch class held out where
    the platform has another."""
    rng = np.random.default_rng([0, probes, k])
    blocks = partitions(bench.split.test, min(probes, len(bench.split.test)), REPEATS.get(probes, 1), rng)
    pool = np.concatenate([bench.split.fit, bench.split.calibrate])
    table = tabulate(bench.comparisons[k], rows, blocks.reshape(-1, blocks.shape[2]), pool, apart)
    found = class_scores(spread(score(verifier, table), table.who, len(bench.data.platforms)), bench.classes)
    truth = np.asarray(bench.classes.label)[table.truth]
    return Scored(bench, table, found, truth, blocks.shape[1], fold)


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


def alike(bench: Bench, row: Row) -> npt.NDArray[np.bool_]:
    """(K,): the classes that answer as a row does, bit for bit: nobody can tell them apart while that batch class is
    served, though another one may part them."""
    data, (platform, setting) = bench.data, row
    arrays = data.raw.view(np.uint32), data.rank  # bits, for what was not reported is no number
    same = np.logical_and(*((x == x[platform, setting]).all(axis=(2, 3)) for x in arrays))
    label = np.asarray(bench.classes.label)
    out = np.zeros(bench.classes.count, bool)
    out[label[same.any(axis=1)]] = True
    out[label[platform]] = True
    return out


def class_folds(bench: Bench) -> list[list[Row]]:
    """What each fold holds out: every row once, rows that are one class's first settings together."""
    folds: list[list[Row]] = [[] for _ in range(CLASS_FOLDS)]
    for c, s in bench.data.rows:
        folds[(bench.classes.label[c] + s) % CLASS_FOLDS].append((c, s))
    return folds


@dataclass
class ReplayReport:
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[Line]] = field(default_factory=dict)

    def add(self, name: str, rows: Iterable[Line]) -> None:
        self.tables.setdefault(name, []).extend(rows)


@dataclass(frozen=True)
class Fold:
    """One verifier and the rows that it never saw: benches, and by bench the rows; levels with and without those."""

    verifier: Boosted
    rows: list[list[Row]]
    levels: Calibration
    levels_apart: Calibration


def evaluate_replay(
    benches: Sequence[Bench],
    parameters: dict[str, Any],
    step: Callable[[str], object] = lambda s: None,
) -> tuple[ReplayReport, list[Fold]]:
    """Everything that the protocol asks of replay but claims and hardware, and the folds that those go on with.

    `step` is called with the name of each part as it starts. The benches' platforms must be distinct.
    """
    report = ReplayReport()
    folds = _held_out_class(benches, parameters, report, step)
    _held_out_model(benches, parameters, report, step)
    _held_out_platform(benches, parameters, report, step)
    step("permuted labels")
    held = [class_folds(b)[0] for b in benches]
    null = fit_verifier(benches, parameters=parameters, held=_by_model(benches, held), permute=True)
    parts = [score_samples(null, b, 32, 20, rows) for b, rows in zip(benches, held, strict=True) if rows]
    for part in parts:  # labels are permuted in the whole run: whatever still agrees has leaked past the evidence
        order = np.random.default_rng(0).permutation(len(part.truth))
        part.truth = part.truth[order]
        part.table = replace(part.table, truth=part.table.truth[order], setting=part.table.setting[order])
    report.accuracies["null.macro_accuracy"] = pooled(parts, 32)
    return report, folds


def _by_model(benches: Sequence[Bench], rows: Sequence[Collection[Row]]) -> dict[str, Collection[Row]]:
    return {b.data.model: set(some) for b, some in zip(benches, rows, strict=True)}


def _held_out_class(
    benches: Sequence[Bench], parameters: dict[str, Any], report: ReplayReport, step: Any
) -> list[Fold]:
    """Each row put to a verifier that never observed it, beside a library that holds its batch class, and beside one
    that does not where the platform has another."""
    by_size: dict[tuple[int, int], list[Scored]] = {size: [] for size in TOKEN_GRID}
    parted = [class_folds(b) for b in benches]

    def one(number: int) -> tuple[Fold, dict[tuple[int, int], list[Scored]], list[Scored]]:
        step(f"held-out answers {number + 1}/{CLASS_FOLDS}")
        rows = [folds[number] for folds in parted]
        held = _by_model(benches, rows)
        verifier = fit_verifier(benches, parameters=parameters, held=held)
        fold = Fold(verifier, rows, calibrate(verifier, benches), calibrate(verifier, benches, held))
        some = [(b, r) for b, r in zip(benches, rows, strict=True) if r]
        found = {(n, k): [score_samples(verifier, b, n, k, r, number) for b, r in some] for n, k in TOKEN_GRID}
        several = [(b, [row for row in r if b.data.present[row[0]].sum() > 1]) for b, r in some]
        return fold, found, [score_samples(verifier, b, 32, 20, r, number, apart=True) for b, r in several if r]

    folds: list[Fold] = []
    apart: list[Scored] = []
    for fold, found, without in on_all_cores(one, range(CLASS_FOLDS)):
        folds.append(fold)
        apart.extend(without)
        for size, parts in found.items():
            by_size[size].extend(parts)
    if apart:
        report.accuracies["replay.held_out_class.macro_accuracy"] = pooled(apart, 32)
        report.accuracies["nearest.held_out_class.macro_accuracy"] = pooled(apart, 32, Scored.nearest)
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
    _by_platform(report, main)
    _reliability(report, main, [fold.levels for fold in folds])
    _factors(report, main)
    return folds


def _token_row(level: str, n: int, k: int, a: Accuracy) -> Line:
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
        same = np.concatenate([p.alike for p in own])
        same[np.arange(len(truth)), truth] = False
        matrix = pair_accuracies(np.where(same, np.nan, scores), truth)
        worst = min(worst, float(np.nanmin(matrix)))
        disjoint = sum(p.per_partition for p in own)
        for a in range(classes.count):
            for b in range(a):
                if not np.isfinite(scores[truth == a, b]).any() and not np.isfinite(scores[truth == b, a]).any():
                    continue  # too far apart to have been compared
                low, high = wilson(matrix[a, b] * 2 * disjoint, 2 * disjoint)
                row: Line = {"level": "replay", "split": "probes", "model": model}
                row |= {"platform_a": classes.name(a), "platform_b": classes.name(b), "accuracy": matrix[a, b]}
                report.add("pair_accuracy", [row | {"ci_low": low, "ci_high": high, "n": 2 * disjoint}])
        guess = scores.argmax(axis=1)
        for t, g in sorted(set(zip(truth.tolist(), guess.tolist(), strict=True))):
            count = int(((truth == t) & (guess == g)).sum())
            seen: Line = {"model": model, "truth": classes.name(t), "answer": classes.name(g), "count": count}
            report.add("confusion", [seen])
    report.figures["replay.probes.min_pair_accuracy"] = worst
    from sklearn.metrics import f1_score, matthews_corrcoef

    truth = np.concatenate([[f"{p.bench.data.model}/{c}" for c in p.truth] for p in parts])
    guess = np.concatenate([[f"{p.bench.data.model}/{c}" for c in p.scores.argmax(axis=1)] for p in parts])
    report.figures["replay.probes.macro_f1"] = float(f1_score(truth, guess, average="macro"))
    report.figures["replay.probes.mcc"] = float(matthews_corrcoef(truth, guess))


def _by_platform(report: ReplayReport, parts: Sequence[Scored]) -> None:
    """The accuracy of each hardware × software, over models and batch classes."""
    right: dict[str, list[float]] = {}
    record: dict[str, Platform] = {}
    block: dict[str, int] = {}
    for part in parts:
        for c, ok in zip(part.table.truth, part.right, strict=True):
            p = part.bench.data.platforms[c]
            record[p.id] = p
            right.setdefault(p.id, []).append(ok)
        for c in np.unique(part.table.truth):
            name = part.bench.data.platforms[c].id
            block[name] = block.get(name, 0) + part.per_partition
    chance = float(np.mean([1 / p.bench.classes.count for p in parts]))
    for name, some in sorted(right.items()):
        low, high = wilson(float(np.mean(some)) * block[name], block[name])
        row: Line = {"hardware": record[name].hardware, "software": record[name].software}
        row |= {"provenance": record[name].provenance, "accuracy": float(np.mean(some)), "ci_low": low, "ci_high": high}
        row |= {"chance": chance, "samples": len(some), "tokens": 32, "held_out": "probes, batch size"}
        report.add("accuracy_by_platform", [row])


def _reliability(report: ReplayReport, parts: Sequence[Scored], calibrations: Sequence[Calibration]) -> None:
    posteriors = [calibrations[p.fold].posterior(p.scores)[:, :-1] for p in parts]
    confidence = np.concatenate([x.max(axis=1) for x in posteriors])
    right = np.concatenate([p.right for p in parts])
    report.add("reliability", reliability(confidence, right))
    report.figures["replay.probes.brier"] = float(((confidence - right) ** 2).mean())


def _factors(report: ReplayReport, parts: Sequence[Scored]) -> None:
    """Of each factor, how often the answer's value is the truth's, by the truth's value."""
    for factor in ("hardware", "engine", "number_format", "attention", "isa_cap", "provenance"):
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
        parts.append(score_samples(verifier, bench, 32, 20, bench.data.rows))
        a = pooled([parts[-1]], 32)
        report.add("held_out_model", [{"model": bench.data.model, "accuracy": a.value, "ci_low": a.ci_low}])
    report.accuracies["replay.unseen_model.macro_accuracy"] = pooled(parts, 32)
    report.accuracies["nearest.unseen_model.macro_accuracy"] = pooled(parts, 32, Scored.nearest)


def _held_out_platform(benches: Sequence[Bench], parameters: dict[str, Any], report: ReplayReport, step: Any) -> None:
    """Platforms never trained on, in folds that keep classes whole; and the same with the truth not offered."""
    groups = _joint_classes(benches)
    names = sorted(groups)
    dropped = [[names[i] for i in f] for f in group_folds([groups[n] for n in names], PLATFORM_FOLDS, seed=0)]
    parts = []
    for number, some in enumerate(dropped):
        step(f"held-out platforms {number + 1}/{PLATFORM_FOLDS}")
        verifier = fit_verifier(benches, parameters=parameters, dropped=some)
        parts += score_dropped(verifier, benches, some)
    report.accuracies["replay.unseen_platform.macro_accuracy"] = pooled(parts, 32)
    report.accuracies["nearest.unseen_platform.macro_accuracy"] = pooled(parts, 32, Scored.nearest)
    inside, outside = open_set(parts)
    report.figures["replay.open_set.auroc"] = auroc(inside, outside)
    for scores, is_known in ((inside, 1), (outside, 0)):
        keep = np.linspace(0, len(scores) - 1, min(2000, len(scores))).astype(int)
        report.add("open_set", [{"score": float(s), "is_known": is_known} for s in np.sort(scores)[keep]])


def score_dropped(verifier: Boosted, benches: Sequence[Bench], dropped: Collection[str]) -> list[Scored]:
    """Samples of platforms that the verifier never saw, one part for each model that was collected on some.

    Their signatures stand in the library.
    """
    parts = []
    for bench in benches:
        ids = bench.data.platform_ids()
        rows = [row for row in bench.data.rows if ids[row[0]] in dropped]
        if rows:
            parts.append(score_samples(verifier, bench, 32, 20, rows))
    return parts


def open_set(parts: Sequence[Scored]) -> tuple[F32, F32]:
    """The best score of each sample with its class among the candidates, and with that class not offered."""
    inside, outside = [], []
    for part in parts:
        inside.append(part.scores.max(axis=1))
        outside.append(np.where(part.alike, -np.inf, part.scores).max(axis=1))
    return np.concatenate(inside), np.concatenate(outside)


def _joint_classes(benches: Sequence[Bench]) -> dict[str, str]:
    """Platforms that are one class on any model share a group, so that no fold trains on a twin."""
    group: dict[str, str] = {}
    for bench in benches:
        for i, p in enumerate(bench.data.platform_ids()):
            twin = bench.classes.name(bench.classes.label[i])
            old, new = group.setdefault(p, p), group.setdefault(twin, twin)
            group = {k: (new if v == old else v) for k, v in group.items()}
    return group
