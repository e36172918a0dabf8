"""What counts as right in the replay protocol, and what its folds hold out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hspi.detectors.training import Bench, fit_verifier
from hspi.evaluation.replay import (
    CLASS_FOLDS,
    ReplayReport,
    _pairs,
    alike,
    class_folds,
    pooled,
    score_samples,
)
from hspi.evidence.library import Library
from synthetic import SEED, World

TREES = {"n_estimators": 15, "max_depth": 3}
FP32_A, FP32_B = 3, 4


def shared(library: Library, settings: list[int], padded: bool = False) -> Library:
    """The same where `fp32-b` answers as `fp32-a` in some batch classes; padded: fewer values came than are kept."""
    arrays = {name: getattr(library.data, name).copy() for name in ("logprobs", "rank", "raw")}
    for array in arrays.values():
        array[FP32_B, settings] = array[FP32_A, settings]
    if padded:
        arrays["raw"][..., 40:] = np.nan
    return Library.measured(replace(library.data, **arrays), SEED, 20)


# ---------------------------------------------------------------- what counts as right


@pytest.mark.parametrize("padded", [False, True])
def test_classes_that_answer_alike_in_a_batch_class_are_each_right(world: World, padded: bool) -> None:
    bench = Bench.plain(shared(world.libraries[0], [0], padded), SEED, (20,))
    a, b = (bench.classes.label[i] for i in (FP32_A, FP32_B))
    assert a != b, "another batch class parts them"
    for row, expected in (((FP32_A, 0), {a, b}), ((FP32_B, 0), {a, b}), ((FP32_A, 1), {a}), ((0, 0), {0})):
        assert set(np.flatnonzero(alike(bench, row)).tolist()) == expected


def test_an_answer_that_nobody_could_tell_from_the_truth_is_right(world: World) -> None:
    library = shared(world.libraries[0], [0, 1])
    bench = Bench.of(library, SEED)
    verifier = fit_verifier([bench], parameters=TREES)
    rows = [(c, s) for c in (FP32_A, FP32_B) for s in range(4)]
    part = score_samples(verifier, bench, 32, 20, rows)
    assert pooled([part], 32).value == 1 and part.nearest().min() == 1
    told = (part.scores.argmax(axis=1) == part.truth).reshape(8, -1).all(axis=1)
    assert told.tolist() == [True] * 4 + [False, False, True, True], "of two that score alike the first is taken"


def test_pairs_are_counted_where_they_can_be_told_apart(world: World) -> None:
    """Half of their batch classes are one; in the other half they are told apart each time."""
    bench = Bench.of(shared(world.libraries[0], [0, 1]), SEED)
    part = score_samples(fit_verifier([bench], parameters=TREES), bench, 32, 20, bench.data.rows)
    report = ReplayReport()
    _pairs(report, [part])
    assert report.figures["replay.probes.min_pair_accuracy"] == 1
    pairs = [(r["platform_a"], r["platform_b"]) for r in report.tables["pair_accuracy"]]
    assert ("cpu/fp32-b", "cpu/fp32-a") in pairs and len(pairs) == 10


def test_a_scored_part_credits_by_its_table(world: World) -> None:
    """Permuted truths carry their batch classes with them."""
    bench = Bench.plain(world.libraries[0], SEED, (20,))
    part = score_samples(
        fit_verifier([Bench.of(world.libraries[0], SEED)], parameters=TREES), bench, 32, 20, bench.data.rows
    )
    assert part.right.min() == 1
    order = np.random.default_rng(0).permutation(len(part.truth))
    part.truth = part.truth[order]
    part.table = replace(part.table, truth=part.table.truth[order], setting=part.table.setting[order])
    assert pooled([part], 32).value < 0.45


# ---------------------------------------------------------------- what is held out


def test_every_row_is_held_out_once_and_a_class_s_rows_together(world: World) -> None:
    bench = Bench.plain(world.libraries[0], SEED, ())
    folds = class_folds(bench)
    assert len(folds) == CLASS_FOLDS
    assert sorted(row for fold in folds for row in fold) == bench.data.rows
    for fold in folds:
        assert len({s for c, s in fold if bench.classes.label[c] == 0}) == 1 and {
            (0, s) for c, s in fold if c == 2
        } <= set(fold)
