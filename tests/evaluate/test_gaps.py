"""Gaps against fairlearn, values by hand, and what happens where a rate is undefined."""

from __future__ import annotations

import logging

import fairlearn.metrics as fairlearn
import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from fairquant.evaluate import gaps
from fairquant.evaluate.groups import GroupTable

CLASSES = ("benign", "malignant")


def sample(seed: int, n: int = 300, classes: int = 2, groups: int = 3):
    random = np.random.default_rng(seed)
    labels, group = random.integers(0, classes, n), random.integers(0, groups, n)
    predicted = np.where(random.random(n) < 0.4 + 0.2 * group, labels, random.integers(0, classes, n))
    return labels, predicted, group


def table_of(labels, predicted, group, classes=CLASSES, groups=("I", "II", "III")):
    return GroupTable.count(labels, predicted, group, classes=classes, groups=groups)


@pytest.mark.parametrize("seed", range(6))
def test_binary_family_agrees_with_fairlearn(seed):
    labels, predicted, group = sample(seed)
    table = table_of(labels, predicted, group)
    arguments = (labels, predicted)
    sensitive = {"sensitive_features": group}
    assert gaps.dp_difference(table, 1) == pytest.approx(
        fairlearn.demographic_parity_difference(*arguments, **sensitive)
    )
    assert gaps.dp_ratio(table, 1) == pytest.approx(fairlearn.demographic_parity_ratio(*arguments, **sensitive))
    assert gaps.equalized_odds(table, 1) == pytest.approx(fairlearn.equalized_odds_difference(*arguments, **sensitive))
    assert gaps.equal_opportunity(table, 1) == pytest.approx(
        fairlearn.equal_opportunity_difference(*arguments, **sensitive)
    )
    assert gaps.predictive_equality(table, 1) == pytest.approx(
        fairlearn.MetricFrame(
            metrics=fairlearn.false_positive_rate, y_true=labels, y_pred=predicted, sensitive_features=group
        ).difference()
    )


@pytest.mark.parametrize("positive", range(4))
def test_binary_family_one_against_rest_agrees_with_fairlearn(positive):
    labels, predicted, group = sample(positive, classes=4)
    table = table_of(labels, predicted, group, ("a", "b", "c", "d"))
    one, rest = labels == positive, predicted == positive
    oracles = {
        gaps.dp_difference: fairlearn.demographic_parity_difference,
        gaps.dp_ratio: fairlearn.demographic_parity_ratio,
        gaps.equal_opportunity: fairlearn.equal_opportunity_difference,
        gaps.equalized_odds: fairlearn.equalized_odds_difference,
    }
    for gap, oracle in oracles.items():
        assert gap(table, positive) == pytest.approx(oracle(one, rest, sensitive_features=group)), gap.__name__
    frame = fairlearn.MetricFrame(
        metrics=fairlearn.false_positive_rate, y_true=one, y_pred=rest, sensitive_features=group
    )
    assert gaps.predictive_equality(table, positive) == pytest.approx(frame.difference())


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_gaps_agree_with_fairlearn(seed):
    labels, predicted, group = sample(seed, classes=4)
    table = table_of(labels, predicted, group, ("a", "b", "c", "d"))
    frame = fairlearn.MetricFrame(metrics=accuracy_score, y_true=labels, y_pred=predicted, sensitive_features=group)
    assert gaps.max_minus_min(table) == pytest.approx(frame.difference())
    assert gaps.avg_accuracy(table) == pytest.approx(frame.by_group.mean())
    assert gaps.avg_minus_worst(table) == pytest.approx(frame.by_group.mean() - frame.group_min())


