"""Counts against a sample-by-sample brute force, rates against fairlearn's MetricFrame, and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_negative_rate, true_positive_rate
from sklearn.metrics import accuracy_score

from fairquant.errors import DataError
from fairquant.evaluate.groups import GroupTable, named

GROUPS = ("female × <60", "female × 60+", "male × <60", "male × 60+")


def sample(seed: int, n: int = 400, classes: int = 2, groups: int = 4):
    random = np.random.default_rng(seed)
    labels, group = random.integers(0, classes, n), random.integers(0, groups, n)
    predicted = np.where(random.random(n) < 0.4 + 0.1 * group, labels, random.integers(0, classes, n))
    return labels, predicted, group


def table_of(labels, predicted, group, classes: int = 2):
    return GroupTable.count(labels, predicted, group, classes=[f"c{k}" for k in range(classes)], groups=GROUPS)


def counts_of(table):
    return np.stack([table.truth, table.predicted, table.right])


def test_counts_equal_brute_force():
    labels, predicted, group = sample(0, classes=5)
    confusion = np.zeros((4, 5, 5), int)
    for g, y, p in zip(group, labels, predicted, strict=True):
        confusion[g, y, p] += 1
    expected = [confusion.sum(axis=2), confusion.sum(axis=1), np.diagonal(confusion, axis1=1, axis2=2)]
    np.testing.assert_array_equal(counts_of(table_of(labels, predicted, group, 5)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_rates_agree_with_fairlearn(seed):
    labels, predicted, group = sample(seed)
    table = table_of(labels, predicted, group)
    names = np.array(GROUPS)[group]
    oracles = {
        "tpr": true_positive_rate,
        "fpr": false_positive_rate,
        "tnr": true_negative_rate,
        "selection_rate": selection_rate,
    }
    for rate, oracle in oracles.items():
        frame = MetricFrame(metrics=oracle, y_true=labels, y_pred=predicted, sensitive_features=names)
        assert table.named(getattr(table, rate)[:, 1]) == pytest.approx(frame.by_group.to_dict())
    frame = MetricFrame(metrics=accuracy_score, y_true=labels, y_pred=predicted, sensitive_features=names)
    assert table.named(table.accuracy) == pytest.approx(frame.by_group.to_dict())
    assert table.overall_accuracy == pytest.approx(frame.overall)


def test_one_against_rest_agrees_with_fairlearn():
    labels, predicted, group = sample(3, classes=4)
    table = table_of(labels, predicted, group, 4)
    for k in range(4):
        for g in range(4):
            member = group == g
            truth, guess = labels[member] == k, predicted[member] == k
            assert table.tpr[g, k] == pytest.approx(true_positive_rate(truth, guess, pos_label=True))
            assert table.fpr[g, k] == pytest.approx(false_positive_rate(truth, guess, pos_label=True))


def test_by_hand():
    #  group x: true 0 0 1 1, predicted 0 1 1 1; group y: true 1, predicted 0; group z: nobody
    table = GroupTable.count(
        [0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1], classes=["no", "yes"], groups=["x", "y", "z"]
    )
    assert table.counts.tolist() == [4, 1, 0]
    assert table.named(table.accuracy) == {"x": 0.75, "y": 0.0, "z": None}
    assert table.named(table.tpr[:, 1]) == {"x": 1.0, "y": 0.0, "z": None}
    assert table.named(table.fpr[:, 1]) == {"x": 0.5, "y": None, "z": None}
    assert table.named(table.tnr[:, 1]) == {"x": 0.5, "y": None, "z": None}
    assert table.named(table.selection_rate[:, 1]) == {"x": 0.75, "y": 0.0, "z": None}
    assert named(table.classes, table.class_accuracy) == {"no": 0.5, "yes": pytest.approx(2 / 3)}
    assert table.class_counts.tolist() == [2, 3]
    assert table.overall_accuracy == 0.6


def test_only_some_groups_is_counting_only_their_samples():
    labels, predicted, group = sample(2)
    some = table_of(labels, predicted, group).only([True, False, False, True])
    assert some.groups == (GROUPS[0], GROUPS[3])
    member = np.isin(group, [0, 3])
    expected = table_of(labels[member], predicted[member], group[member])
    np.testing.assert_array_equal(counts_of(some), counts_of(expected)[:, [0, 3]])
    assert some.overall_accuracy == expected.overall_accuracy


def test_only_without_a_choice_is_the_table_itself():
    table = table_of(*sample(2))
    assert table.only(None) is table
    with pytest.raises(ValueError, match="zip"):
        table.only([True])


def test_order_of_samples_does_not_matter():
    labels, predicted, group = sample(1)
    order = np.random.default_rng(9).permutation(len(labels))
    one, two = table_of(labels, predicted, group), table_of(labels[order], predicted[order], group[order])
    np.testing.assert_array_equal(counts_of(one), counts_of(two))


@pytest.mark.parametrize(
    ("labels", "predicted", "group", "message"),
    [
        ([0, 2], [0, 0], [0, 0], "got labels from 0 to 2; allowed: 0 to 1"),
        ([0, 1], [0, -1], [0, 0], "got predictions from -1 to 0; allowed: 0 to 1"),
        ([0, 1], [0, 1], [0, 9], "got groups from 0 to 9; allowed: 0 to 3"),
        ([0, 1], [0], [0, 0], "got 2 labels, 1 predictions, 2 groups; allowed: one of each per sample"),
    ],
)
def test_numbers_without_a_name_are_refused(labels, predicted, group, message):
    with pytest.raises(DataError, match=message):
        table_of(labels, predicted, group)
