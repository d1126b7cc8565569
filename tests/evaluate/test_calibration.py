"""AUC against scikit-learn, expected calibration error against a loop over bins."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fairquant.errors import DataError
from fairquant.evaluate.calibration import area_under_curve, calibration, expected_calibration_error
from fairquant.predictions import SplitPredictions

GROUPS = ("0.5", "b", "c")


def random_part(seed: int = 0, n: int = 400, classes: int = 3, scale: float = 1.5) -> SplitPredictions:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=scale, size=(n, classes)).astype(np.float32)
    labels = np.where(random.random(n) < 0.5, logits.argmax(axis=1), random.integers(0, classes, n))
    return SplitPredictions(logits, labels, random.integers(0, 3, n), np.arange(n))


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def loop_ece(part: SplitPredictions, g: int) -> float:
    rows = [i for i in range(len(part.labels)) if part.groups[i] == g]
    probabilities, error = softmax(part.logits), 0.0
    for b in range(15):
        inside = [i for i in rows if b / 15 < probabilities[i].max() <= (b + 1) / 15]
        if inside:
            accuracy = sum(probabilities[i].argmax() == part.labels[i] for i in inside) / len(inside)
            confidence = sum(probabilities[i].max() for i in inside) / len(inside)
            error += len(inside) / len(rows) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equals_scikit_learn_and_a_loop(classes):
    part, positive = random_part(classes=classes), classes - 1
    names = [f"class {k}" for k in range(classes)]
    result = calibration(part, classes=names, groups=GROUPS, positive=positive)
    assert list(result) == ["0·5", "b", "c"]
    for g, values in enumerate(result.values()):
        member = part.groups == g
        probability = softmax(part.logits)[member, positive]
        assert values["auc"] == pytest.approx(roc_auc_score(part.labels[member] == positive, probability))
        assert values["ece"] == pytest.approx(loop_ece(part, g))
    json.dumps(result, allow_nan=False)


def test_ties_count_half():
    random = np.random.default_rng(0)
    scores, positives = random.integers(0, 5, 300), random.random(300) < 0.3
    assert area_under_curve(scores, positives) == pytest.approx(roc_auc_score(positives, scores))
    assert area_under_curve([1, 1, 1], [True, False, True]) == 0.5


def test_equal_probabilities_tie_whatever_the_logits():
    random = np.random.default_rng(3)
    plain = random.integers(-2, 3, (400, 3))
    labels = random.integers(0, 3, 400)
    others = np.sort(plain[:, [0, 2]] - plain[:, [1]], axis=1)
    odds = {tuple(pair): 1 / np.exp(pair).sum() for pair in others.tolist()}  # one for each pair: exact ties
    expected = roc_auc_score(labels == 1, [odds[tuple(pair)] for pair in others.tolist()])

    shifted = (plain + random.integers(-30, 31, (400, 1))).astype(np.float32)  # adds nothing to any probability
    part = SplitPredictions(shifted, labels, np.zeros(400, np.int64), np.arange(400))
    found = calibration(part, classes=("a", "b", "c"), groups=("all",), positive=1)["all"]["auc"]
    assert found == pytest.approx(expected, abs=1e-12)

    pair = np.array([[3, -2, 2], [5, 0, 4]], np.float32)  # the same probabilities, two units apart
    part = SplitPredictions(pair, np.array([1, 0]), np.zeros(2, np.int64), np.arange(2))
    assert calibration(part, classes=("a", "b", "c"), groups=("all",), positive=1)["all"]["auc"] == 0.5


def test_probabilities_that_round_to_one_still_rank():
    logits = np.array([[0, 50], [0, 60], [0, 70], [0, 80]], np.float32)
    part = SplitPredictions(logits, np.array([0, 0, 1, 1]), np.zeros(4, np.int64), np.arange(4))
    assert calibration(part, classes=("a", "b"), groups=("all",), positive=1)["all"]["auc"] == 1.0


def test_honest_and_overconfident_by_hand():
    # 15 of 20 right: at confidence 3/4 honest, at confidence 1 off by 1/4
    labels, groups = np.repeat([0, 1], [15, 5]), np.zeros(20, np.int64)
    for lead, expected in ((np.log(3), 0.0), (1000.0, 0.25)):
        part = SplitPredictions(np.tile(np.float32([lead, 0]), (20, 1)), labels, groups, np.arange(20))
        assert expected_calibration_error(part, groups=("all",))[0] == pytest.approx(expected, abs=1e-7)


def test_without_positive_class_there_is_no_auc():
    result = calibration(random_part(), classes=("a", "b", "c"), groups=GROUPS, positive=None)
    assert {tuple(values) for values in result.values()} == {("ece",)}


def test_one_class_only_is_null_with_one_warning(caplog):
    part = random_part(classes=2)
    labels = np.where(part.groups == 1, 0, part.labels)
    with caplog.at_level(logging.WARNING):
        result = calibration(
            dataclasses.replace(part, labels=labels), classes=("x", "y"), groups=(*GROUPS, "nobody"), positive=1
        )
    assert result["b"]["auc"] is None
    assert result["b"]["ece"] is not None
    assert result["nobody"] == {"auc": None, "ece": None}
    assert caplog.messages == [
        "auc and ece: undefined (no samples) in group 'nobody'; null",
        "auc: undefined (one class only) in group 'b'; null",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_null(caplog, value):
    part = random_part(classes=2)
    logits = part.logits.copy()
    logits[np.flatnonzero(part.groups == 2)[0], 1] = value
    with caplog.at_level(logging.WARNING):
        result = calibration(dataclasses.replace(part, logits=logits), classes=("x", "y"), groups=GROUPS, positive=1)
    assert result["c"] == {"auc": None, "ece": None}
    assert caplog.messages == ["auc and ece: undefined (logits not finite) in group 'c'; null"]


def test_permutation_of_groups_permutes():
    part = random_part(classes=2)
    names = {"classes": ("x", "y"), "positive": 1}
    turned = dataclasses.replace(part, groups=2 - part.groups)
    assert calibration(turned, groups=GROUPS[::-1], **names) == calibration(part, groups=GROUPS, **names)


def test_another_number_of_classes_is_refused():
    with pytest.raises(DataError, match="metrics: got logits of 3 classes; allowed: 2"):
        calibration(random_part(classes=3), classes=("x", "y"), groups=GROUPS, positive=1)
