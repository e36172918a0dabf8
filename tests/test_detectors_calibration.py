"""Levels: conformal p-values among a candidate's own scores, batch class by batch class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import synthetic
from hspi.detectors.calibration import AGREES, Calibration
from hspi.detectors.estimators import Boosted
from hspi.detectors.training import Bench, fit_verifier, left
from hspi.detectors.verifier import self_rows, self_scores
from hspi.errors import DataError
from synthetic import SEED, World

GRID = np.linspace(-4, 2, 99)  # 99 scores, so that p-values are hundredths


def levels(**own: dict[str, list[float]]) -> Calibration:
    """own: by candidate, its scores by setting."""
    sizes = {"8x20": GRID.tolist(), "1x5": GRID.tolist()}
    return Calibration(sizes, own_scores={f"m/{name}": {"8x20": some} for name, some in own.items()})


def test_a_p_value_is_the_share_of_right_candidates_that_score_so_low() -> None:
    found = levels().p_value(np.array([-5.0, -4.0, GRID[49], 9.0]), 8, 20)
    np.testing.assert_allclose(found, [0.01, 0.02, 0.51, 1.0])


def test_an_own_score_counts_in_the_place_of_everybody_s() -> None:
    own = levels(restless={"p b1": (GRID - 10).tolist()})
    found = own.p_value(np.array([[-9.0, -9.0]]), 8, 20, ["m/restless", "m/calm"])
    np.testing.assert_allclose(found, [[0.83, 0.01]])


def test_a_claim_falls_only_if_it_is_odd_in_each_of_its_batch_classes() -> None:
    """A server answers in one class at a time, and nobody says in which."""
    high, low = [1.0] * 99, [-3.0] * 99
    score = np.array([[-2.0]])
    for some, expected in (
        ({"p b1": high}, 0.01),
        ({"p b1": high, "p b3": low}, 1.0),
        ({"p b1": high, "p b3": []}, 0.01),
    ):
        assert levels(it=some).p_value(score, 8, 20, ["m/it"])[0, 0] == pytest.approx(expected)


def test_nobody_is_accused_over_the_last_digits_of_a_sure_score() -> None:
    sure = levels(it={"p b1": [AGREES + 3] * 99})
    assert sure.p_value(np.array([[AGREES + 1e-9]]), 8, 20, ["m/it"])[0, 0] == 1.0


def test_levels_are_those_of_the_nearest_size_that_is_not_larger() -> None:
    own = levels(it={"p b1": [1.0] * 99})
    assert own.size(40, 64) == "8x20" and own.size(7, 20) == "1x5" and own.size(8, 19) == "1x5"
    assert own.p_value(np.array([[0.0]]), 1, 5, ["m/it"])[0, 0] > 0.5, "own scores are of another size"
    with pytest.raises(DataError, match="this one is empty"):
        Calibration().size(8, 20)


def test_levels_survive_their_file_and_older_ones_are_read(tmp_path: Path) -> None:
    own, path = levels(it={"p b1": [0.0, 1.0]}), tmp_path / "calibration.json"
    path.write_text(own.to_json())
    assert Calibration.read(path) == own
    old = json.loads(own.to_json())
    old["own_scores"]["m/it"]["8x20"] = [0.0, 1.0]  # without settings
    path.write_text(json.dumps(old))
    assert Calibration.read(path).own_scores == {"m/it": {"8x20": {"": [0.0, 1.0]}}}
    for bad in ("", "[]", "{}", '{"own_scores": {"m/it": 3}}', '{"own_scores": {}, "colour": 1}'):
        path.write_text(bad)
        with pytest.raises(DataError, match="saved calibration"):
            Calibration.read(path)


# ---------------------------------------------------------------- a platform beside its own signatures


@pytest.fixture(scope="module")
def bench(world: World) -> Bench:
    return Bench.plain(world.libraries[0], SEED, (20,))


@pytest.fixture(scope="module")
def verifier(world: World) -> Boosted:
    return fit_verifier([Bench.of(world.libraries[0], SEED)], parameters={"n_estimators": 20, "max_depth": 3},
                        sizes=((8, 20, 6),))  # fmt: skip


STEADY, RESTLESS = 3, 5


def test_each_setting_of_the_library_has_levels_of_its_own(bench: Bench, verifier: Boosted) -> None:
    pairs, present = bench.comparisons[20], bench.data.present
    samples = bench.split.calibrate[:24].reshape(3, 8)
    every = [self_rows(pairs, i, present[i], samples, bench.split.fit) for i in (STEADY, RESTLESS)]
    assert [list(rows) for rows in every] == [list(synthetic.SETTINGS)] * 2
    assert all(rows.shape[0] == 3 for some in every for rows in some.values())
    distance = [np.stack(list(some.values()))[..., 0] for some in every]
    assert distance[0].max() < -5, "a steady one answers so again"
    assert distance[1][0].max() < -5 < distance[1][1:].min(), "a restless one only where it is asked alone"
    scores = self_scores(verifier, [every[0], {}, every[1]])
    assert [list(some) for some in scores] == [list(synthetic.SETTINGS), [], list(synthetic.SETTINGS)]
    assert all(len(s) == 3 and s == sorted(s) for some in scores for s in some.values())
    assert self_scores(verifier, [{}, {}]) == [{}, {}]


def test_what_is_held_out_has_no_levels_and_is_in_no_library(bench: Bench) -> None:
    pairs, samples = bench.comparisons[20], bench.split.calibrate[None, :8]
    chosen = np.array([False, True, False, True])
    found = self_rows(pairs, RESTLESS, chosen, samples, bench.split.fit)
    assert list(found) == ["b2", "b4"]
    alone = self_rows(pairs, RESTLESS, np.array([False, True, False, False]), samples, bench.split.fit)
    assert alone == {}, "an unsteady platform of one setting does not know itself"
    assert list(self_rows(pairs, STEADY, np.array([False, True, False, False]), samples, bench.split.fit)) == ["b2"]


def test_a_platform_whose_every_setting_is_held_out_keeps_all() -> None:
    present = np.array([True, True, False])
    assert left(present, [0]).tolist() == [False, True, False]
    assert left(present, [0, 1]).tolist() == present.tolist() == left(present, []).tolist()
