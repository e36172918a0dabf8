"""Two detectors side by side on an evaluation set that neither was registered with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import synthetic
from hspi.detectors.training import Bench, fit_verifier
from hspi.errors import DataError
from hspi.evaluation import rescore
from hspi.tracking.registry import PRIMARY
from synthetic import SEED, World

TREES = {"n_estimators": 40, "max_depth": 4}


def test_a_detector_that_learned_nothing_scores_below_one_that_learned(world: World, tmp_path: Path) -> None:
    good = synthetic.trained(world)
    benches = [Bench.of(x, SEED) for x in world.libraries]
    nothing = fit_verifier(benches, parameters=TREES, permute=True)
    for name, verifier in (("good", good.verifier), ("bad", nothing)):
        replace(good, verifier=verifier).save(tmp_path / name)
    present = rescore.benches_of(world.libraries, SEED)
    best, worst = (rescore.score_detector(tmp_path / name, present) for name in ("good", "bad"))
    assert set(best) == set(PRIMARY)
    # Most answers here are a candidate's bit for bit, which no training is needed to see.
    assert all(best[name] > worst[name] + 0.05 for name in PRIMARY), (best, worst)
    assert rescore.score_detector(tmp_path / "good", present) == best


def test_a_detector_of_other_features_is_one_clear_line(world: World, tmp_path: Path) -> None:
    good = synthetic.trained(world)
    replace(good, verifier=good.number_format.trees).save(tmp_path / "other")
    present = rescore.benches_of(world.libraries[:1], SEED)
    with pytest.raises(DataError, match="features, as this version of hspi makes them"):
        rescore.score_detector(tmp_path / "other", present)
    with pytest.raises(DataError, match="must hold a detector"):
        rescore.score_detector(tmp_path / "nothing", present)
