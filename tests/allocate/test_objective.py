"""Objectives against the reducers' hand formulas, and against the linear program over the group weights."""

import numpy as np
import pytest
from scipy.optimize import linprog

from fairquant.allocate.objective import Objective


@pytest.mark.parametrize(
    "cap, scale, totals, expected",
    [
        (1 / 4, None, [1, 2, 3, 6], 3.0),  # mean
        (1.0, None, [1, 2, 3, 6], 6.0),  # the worst group
        (1 / 2, None, [1, 2, 3, 6], 4.5),  # CVaR at 1/2: the mean of the worst two
        (1 / 2.5, None, [1, 2, 3, 6], (6 + 3 + 0.5 * 2) / 2.5),  # a fractional tail
        (0.01, None, [1, 2, 3, 6], 3.0),  # limited to 1/G
        (7.0, None, [1, 2, 3, 6], 6.0),  # and to 1
        (1.0, [1, 2, 4, 0.5], [1, 2, 3, 6], 12.0),
        (1.0, [1, 1, 1, 0], [1, 2, 3, 6], 3.0),  # a group with nothing at stake
        (1 / 2, [1, 0, 0, 0], [8, 2, 3, 6], 4.0),  # still one of the tail's two
        (1.0, [2], [5], 10.0),
    ],
)
def test_by_hand(cap, scale, totals, expected):
    assert Objective.tail(len(totals), cap, scale).value(totals) == pytest.approx(expected, rel=1e-15)


def test_value_is_the_maximum_over_group_weights():
    random = np.random.default_rng(0)
    for _ in range(50):
        groups = int(random.integers(1, 8))
        objective = Objective.tail(groups, random.uniform(1 / groups, 1), random.exponential(size=groups))
        totals = random.exponential(size=groups)
        program = linprog(
            -objective.scale * totals, A_eq=np.ones((1, groups)), b_eq=[1], bounds=(0, objective.cap), method="highs"
        )
        assert objective.value(totals) == pytest.approx(-program.fun, rel=1e-9)


def test_tail_weights_sum_to_one_and_never_exceed_the_cap():
    for groups in range(1, 12):
        for cap in np.linspace(1 / groups, 1, 7):
            objective = Objective.tail(groups, cap)
            assert objective.tail_weights.sum() == pytest.approx(1, abs=1e-15)
            assert objective.tail_weights.max() <= objective.cap * (1 + 1e-12)
            assert (np.diff(objective.tail_weights) <= 1e-15).all()


def test_many_rows_at_once_are_each_row_alone():
    objective = Objective.tail(3, 0.6, [1, 2, 3])
    totals = np.random.default_rng(1).random((4, 5, 3))
    values = objective.value(totals)
    assert values.shape == (4, 5)
    assert values[2, 3] == pytest.approx(objective.value(totals[2, 3]), rel=1e-15)


def test_is_mean():
    assert Objective.tail(3, 1 / 3).is_mean
    assert Objective.tail(1, 1.0).is_mean
    assert not Objective.tail(3, 0.34).is_mean


@pytest.mark.parametrize(
    "scale, cap, message",
    [
        ([1, -1], 1.0, r"scale: got \[1, -1\]; allowed: finite numbers >= 0, one per group, not all 0"),
        ([1, np.nan], 1.0, "scale: got"),
        ([0, 0], 1.0, "not all 0"),
        ([[1.0]], 1.0, "one per group"),
        ([1, 1], 0.4, r"cap: got 0.4; allowed: 1/2 \(one over the groups\) to 1"),
        ([1, 1], 1.1, "cap: got 1.1"),
        ([1, 1], float("nan"), "cap: got nan"),
    ],
)
def test_values_out_of_range(scale, cap, message):
    with pytest.raises(ValueError, match=message):
        Objective(scale, cap)


def test_a_scale_per_group():
    with pytest.raises(ValueError, match=r"scale: got shape \(3,\); allowed: \(2,\), one per group"):
        Objective.tail(2, 1.0, [1, 2, 3])


def test_it_is_frozen():
    scale = np.ones(2)
    objective = Objective.tail(2, 1.0, scale)
    with pytest.raises(ValueError, match="read-only"):
        objective.scale[0] = 2
    scale[0] = 5  # the caller's own array stays the caller's
    assert objective.value([1, 1]) == 1
