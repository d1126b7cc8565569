"""Scores that are there already, in the shape of a fitted scikit-learn estimator."""

from __future__ import annotations

import numpy.typing as npt
from sklearn.base import BaseEstimator

from fairquant.postprocess._fitted import Floats


class GivenScores(BaseEstimator):  # type: ignore[misc]
    """An estimator whose one feature is the score."""

    def fit(self, features: npt.ArrayLike, labels: npt.ArrayLike) -> GivenScores:
        """Return itself: there is nothing to fit."""
        return self

    def predict(self, features: Floats) -> Floats:
        """Return the first column of ``features`` (N, 1)."""
        return features[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        """Say that it needs no fitting."""
        return True
