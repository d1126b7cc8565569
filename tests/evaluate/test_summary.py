"""The nested dict of one split: its keys, its values by hand, its warnings."""

from __future__ import annotations

import json
import logging
import tracemalloc

import numpy as np
import pytest

from fairquant.errors import ConfigError, DataError
from fairquant.evaluate.summary import metric_keys, summarise
from fairquant.predictions import SplitPredictions


def predictions(labels, predicted, groups, n_classes=2) -> SplitPredictions:
    logits = np.eye(n_classes, dtype=np.float32)[np.asarray(predicted, int)]
    return SplitPredictions(logits, np.asarray(labels, np.int64), np.asarray(groups, np.int64), np.arange(len(labels)))


# group x: true 0 0 1 1, predicted 0 1 1 1; group y: true 0 1, predicted 0 0
HAND = predictions([0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1])
NAMES = {"classes": ("benign", "malignant"), "groups": ("female × <60", "male × 60+")}


def test_by_hand(caplog):
    with caplog.at_level(logging.WARNING):
        summary = summarise(HAND, **NAMES)
    assert not caplog.messages
    assert summary == {
        "overall_acc": pytest.approx(4 / 6),
        "avg_acc": pytest.approx((0.75 + 0.5) / 2),
        "worst_acc": 0.5,
        "worst_group": "male × 60+",
        "acc_gap": {"avg_minus_worst": pytest.approx(0.125), "max_minus_min": 0.25},
        "eopp1": pytest.approx((0.5 + 1.0) / 2),  # class 0: 1/2 against 1; class 1: 1 against 0
        "eopp0": pytest.approx((1.0 + 0.5) / 2),  # class 0: 1 against 0; class 1: 1/2 against 1
        "eodd": pytest.approx((1.5 + 1.5) / 2),
        "dp_difference": 0.75,
        "dp_ratio": 0.0,
        "equal_opportunity": 1.0,
        "equalized_odds": 1.0,
        "predictive_equality": 0.5,
        "group": {
            "female × <60": {"n": 4, "accuracy": 0.75, "selection_rate": 0.75, "tpr": 1.0, "fpr": 0.5, "tnr": 0.5},
            "male × 60+": {"n": 2, "accuracy": 0.5, "selection_rate": 0.0, "tpr": 0.0, "fpr": 0.0, "tnr": 1.0},
        },
        "class": {
            "benign": {"n": 3, "accuracy": pytest.approx(2 / 3)},
            "malignant": {"n": 3, "accuracy": pytest.approx(2 / 3)},
        },
    }
    json.dumps(summary, allow_nan=False)


def test_parity_false_skips_every_gap():
    summary = summarise(HAND, parity=False, **NAMES)
    assert set(summary) == {"overall_acc", "avg_acc", "worst_acc", "worst_group", "group", "class"}


def test_groups_that_do_not_count_are_listed():
    everything, summary = summarise(HAND, **NAMES), summarise(HAND, counted=(True, False), **NAMES)
    assert summary["worst_group"] == "female × <60"
    assert summary["worst_acc"] == 0.75
    assert summary["acc_gap"] == {"avg_minus_worst": None, "max_minus_min": None}
    gaps = ("eopp1", "eopp0", "eodd", "dp_difference", "dp_ratio", "equal_opportunity", "equalized_odds")
    assert [summary[name] for name in gaps] == [None] * len(gaps)
    assert summary["avg_acc"] == 0.75
    for key in ("overall_acc", "group", "class"):
        assert summary[key] == everything[key]


def test_positive_class_may_be_the_first():
    summary = summarise(HAND, positive_class="benign", **NAMES)
    assert summary["group"]["female × <60"]["selection_rate"] == 0.25


def test_more_than_two_classes_have_binary_metrics_only_on_request():
    part = predictions([0, 1, 2, 0], [0, 1, 1, 0], [0, 0, 1, 1], 3)
    names = {"classes": ("a", "b", "c"), "groups": ("x", "y")}
    assert "dp_difference" not in summarise(part, **names)
    assert "tpr" not in summarise(part, **names)["group"]["x"]
    asked = summarise(part, positive_class="b", **names)
    assert asked["group"]["y"]["fpr"] == 0.5
    assert asked["dp_difference"] == 0.0


def test_unknown_positive_class_is_one_line():
    message = r"evaluate.positive_class: got 'cancer'; allowed: null \| benign \| malignant"
    with pytest.raises(ConfigError, match=message):
        summarise(HAND, positive_class="cancer", **NAMES)


def test_undefined_is_none_with_one_warning_each(caplog):
    # group y has no positives, group z nobody
    part = predictions([0, 1, 0], [0, 1, 1], [0, 0, 1])
    with caplog.at_level(logging.WARNING):
        summary = summarise(part, classes=NAMES["classes"], groups=("x", "y", "z"))
    assert summary["group"]["y"]["tpr"] is None
    assert summary["group"]["z"] == {
        "n": 0, "accuracy": None, "selection_rate": None, "tpr": None, "fpr": None, "tnr": None,
    }  # fmt: skip
    assert summary["equal_opportunity"] is None
    assert summary["worst_group"] == "y"
    assert "group tpr: tpr undefined (no positives) in group 'y', group 'z'; null" in caplog.messages
    assert "group accuracy: accuracy undefined (no samples) in group 'z'; null" in caplog.messages
    assert "equal_opportunity: undefined, fewer than two groups have a tpr; null" in caplog.messages
    assert len(caplog.messages) == len(set(caplog.messages))


def test_class_without_samples(caplog):
    with caplog.at_level(logging.WARNING):
        summary = summarise(predictions([0, 0], [0, 0], [0, 1]), parity=False, **NAMES)
    assert summary["class"]["malignant"] == {"n": 0, "accuracy": None}
    assert "class accuracy: accuracy undefined (no samples) in class 'malignant'; null" in caplog.messages


def test_empty_split_is_all_none():
    summary = summarise(predictions([], [], []), parity=False, **NAMES)
    assert (summary["overall_acc"], summary["avg_acc"], summary["worst_acc"], summary["worst_group"]) == (None,) * 4


def test_keys_hold_no_dot():
    part = predictions([0, 1], [0, 1], [0, 1])
    summary = summarise(part, classes=("v1.0", "v2.0"), groups=("0.5", "1.5"), parity=False)
    assert list(summary["group"]) == ["0·5", "1·5"]
    assert list(summary["class"]) == ["v1·0", "v2·0"]
    with pytest.raises(DataError, match="names that differ by more than"):
        metric_keys(["a.b", "a·b"])


def test_many_classes_and_groups(caplog):
    # class by class for each group would be 3,000² · 200 counts: 14 GB
    classes, groups = tuple(map(str, range(3000))), tuple(f"g{place}" for place in range(200))
    random = np.random.default_rng(0)
    labels, members = random.integers(0, 3000, 600), random.integers(0, 200, 600)
    predicted = np.where(random.random(600) < 0.5, labels, random.integers(0, 3000, 600))
    part = predictions(labels, predicted, members, 3000)
    tracemalloc.start()
    with caplog.at_level(logging.WARNING):
        summary = summarise(part, classes=classes, groups=groups)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    unseen = 200 * 3000 - len(np.unique(members * 3000 + labels))
    assert f"class '4' and {unseen - 5} more; left out of the gap" in caplog.messages[2]
    assert max(map(len, caplog.messages)) < 300
    right = np.array([(predicted == labels)[members == g].mean() for g in range(200) if (members == g).any()])
    assert summary["acc_gap"]["max_minus_min"] == pytest.approx(right.max() - right.min())
