"""Detectors that read one observation: the paper's linear SVM, and gradient-boosted trees.

scikit-learn estimators; `tests/test_detectors_estimators.py` runs scikit-learn's own conformance checks on each.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
from joblib import parallel_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.multiclass import OneVsOneClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from hspi.errors import DataError
from hspi.files import write_bytes, write_json


class HspiLd(ClassifierMixin, BaseEstimator):
    """HSPI-LD as published: standardised split floats into a one-vs-one LinearSVC (arXiv 2411.05197, section 4.2).

    With more features than samples the standardised data are first turned onto their own span by an orthogonal map.
    An L2-regularised linear machine gives the same decisions before and after (its solution lies in that span), at a
    small part of the cost; `rotate=False` trains on the features themselves.

    C, max_iter, random_state: as scikit-learn's LinearSVC has them.
    """

    def __init__(self, C: float = 1.0, max_iter: int = 1000, rotate: bool = True, random_state: int | None = 0) -> None:
        self.C = C
        self.max_iter = max_iter
        self.rotate = rotate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """X (n_samples, n_features), finite; y (n_samples,). Raises ValueError for fewer than 2 classes."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, but got 1 class: {self.classes_[0]!r}")
        self.scaler_ = StandardScaler().fit(X)
        z = self.scaler_.transform(X)
        self.basis_ = _span(z) if self.rotate and z.shape[0] < z.shape[1] else None
        machine = _Spanned if self.rotate else LinearSVC
        svm = machine(C=self.C, max_iter=self.max_iter, random_state=self.random_state)
        with warnings.catch_warnings():
            # On bits that look alike the machines of some pairs never settle, in the paper's code as here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            with parallel_config("threading"):  # liblinear holds no lock
                self.svm_ = OneVsOneClassifier(svm, n_jobs=os.cpu_count()).fit(self._turn(z), y)
        self.n_iter_ = max(int(np.max(e.n_iter_)) for e in self.svm_.estimators_)
        return self

    def _turn(self, z: np.ndarray) -> np.ndarray:
        return z if self.basis_ is None else z @ self.basis_

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n_samples,) of X (n_samples, n_features). Raises NotFittedError before `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.svm_.predict(self._turn(self.scaler_.transform(X))))


class _Spanned(LinearSVC):
    """A LinearSVC that is trained on the span of its own samples: the same decisions, fewer columns."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        if X.shape[0] >= X.shape[1]:
            return super().fit(X, y, sample_weight)
        basis = _span(X)
        super().fit(X @ basis, y, sample_weight)
        self.coef_ = self.coef_ @ basis.T  # type: ignore[has-type]
        self.n_features_in_ = X.shape[1]
        return self


def _span(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis (n_features, rank) of the rows of z."""
    values, vectors = np.linalg.eigh(z @ z.T)
    keep = values > values[-1] * 1e-10
    return np.asarray((z.T @ vectors[:, keep]) / np.sqrt(values[keep]))


class Boosted(ClassifierMixin, BaseEstimator):
    """XGBoost's histogram trees with any labels, missing values allowed, saved as UBJ and JSON (never a pickle).

    Two classes are told by logistic loss, more by softmax (Chen and Guestrin, *XGBoost*, KDD 2016). The parameters are
    XGBoost's own, by its names; n_estimators: trees, of each class where there are more than two. monotone: for each
    feature, 1 or −1 where the score may only rise or fall with it, else 0 (two classes).
    One thread by default: beside another process, more threads and their spinning cost tens of times the work.
    """

    def __init__(
        self,
        n_estimators: int = 200,
        max_depth: int = 5,
        learning_rate: float = 0.15,
        min_child_weight: float = 2.0,
        subsample: float = 0.8,
        colsample_bytree: float = 0.8,
        reg_lambda: float = 1.0,
        monotone: tuple[int, ...] | None = None,
        nthread: int = 1,
        random_state: int | None = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.min_child_weight = min_child_weight
        self.subsample = subsample
        self.colsample_bytree = colsample_bytree
        self.reg_lambda = reg_lambda
        self.monotone = monotone
        self.nthread = nthread
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """X float32 (n_samples, n_features), NaN where missing; y (n_samples,); sample_weight (n_samples,) or None.

        Raises ValueError for fewer than 2 classes, and for weights that are all zero.
        """
        import xgboost

        X, y = validate_data(self, X, y, dtype=np.float32, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, but got 1 class: {self.classes_[0]!r}")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
            if not sample_weight.any():
                raise ValueError("sample_weight must not be all zero, but it is")
        matrix = xgboost.QuantileDMatrix(X, label=codes, weight=sample_weight, nthread=self.nthread, max_bin=256)
        self.booster_ = xgboost.train(self._parameters(), matrix, self.n_estimators)
        return self

    def _parameters(self) -> dict[str, Any]:
        n = len(self.classes_)
        goal = {"objective": "binary:logistic"} if n == 2 else {"objective": "multi:softprob", "num_class": n}
        names = ("max_depth", "learning_rate", "min_child_weight", "subsample", "colsample_bytree", "reg_lambda")
        if self.monotone is not None:
            goal["monotone_constraints"] = str(tuple(int(m) for m in self.monotone))
        rest = {"tree_method": "hist", "nthread": self.nthread, "seed": self.random_state or 0, "verbosity": 0}
        return {**goal, **rest, **{name: getattr(self, name) for name in names}}

    def margin(self, X: Any) -> np.ndarray:
        """Log-odds (natural) before the link, float32: (n_samples,) for two classes, that of the second of `classes_`;
        (n_samples, n_classes) for more. X as in `fit`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False, ensure_all_finite="allow-nan")
        return np.asarray(self.booster_.inplace_predict(X, predict_type="margin"))

    def predict_proba(self, X: Any) -> np.ndarray:
        """float32 (n_samples, n_classes), columns in the order of `classes_`. X as in `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False, ensure_all_finite="allow-nan")
        found = np.asarray(self.booster_.inplace_predict(X))
        return np.stack([1 - found, found], axis=1) if found.ndim == 1 else found

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row: (n_samples,). X as in `fit`."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def save(self, path: str | Path) -> None:
        """Write PATH.ubj (trees) and PATH.json (labels, parameters), each whole or not at all."""
        check_is_fitted(self)
        path = Path(path)
        write_bytes(path.with_suffix(".ubj"), bytes(self.booster_.save_raw("ubj")))
        about = {"classes": self.classes_.tolist(), "n_features": self.n_features_in_, "params": self.get_params()}
        write_json(path.with_suffix(".json"), about, sort_keys=False, end="")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises DataError if it is not there or not whole."""
        import xgboost

        path = Path(path)
        try:
            about = json.loads(path.with_suffix(".json").read_text("utf-8"))
            self = cls(**about["params"])
            self.classes_ = np.asarray(about["classes"])
            self.n_features_in_ = about["n_features"]
            booster = xgboost.Booster({"nthread": self.nthread})
            booster.load_model(path.with_suffix(".ubj"))
        except (OSError, ValueError, KeyError, TypeError, xgboost.core.XGBoostError) as error:
            raise DataError(f"{path}.ubj and .json must be a saved detector, but: {str(error)[:200]!r}") from error
        self.booster_ = booster
        return self
