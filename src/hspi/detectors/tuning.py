"""Optuna's search over the trees and over the evidence's own parameters, resumable and with pruning.

The goal is measured on the calibration probes and on answers that the fit did not observe; test probes stay untouched.
One journal file holds both studies: killed and started again, the search goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hspi.detectors.calibration import fit_temperature, log_loss
from hspi.detectors.estimators import Boosted
from hspi.detectors.training import FAR, TRAINING_SIZES, Bench, fit_verifier
from hspi.detectors.verifier import class_scores, score, spread, tabulate
from hspi.files import write_json
from hspi.splits import draw

GOAL_SIZES = ((1, 5), (1, 20), (8, 5))  # the hard ones: at 32 × 20 there is little left to win
STUDIES = ("verifier", "classifier")
FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
OnTrial = Callable[[str, optuna.trial.FrozenTrial], object]


def trees(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "n_estimators": trial.suggest_int("n_estimators", 80, 320, step=40),
        "max_depth": trial.suggest_int("max_depth", 3, 7),
        "learning_rate": trial.suggest_float("learning_rate", 0.05, 0.3, log=True),
        "min_child_weight": trial.suggest_float("min_child_weight", 0.5, 16, log=True),
        "subsample": trial.suggest_float("subsample", 0.6, 1.0),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1.0),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.3, 10, log=True),
    }


def verifier_sizes(few: int, many: int) -> tuple[tuple[int, int, int], ...]:
    """Training samples: `few` of each observation at 32 probes, `many` at one probe, and between them between."""
    wide = {n: round(few + (many - few) * (5 - np.log2(n)) / 5) for n, _, _ in TRAINING_SIZES}
    return tuple((n, k, max(2, wide[n])) for n, k, _ in TRAINING_SIZES)


def _verifier_goal(benches: Sequence[Bench], trial: optuna.Trial) -> float:
    """Mean log-loss of the truth among the classes, less is better; reported for the pruner half by half: each half of
    the rows is scored by trees that observed the other."""
    parameters = trees(trial)
    sizes = verifier_sizes(trial.suggest_int("few_samples", 2, 8), trial.suggest_int("many_samples", 6, 16))
    losses: list[float] = []
    for step in range(2):
        held = {b.data.model: {row for row in b.data.rows if sum(row) % 2 == step} for b in benches}
        verifier = fit_verifier(benches, parameters=parameters, held=held, sizes=sizes)
        for bench in benches:
            rows = sorted(held[bench.data.model])
            for n, k in GOAL_SIZES if rows else ():
                samples = draw(bench.split.calibrate, n, 8, np.random.default_rng(9))
                table = tabulate(bench.comparisons[k], rows, samples, bench.split.fit, apart=False)
                truth = np.asarray(bench.classes.label)[table.truth]
                found = spread(score(verifier, table), table.who, len(bench.data.platforms), FAR)
                scores = class_scores(found, bench.classes)
                losses.append(log_loss(scores, truth, fit_temperature(scores, truth)))
        trial.report(float(np.mean(losses)), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(np.mean(losses))


def _format_goal(tables: Sequence[tuple[Any, Any]], trial: optuna.Trial) -> float:
    """Error of the number format on a model left out, models in turn."""
    parameters = trees(trial)
    errors: list[float] = []
    for i, (x, y) in enumerate(tables):
        rest = [t for j, t in enumerate(tables) if j != i] or [tables[i]]
        detector = Boosted(**parameters).fit(np.concatenate([r[0] for r in rest]), np.concatenate([r[1] for r in rest]))
        errors.append(float((detector.predict(x) != y).mean()))
        trial.report(float(np.mean(errors)), i)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(np.mean(errors))


def tune(
    benches: Sequence[Bench],
    format_tables: Sequence[tuple[Any, Any]],
    trials: int,
    journal: Path,
    seed: int,
    fingerprint: str,
    on_trial: OnTrial = lambda name, trial: None,
) -> dict[str, dict[str, Any]]:
    """Search until each study holds `trials` finished trials. Returns the best parameters of each.

    fingerprint names the data, so that trials on other data are not counted; format_tables: (X, y) of each model's
    training probes, for the classifier.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    goals: dict[str, Callable[[optuna.Trial], float]] = {
        "verifier": lambda t: _verifier_goal(benches, t),
        "classifier": lambda t: _format_goal(format_tables, t),
    }

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        on_trial(study.study_name.partition("-")[0], trial)

    best = {}
    for name, goal in goals.items():
        study = optuna.create_study(
            storage=storage,
            study_name=_study_name(name, seed, fingerprint),
            direction="minimize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        )
        # A sampler with the seed of the first start would draw its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials()), n_startup_trials=4)
        left = trials - len(study.get_trials(states=FINISHED))
        if left > 0:
            study.optimize(goal, n_trials=left, callbacks=[tell])
        best[name] = {"value": study.best_value, "trial": study.best_trial.number, "params": study.best_params}
    return best


def finished_trials(journal: Path, seed: int, fingerprint: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """Every finished trial of both studies, also those of runs that were stopped."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = {name: _study_name(name, seed, fingerprint) for name in STUDIES}
    studies = {name: optuna.load_study(study_name=full, storage=storage) for name, full in names.items()}
    return {name: study.get_trials(states=FINISHED) for name, study in studies.items()}


def _study_name(name: str, seed: int, fingerprint: str) -> str:
    return f"{name}-{seed}-{fingerprint}"


def tree_parameters(best: dict[str, Any]) -> dict[str, Any]:
    """Of a study's best parameters, those of the trees."""
    return {k: v for k, v in best["params"].items() if not k.endswith("_samples")}


def write(best: dict[str, dict[str, Any]], path: Path) -> None:
    write_json(path, best, sort_keys=False)
