"""McNemar's exact test and Holm's correction against scipy and values by hand."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from scipy import stats

from fairquant.evaluate.change import GroupChange, compare
from fairquant.evaluate.groups import ratio
from fairquant.evaluate.harm import harm, holm, mcnemar
from fairquant.predictions import SplitPredictions


def change_of(counts, lost, won, groups=None) -> GroupChange:
    counts, lost, won = (np.asarray(values, np.int64) for values in (counts, lost, won))
    before = ratio((counts + lost - won + 1) // 2, counts)
    names = tuple(groups or (f"g{i}" for i in range(len(counts))))
    return GroupChange(names, counts, before, before + ratio(won - lost, counts), lost + won, lost, won)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 5), (7, 7), (12, 3), (30, 11), (400, 310)])
def test_mcnemar_equals_the_binomial_tail_by_hand(lost, won):
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(max(lost, won), n + 1)) / 2**n
    assert mcnemar(lost, won) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_approaches_the_chi_squared_test():
    statistic = (abs(400 - 310) - 1) ** 2 / 710  # with the continuity correction
    assert mcnemar(400, 310) == pytest.approx(stats.chi2.sf(statistic, 1), rel=0.02)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, stepped up to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).shape == (0,)


def test_holm_keeps_order_and_lies_between_p_and_bonferroni():
    p = np.random.default_rng(0).random(50) ** 3
    corrected = holm(p)
    order = np.argsort(p)
    assert (np.diff(corrected[order]) >= 0).all()
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, p * 50)).all()
    permuted = np.random.default_rng(1).permutation(50)
    assert np.array_equal(holm(p[permuted]), corrected[permuted])


def test_tree_of_the_metrics_file():
    result = harm(change_of([100, 100, 50], [12, 1, 0], [1, 12, 0], ("0.5", "b", "c")), significance=0.05)
    p = 2 * (1 + 13) / 2**13
    assert result["harm"]["0·5"] == {
        "n": 100, "lost": 12, "won": 1, "change": pytest.approx(-0.11),
        "p_value": pytest.approx(p), "p_holm": pytest.approx(3 * p), "harmed": True,
    }  # fmt: skip
    assert not result["harm"]["b"]["harmed"], "a group that gained is not harmed"
    assert result["harm"]["c"]["p_value"] == result["harm"]["c"]["p_holm"] == 1.0
    assert result["harmed_groups"] == 1
    json.dumps(result, allow_nan=False)


def test_significance_is_of_the_corrected_p_value():
    change = change_of([100, 100, 100], [6, 0, 0], [0, 0, 0])  # p = 1/32, Holm 3/32
    assert harm(change, significance=0.05)["harmed_groups"] == 0
    assert harm(change, significance=0.1)["harmed_groups"] == 1
    assert harm(change, significance=3 / 32)["harmed_groups"] == 0, "below, not at, the level"


def test_group_without_samples_is_null_and_no_test(caplog):
    with caplog.at_level(logging.WARNING):
        result = harm(change_of([100, 0], [6, 0], [0, 0], ("a", "nobody")), significance=0.05)
    assert result["harm"]["a"]["p_holm"] == result["harm"]["a"]["p_value"], "one group is tested, not two"
    assert result["harm"]["nobody"] == {
        "n": 0, "lost": 0, "won": 0, "change": None, "p_value": None, "p_holm": None, "harmed": False,
    }  # fmt: skip
    assert caplog.messages == ["harm: accuracy undefined (no samples) in group 'nobody'; null"]


def test_permutation_of_groups_permutes():
    lost, won = [9, 3, 5, 0], [1, 3, 0, 6]
    straight = harm(change_of([40] * 4, lost, won, "abcd"), significance=0.05)
    turned = harm(change_of([40] * 4, lost[::-1], won[::-1], "dcba"), significance=0.05)
    assert straight == turned


def test_false_alarms_stay_below_the_level():
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):  # equally good models: every discordant pair is a coin
        discordant = random.integers(0, 40, 6)
        lost = random.binomial(discordant, 0.5)
        alarms += harm(change_of([100] * 6, lost, discordant - lost), significance=0.05)["harmed_groups"] > 0
    assert alarms / 200 <= 0.05


def test_same_model_harms_nobody():
    labels = np.array([0, 1, 1, 0])
    part = SplitPredictions(np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], labels, np.array([0, 0, 1, 1]), np.arange(4))
    result = harm(compare(part, part, groups=("x", "y")), significance=0.05)
    assert result["harmed_groups"] == 0
    assert {values["p_value"] for values in result["harm"].values()} == {1.0}
