"""The search counts finished trials, goes on where it stopped, and never counts trials on other data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from hspi.detectors import tuning
from hspi.detectors.calibration import fit_temperature, log_loss
from hspi.detectors.number_format import SampleBench, training_tables
from hspi.detectors.training import TRAINING_SIZES, Bench
from synthetic import SEED, World

Inputs = tuple[list[Bench], list[Any]]


def inputs(world: World) -> Inputs:
    benches = [Bench.of(x, SEED) for x in world.libraries[:1]]
    return benches, training_tables([SampleBench(x, SEED) for x in world.libraries])


@pytest.fixture(scope="module")
def ready(world: World) -> Inputs:
    return inputs(world)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search as it is, over small forests alone, so that a trial takes a tenth of a second."""

    def small(trial: optuna.Trial) -> dict[str, Any]:
        depth, rate = trial.suggest_int("max_depth", 1, 3), trial.suggest_float("learning_rate", 0.05, 0.3)
        return {"n_estimators": 4, "max_depth": depth, "learning_rate": rate}

    monkeypatch.setattr(tuning, "trees", small)


def trials_of(journal: Path) -> dict[str, list[optuna.trial.FrozenTrial]]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    return {n: optuna.load_study(study_name=n, storage=storage).get_trials() for n in names}


def test_a_stopped_search_goes_on_and_the_total_holds(ready: Inputs, tmp_path: Path) -> None:
    journal = tmp_path / "j" / "optuna.journal"
    seen: list[tuple[str, int]] = []

    def stop(name: str, trial: optuna.trial.FrozenTrial) -> None:
        seen.append((name, trial.number))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning.tune(*ready, 3, journal, 0, "data", stop)
    assert seen == [("verifier", 0), ("verifier", 1)]
    best = tuning.tune(*ready, 3, journal, 0, "data", lambda name, t: seen.append((name, t.number)))
    assert seen == [("verifier", i) for i in range(3)] + [("classifier", i) for i in range(3)]
    assert tuning.tune(*ready, 3, journal, 0, "data", lambda name, t: pytest.fail("nothing was left to do")) == best
    for name, trials in trials_of(journal).items():
        assert len(trials) == 3, name
        drawn = {json.dumps(t.params, sort_keys=True) for t in trials}
        assert len(drawn) == 3, "a search that goes on does not repeat its first draws"
    for name, study in best.items():
        values = [t.value for t in trials_of(journal)[f"{name}-0-data"] if t.value is not None]
        assert study["value"] == min(values)


def test_every_finished_trial_is_told_of_after_a_stop(ready: Inputs, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    tuning.tune(*ready, 1, journal, 0, "data")
    tuning.tune(*ready, 2, journal, 0, "data")
    found = tuning.finished_trials(journal, 0, "data")
    assert {name: [t.number for t in trials] for name, trials in found.items()} == {
        "verifier": [0, 1],
        "classifier": [0, 1],
    }


def test_pruned_trials_count_and_killed_ones_do_not(ready: Inputs, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    tuning.tune(*ready, 1, journal, 0, "data")
    name = "classifier-0-data"
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))))
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    study.ask()  # a kill leaves it running for ever
    told: list[str] = []
    tuning.tune(*ready, 3, journal, 0, "data", lambda n, t: told.append(n))
    assert told.count("classifier") == 1, "one complete and one pruned were there"


def test_a_median_pruner_ends_bad_trials(ready: Inputs, tmp_path: Path, monkeypatch: Any) -> None:
    def worse(trial: optuna.Trial) -> dict[str, Any]:
        good = trial.number < 4
        trial.suggest_float("x", 0, 1)
        return {"n_estimators": 20 if good else 1, "max_depth": 3, "learning_rate": 0.3 if good else 1e-4}

    monkeypatch.setattr(tuning, "trees", worse)
    tuning.tune(*ready, 5, tmp_path / "j", 0, "data")
    last = trials_of(tmp_path / "j")["classifier-0-data"][-1]
    assert last.state == optuna.trial.TrialState.PRUNED


def test_trials_on_other_data_are_not_counted(ready: Inputs, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    tuning.tune(*ready, 1, journal, 0, "old")
    told: list[str] = []
    tuning.tune(*ready, 1, journal, 0, "new", lambda n, t: told.append(n))
    assert told == ["verifier", "classifier"]


_KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import synthetic, test_detectors_tuning
from hspi.detectors import tuning
tuning.trees = lambda t: {{"n_estimators": 4, "max_depth": t.suggest_int("max_depth", 1, 3)}}
ready = test_detectors_tuning.inputs(synthetic.world())
tuning.tune(*ready, 50, Path(sys.argv[1]), 0, "data", lambda n, t: print(n, t.number, flush=True))
"""


def test_a_killed_search_goes_on(ready: Inputs, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    script = _KILLED.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script, str(journal)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        time.sleep(0.05)  # in the middle of the third
        process.send_signal(signal.SIGKILL)
    assert lines == ["verifier 0\n", "verifier 1\n"]
    before = trials_of(journal)["verifier-0-data"]
    tuning.tune(*ready, 4, journal, 0, "data")
    after = trials_of(journal)["verifier-0-data"]
    finished = [t for t in after if t.state.is_finished()]
    assert len(finished) == 4 and [t.params for t in after[:2]] == [t.params for t in before[:2]]


# ---------------------------------------------------------------- small parts


def test_sizes_run_from_few_at_many_probes_to_many_at_one() -> None:
    sizes = tuning.verifier_sizes(3, 12)
    assert [(n, k) for n, k, _ in sizes] == [(n, k) for n, k, _ in TRAINING_SIZES]
    by = {n: count for n, _, count in sizes}
    assert by[32] == 3 and by[1] == 12 and by[32] <= by[8] <= by[2] <= by[1]


def test_log_loss_of_scores_that_know_nothing_is_that_of_chance() -> None:
    truth = np.random.default_rng(0).integers(0, 4, 2000)
    nothing, all_of_it = np.zeros((2000, 4)), 5 * np.eye(4)[truth]
    assert log_loss(nothing, truth, fit_temperature(nothing, truth)) == pytest.approx(np.log(4))
    assert log_loss(all_of_it, truth, fit_temperature(all_of_it, truth)) < 1e-3


def test_the_trees_parameters_are_told_from_the_samples(tmp_path: Path) -> None:
    best = {"verifier": {"value": 1.0, "trial": 0, "params": {"max_depth": 3, "few_samples": 2, "many_samples": 6}}}
    assert tuning.tree_parameters(best["verifier"]) == {"max_depth": 3}
    tuning.write(best, tmp_path / "x" / "best.json")
    assert json.loads((tmp_path / "x" / "best.json").read_text()) == best