# TPR and FPR of group I are 1 and 0; those of group II differ more in one of the two
@pytest.mark.parametrize(
    ("predicted", "tpr_gap", "fpr_gap"), [([1, 0, 0, 0], 0.5, 0.0), ([1, 1, 0, 1], 0.0, 0.5), ([1, 0, 1, 1], 0.5, 1.0)]
)
def test_equalized_odds_is_the_larger_gap(predicted, tpr_gap, fpr_gap):
    labels, group = [1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]
    table = table_of(labels, [1, 0, *predicted], group, groups=("I", "II"))
    assert gaps.equal_opportunity(table, 1) == tpr_gap
    assert gaps.predictive_equality(table, 1) == fpr_gap
    assert gaps.equalized_odds(table, 1) == max(tpr_gap, fpr_gap)
    oracle = fairlearn.equalized_odds_difference(labels, [1, 0, *predicted], sensitive_features=group)
    assert gaps.equalized_odds(table, 1) == oracle


@pytest.mark.parametrize(("labels", "rate"), [([1, 1, 0], "tpr"), ([0, 0, 1], "fpr")])
def test_equalized_odds_needs_both_rates(labels, rate, caplog):
    # only one group has the other kind: half of the metric is unknown, so the metric is
    with caplog.at_level(logging.WARNING):
        table = table_of(labels, [1, 0, 1], [0, 1, 1], groups=("I", "II"))
        assert gaps.equalized_odds(table, 1) is None
    other = {"tpr": "fpr", "fpr": "tpr"}[rate]
    assert f"equalized_odds: undefined, fewer than two groups have a {other}; null" in caplog.messages


@pytest.mark.parametrize("seed", range(3))
def test_class_means_agree_with_fairlearn_one_against_rest(seed):
    classes = ("a", "b", "c", "d")
    labels, predicted, group = sample(seed, classes=4)
    table = table_of(labels, predicted, group, classes)

    def spread(metric, k):
        frame = fairlearn.MetricFrame(
            metrics=metric, y_true=labels == k, y_pred=predicted == k, sensitive_features=group
        )
        return frame.difference()

    tpr = [spread(fairlearn.true_positive_rate, k) for k in range(4)]
    tnr = [spread(fairlearn.true_negative_rate, k) for k in range(4)]
    fpr = [spread(fairlearn.false_positive_rate, k) for k in range(4)]
    assert gaps.eopp1(table) == pytest.approx(np.mean(tpr))
    assert gaps.eopp0(table) == pytest.approx(np.mean(tnr))
    assert gaps.eodd(table) == pytest.approx(np.mean(np.add(tpr, fpr)))


def test_accuracy_gaps_by_hand():
    # accuracies 1, 1/2, 1/4
    labels = np.zeros(10, int)
    group = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    table = table_of(labels, predicted, group)
    assert gaps.avg_accuracy(table) == pytest.approx(7 / 12)
    assert gaps.avg_minus_worst(table) == pytest.approx(7 / 12 - 1 / 4)
    assert gaps.max_minus_min(table) == 0.75
    assert gaps.worst_group(table) == "III"


def test_worst_group_of_equals_is_the_first():
    assert gaps.worst_group(table_of([0, 0, 0], [0, 0, 0], [0, 1, 2])) == "I"


def test_numbering_of_groups_does_not_matter():
    labels, predicted, group = sample(4)
    other = np.array([2, 0, 1])[group]
    for metric in (gaps.eopp1, gaps.eopp0, gaps.eodd, gaps.avg_minus_worst, gaps.max_minus_min):
        one, two = metric(table_of(labels, predicted, group)), metric(table_of(labels, predicted, other))
        assert one == pytest.approx(two, rel=1e-12)


def test_group_without_positives_is_left_out_and_named(caplog):
    # TPR: I 1, II 1/2, III undefined (never 0: the gap would be 1)
    labels, predicted, group = [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 2, 2]
    with caplog.at_level(logging.WARNING):
        assert gaps.equal_opportunity(table_of(labels, predicted, group), 1) == 0.5
    assert caplog.messages == ["equal_opportunity: tpr undefined (no positives) in group 'III'; left out of the gap"]


def test_class_mean_skips_undefined_classes_and_names_them(caplog):
    # class benign: TPR I 1, II 0; class malignant: only group I has positives
    labels, predicted, group = [0, 1, 0], [0, 1, 1], [0, 0, 1]
    with caplog.at_level(logging.WARNING):
        assert gaps.eopp1(table_of(labels, predicted, group, groups=("I", "II"))) == 1.0
    assert caplog.messages == [
        "eopp1: tpr undefined (no positives) in group 'II' class 'malignant'; left out of the gap"
    ]


