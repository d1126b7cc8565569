"""How well each group's probabilities rank and how honest they are: accuracy sees neither.

AUC: the probability that a random positive of the group scores above a random negative (ties count half), from the
    ranks of the scores: (sum of positives' ranks - n+ (n+ + 1) / 2) / (n+ n-)   (Mann & Whitney 1947; Hanley &
    McNeil 1982). 1 ranks perfectly, 1/2 at random.
ECE: sum over bins b of (n_b / n) |accuracy of b - mean confidence of b|, samples binned by the probability of the
    class predicted into 15 bins ((b-1)/15, b/15] (Guo et al. 2017, "On calibration of modern neural networks",
    arXiv 1706.04599). 0 is honest. It is biased upwards in small groups, where every bin holds few samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from fairquant.errors import DataError
from fairquant.evaluate.groups import Floats, defined, ratio
from fairquant.evaluate.loss import class_log_probability, warn_null
from fairquant.evaluate.summary import metric_keys
from fairquant.predictions import SplitPredictions

BINS = 15


def calibration(
    predictions: SplitPredictions, *, classes: Sequence[str], groups: Sequence[str], positive: int | None
) -> dict[str, dict[str, float | None]]:
    """Return each group's area under the ROC curve and expected calibration error.

    Args:
        predictions: logits, labels and groups of one split.
        classes: C class names.
        groups: G group names.
        positive: number of the class whose probability is ranked, one-vs-rest; None leaves out ``auc``, as with more
            than two classes and none named (``summary.positive_index``).

    Returns:
        By group {auc, ece}, both in [0, 1]. Null with one warning: the AUC of a group all of one kind, both values
        of a group without samples or with logits that are not finite.

    Raises:
        DataError: the logits have another number of classes.

    Example:
        >>> logits = np.array([[4, 0], [0, 4], [0, 1], [0, 0]], np.float32)
        >>> part = SplitPredictions(logits, np.array([0, 1, 0, 1]), np.array([0, 0, 0, 0]), np.arange(4))
        >>> values = calibration(part, classes=["benign", "malignant"], groups=["all"], positive=1)["all"]
        >>> values["auc"], round(values["ece"], 3)
        (0.75, 0.317)
    """
    if predictions.logits.shape[1] != len(classes):
        raise DataError(f"metrics: got logits of {predictions.logits.shape[1]} classes; allowed: {len(classes)}")
    finite = np.isfinite(predictions.logits).all(axis=1)
    counts = np.bincount(predictions.groups, minlength=len(groups))
    broken = np.bincount(predictions.groups[~finite], minlength=len(groups)) > 0
    name = "ece" if positive is None else "auc and ece"
    warn_null(name, "no samples", groups, counts == 0)
    warn_null(name, "logits not finite", groups, broken)
    columns: dict[str, Floats] = {}
    if positive is not None:
        columns["auc"] = _group_auc(predictions, groups, positive, (counts > 0) & ~broken)
    columns["ece"] = np.where(broken, np.nan, expected_calibration_error(predictions, groups=groups))
    return {
        key: {metric: defined(values[g]) for metric, values in columns.items()}
        for g, key in enumerate(metric_keys(groups))
    }


def expected_calibration_error(predictions: SplitPredictions, *, groups: Sequence[str], bins: int = BINS) -> Floats:
    """Return each group's expected calibration error over ``bins`` equal-width bins, (G,); NaN without samples."""
    predicted = predictions.predicted
    confidence = np.exp(class_log_probability(predictions.logits, predicted))
    inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    cell = predictions.groups * bins + np.searchsorted(inner, confidence, side="left")
    surplus = (predicted == predictions.labels) - confidence
    total = np.bincount(cell, weights=surplus, minlength=len(groups) * bins).reshape(len(groups), bins)
    return ratio(np.abs(total).sum(axis=1), np.bincount(predictions.groups, minlength=len(groups)))


DIGITS = 10
"""Decimals of log-odds that rank samples: what differs less does so by rounding, and ties."""


def area_under_curve(scores: npt.ArrayLike, positives: npt.ArrayLike) -> float | None:
    """Return the area under the ROC curve of ``scores`` (N,) for boolean ``positives`` (N,); None if all are alike.

    >>> area_under_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    is_positive = np.asarray(positives, dtype=bool)
    n_positive, n = int(is_positive.sum()), len(is_positive)
    if n_positive in (0, n):
        return None
    ranks = stats.rankdata(np.asarray(scores, dtype=np.float64))
    above = float(ranks[is_positive].sum()) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * (n - n_positive))


def _log_odds(logits: Floats, positive: int) -> Floats:
    """Return log p / (1 − p) of the class ``positive``, (N,); equal where probabilities are, whatever the logits."""
    others = np.sort(np.delete(logits, positive, axis=1) - logits[:, [positive]], axis=1)
    odds: Floats = -np.logaddexp.reduce(others, axis=1).round(DIGITS)
    return odds


def _group_auc(
    predictions: SplitPredictions, groups: Sequence[str], positive: int, usable: npt.NDArray[np.bool_]
) -> Floats:
    """Return each group's AUC; log-odds rank like the probability but do not run into 1.0, where all would tie."""
    logits = predictions.logits.astype(np.float64)
    positives = predictions.labels == positive
    values = np.full(len(groups), np.nan)
    for g in np.flatnonzero(usable):
        member = predictions.groups == g
        area = area_under_curve(_log_odds(logits[member], positive), positives[member])
        values[g] = np.nan if area is None else area
    warn_null("auc", "one class only", groups, usable & np.isnan(values))
    return values
