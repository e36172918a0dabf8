"""scikit-learn's own conformance suite on both estimators, and files that give the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hspi.detectors.estimators import Boosted, HspiLd
from hspi.errors import DataError

SKETCH = "histogram cuts and row subsampling see rows, not weights: repeating a row is not the same as doubling it"


def expected_failures(estimator: Any) -> dict[str, str]:
    if isinstance(estimator, Boosted):
        return {"check_sample_weight_equivalence_on_dense_data": SKETCH}
    return {}


@parametrize_with_checks([HspiLd(), Boosted(n_estimators=10)], expected_failed_checks=expected_failures)
def test_conformance(estimator: Any, check: Any) -> None:
    check(estimator)


# ---------------------------------------------------------------- HSPI-LD


def wide(samples: int = 60, features: int = 300, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(
        samples, features, n_informative=12, n_classes=classes, class_sep=1.0, flip_y=0.1, random_state=0
    )


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_turning_the_data_onto_their_span_changes_no_decision(C: float) -> None:
    x, y = wide()
    plain, turned = (HspiLd(C=C, max_iter=100_000, rotate=r).fit(x[:40], y[:40]) for r in (False, True))
    assert turned.basis_ is not None and plain.basis_ is None
    assert turned.basis_.shape == (300, 39), "40 centred samples span 39 directions"
    np.testing.assert_allclose(turned.basis_.T @ turned.basis_, np.eye(39), atol=1e-9)
    np.testing.assert_array_equal(plain.predict(x), turned.predict(x))
    scale = [StandardScaler().fit(x[:40]).transform(x) @ m for m in (np.eye(300), turned.basis_)]
    a, b = (m.svm_.decision_function(z) for m, z in zip((plain, turned), scale, strict=True))
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_columns_that_never_change_are_harmless() -> None:
    x, y = wide()
    x[:, 5:] = x[0, 5:]
    assert HspiLd().fit(x, y).predict(x).shape == y.shape


# ---------------------------------------------------------------- trees


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, np.digitize(np.nan_to_num(x[:, 0] - x[:, 1]), [-0.7, 0.7])


@pytest.mark.parametrize(
    "labels",
    [np.array(["fp32", "bf16", "mxint8"]), np.array([7, 9, -2]), np.array(["no", "yes", "yes"]), np.array([0, 1, 1])],
)
def test_a_saved_detector_gives_the_same_bits(tables: Any, labels: np.ndarray, tmp_path: Path) -> None:
    x, codes = tables
    fitted = Boosted(n_estimators=15, max_depth=3).fit(x, labels[codes])
    fitted.save(tmp_path / "a" / "trees")
    again = Boosted.load(tmp_path / "a" / "trees")
    assert again.predict_proba(x).tobytes() == fitted.predict_proba(x).tobytes()
    assert again.margin(x).tobytes() == fitted.margin(x).tobytes()
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
    assert again.get_params() == fitted.get_params() and again.n_features_in_ == 5
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["trees.json", "trees.ubj"]


def test_learns_where_values_are_missing_and_says_how_sure(tables: Any) -> None:
    x, y = tables
    fitted = Boosted(n_estimators=60).fit(x[:150], y[:150])
    assert (fitted.predict(x[150:]) == y[150:]).mean() > 0.75
    proba = fitted.predict_proba(x)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    binary = Boosted(n_estimators=10).fit(x, y == 1)
    margin = binary.margin(x)
    np.testing.assert_allclose(1 / (1 + np.exp(-margin)), binary.predict_proba(x)[:, 1], atol=1e-6)


def test_weights_move_the_decision(tables: Any) -> None:
    x, y = tables
    heavy = Boosted(n_estimators=10).fit(x, y, sample_weight=np.where(y == 2, 50.0, 0.1))
    assert (heavy.predict(x) == 2).mean() > (y == 2).mean() + 0.2


def test_the_same_seed_gives_the_same_trees(tables: Any) -> None:
    x, y = tables
    a, b, c = (Boosted(n_estimators=10, random_state=s).fit(x, y).predict_proba(x) for s in (3, 3, 4))
    assert a.tobytes() == b.tobytes() != c.tobytes()


def test_torn_or_foreign_files_are_data_errors(tables: Any, tmp_path: Path) -> None:
    Boosted(n_estimators=5).fit(*tables).save(tmp_path / "t")
    trees, about = tmp_path / "t.ubj", tmp_path / "t.json"
    whole, text = trees.read_bytes(), about.read_text()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        trees.write_bytes(whole[:size])
        with pytest.raises(DataError, match="saved detector"):
            Boosted.load(tmp_path / "t")
    trees.write_bytes(whole)
    for bad in ("", "[]", "{}", json.dumps({**json.loads(text), "params": {"colour": 1, "nthread": 1}})):
        about.write_text(bad)
        with pytest.raises(DataError, match="saved detector"):
            Boosted.load(tmp_path / "t")
    about.write_text(text)
    Boosted.load(tmp_path / "t")
    trees.unlink()
    with pytest.raises(DataError):
        Boosted.load(tmp_path / "t")