def test_many_undefined_cells_make_one_line(caplog):
    classes = [f"c{k}" for k in range(20)]
    with caplog.at_level(logging.WARNING):
        gaps.eopp1(table_of([0, 0], [0, 1], [0, 1], classes, ("I", "II")))
    (message,) = caplog.messages
    assert message.count("class") == gaps.NAMED
    assert "and 33 more" in message


@pytest.mark.parametrize(
    "metric", [gaps.eopp1, gaps.eopp0, gaps.eodd, gaps.avg_minus_worst, gaps.max_minus_min], ids=lambda m: m.__name__
)
def test_one_group_has_no_gap(metric, caplog):
    with caplog.at_level(logging.WARNING):
        assert metric(table_of([0, 1, 1], [0, 1, 0], [0, 0, 0], groups=("all",))) is None
    assert "undefined, fewer than two groups have a" in caplog.text


@pytest.mark.parametrize(
    "metric",
    [gaps.dp_difference, gaps.dp_ratio, gaps.equal_opportunity, gaps.predictive_equality, gaps.equalized_odds],
    ids=lambda m: m.__name__,
)
def test_one_group_has_no_binary_gap(metric, caplog):
    with caplog.at_level(logging.WARNING):
        assert metric(table_of([0, 1], [0, 1], [0, 0], groups=("all",)), 1) is None
    assert caplog.messages


def test_ratio_without_any_selection_is_undefined(caplog):
    with caplog.at_level(logging.WARNING):
        table = table_of([0, 1], [0, 0], [0, 1], groups=("I", "II"))
        assert gaps.dp_ratio(table, 1) is None
        assert gaps.dp_difference(table, 1) == 0.0
    assert "dp_ratio: undefined, no group is predicted 'malignant'; null" in caplog.text


class TestLargeEnough:
    """Which groups count: evaluate.min_group_size."""

    MEMBERS, GROUPS = [0] * 5 + [1] * 2 + [2], ("I", "II", "III", "nobody")

    def test_one_warning_names_the_small_ones(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert gaps.large_enough(self.MEMBERS, groups=self.GROUPS, minimum=3) == (True, False, False, True)
        text = "fewer than 3 samples in 'II' (2), 'III' (1); left out of worst group and gaps"
        assert caplog.messages == [f"evaluate.min_group_size: {text}"]

    @pytest.mark.parametrize(("minimum", "counted"), [(2, [True, True, False, True]), (1, [True] * 4)])
    def test_at_the_minimum_a_group_counts(self, minimum, counted):
        assert list(gaps.large_enough(self.MEMBERS, groups=self.GROUPS, minimum=minimum)) == counted

    def test_by_default_there_is_no_warning(self, caplog):
        with caplog.at_level(logging.WARNING):
            gaps.large_enough(self.MEMBERS, groups=self.GROUPS, minimum=1)
        assert not caplog.messages

    def test_many_groups_make_one_short_line(self, caplog):
        with caplog.at_level(logging.WARNING):
            gaps.large_enough(range(20), groups=[f"g{g}" for g in range(20)], minimum=2)
        assert "'g4' (1) and 15 more; left out" in caplog.text


def test_no_group_at_all():
    table = table_of([0, 1], [0, 1], [0, 1]).only([False, False, False])
    assert gaps.worst_group(table) is None
    assert gaps.avg_accuracy(table) is None
    for metric in (gaps.eopp1, gaps.eopp0, gaps.eodd, gaps.avg_minus_worst, gaps.max_minus_min):
        assert metric(table) is None
    for binary in (gaps.dp_difference, gaps.dp_ratio, gaps.equal_opportunity, gaps.equalized_odds):
        assert binary(table, 1) is None


def test_empty_split():
    table = table_of([], [], [])
    assert gaps.avg_accuracy(table) is None
    assert gaps.worst_group(table) is None
