"""The stages of the pipeline, one function each: read files, call the science, write files. dvc.yaml names them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hspi.errors import DataError
from hspi.evidence import library as libraries
from hspi.files import read_json, whole, write_bytes
from hspi.params import Params
from hspi.reference.store import references
from hspi.signatures.store import STORE, in_use

Step = Callable[[str], object]

REFERENCE = Path("data/reference")
FEATURES = Path("data/features")
DETECTOR = Path("models/detector")
RUN = Path("models/run.json")
JOURNAL = Path("models/optuna.journal")
BEST = Path("reports/tuning/best.json")
TRIALS = Path("reports/tuning/trials.csv")
METRICS = Path("reports/metrics.json")
TABLES = Path("reports/tables")
VIRTUAL_GPUS = Path("docs/virtual-gpus.json")  # of benchmarks/bench_virtual_gpus.py, which takes hours
PLOTS = Path("reports/plots")
FIGURES = Path("reports/figures")
HTML = Path("reports/report.html")
REGISTRY = Path("reports/registry.json")
TOP_KS = (20, 5)


def reference(p: Params, step: Step) -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for model in p.models:
        step(model)
        references(model, p.probes.specs(), REFERENCE)


def featurize(p: Params, step: Step) -> list[Path]:
    wanted = in_use(STORE, p.use)
    return libraries.featurize(
        p.models, p.probes.specs(), STORE, REFERENCE, FEATURES, p.evaluation.seed, p.evaluation.top_k, step, wanted
    )


def tune(p: Params, step: Step) -> dict[str, Any]:
    from hspi import tracking
    from hspi.detectors import tuning
    from hspi.detectors.number_format import SampleBench, training_tables
    from hspi.detectors.training import Bench

    loaded = libraries.features(FEATURES)
    seed = p.evaluation.seed
    benches = [Bench.of(library, seed, TOP_KS) for library in loaded]
    tables = training_tables([SampleBench(library, seed) for library in loaded])

    def on_trial(name: str, trial: Any) -> None:
        step(f"{name} trial {trial.number}")

    best = tuning.tune(benches, tables, p.tuning.trials, JOURNAL, p.tuning.seed, fingerprint(), on_trial)
    seen = tuning.finished_trials(JOURNAL, p.tuning.seed, fingerprint())
    for name, trials in seen.items():
        tracking.log_trials(trials, f"{name}-{p.tuning.seed}-{fingerprint()}")
    tuning.write(best, BEST)
    _write_trials(seen)
    return best


def fingerprint() -> str:
    """A short hash of the features, so that a study never mixes trials on different data."""
    import hashlib

    digest = hashlib.sha256((FEATURES / libraries.CLASSES).read_bytes())
    return digest.hexdigest()[:12]


def _write_trials(seen: dict[str, list[Any]]) -> None:
    with whole(TRIALS) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["study", "number", "state", "value", "params"])
        for name, trials in seen.items():
            for t in trials:
                writer.writerow([name, t.number, t.state.name, t.value, json.dumps(t.params, sort_keys=True)])


def best_parameters() -> dict[str, dict[str, Any]]:
    """Tree parameters that tuning found: {"verifier": …, "classifier": …}. Raises DataError if it has not run."""
    from hspi.detectors.tuning import tree_parameters

    try:
        best = read_json(BEST)
    except (OSError, ValueError) as error:
        raise DataError(f"{BEST} must hold tuned parameters, but: {error}; run `hspi tune`") from error
    return {name: tree_parameters(study) for name, study in best.items()}


def train(p: Params, step: Step) -> dict[str, Any]:
    """The detector that ships: fitted on every setting and platform, judged by `evaluate` on what it never saw."""
    from hspi import tracking
    from hspi.detectors.detector import Detector
    from hspi.detectors.estimators import Boosted
    from hspi.detectors.number_format import NumberFormat, SampleBench
    from hspi.detectors.training import Bench, calibrate, fit_verifier

    loaded, best = libraries.features(FEATURES), best_parameters()
    seed = p.evaluation.seed
    trained_on = sorted({id for library in loaded for id in library.platform_ids})
    with tracking.training_run({"tuned": best, "params": asdict(p)}, trained_on) as run_id:
        step("comparing signatures")
        benches = [Bench.of(library, seed, TOP_KS) for library in loaded]
        step("pair verifier")
        verifier = fit_verifier(benches, parameters=best["verifier"])
        calibration = calibrate(verifier, benches)
        step("number formats")
        samples = [SampleBench(library, seed) for library in loaded]
        number_format = NumberFormat(Boosted(**best["classifier"])).fit(samples)
        found = Detector(verifier, number_format, calibration, {library.model: library for library in loaded})
        found.save(DETECTOR)
        step("MLflow")
        return tracking.log_detector(run_id, DETECTOR, {}, loaded[0].model, run_file=RUN)


def evaluate(p: Params, step: Step) -> dict[str, float]:
    from hspi.evaluation import protocol

    loaded = libraries.features(FEATURES)

    metrics, tables = protocol.evaluate(loaded, best_parameters(), p.evaluation.seed, step)
    protocol.write(metrics, tables, METRICS, TABLES)
    for name in ("accuracy_by_tokens", "reliability", "pair_accuracy", "confusion"):
        write_bytes(PLOTS / f"{name}.csv", (TABLES / f"{name}.csv").read_bytes())
    return metrics


def report() -> list[Path]:
    from hspi import report as reporting

    return reporting.build(TABLES, METRICS, FEATURES, Path("reports"), VIRTUAL_GPUS)


def register() -> dict[str, Any]:
    from hspi import tracking

    return tracking.publish(RUN, DETECTOR, METRICS, TABLES, FIGURES, REGISTRY, rescore=_rescore())


def _rescore() -> Callable[[Path], dict[str, float]]:
    """Scores detectors on the present features, which are read when the first is to be scored."""
    from functools import cache

    from hspi import params
    from hspi.evaluation import rescore

    @cache
    def benches() -> Any:
        return rescore.benches_of(libraries.features(FEATURES), params.load().evaluation.seed)

    return lambda folder: rescore.score_detector(folder, benches())
