"""Means, deviations and tests of a suite against hand values, numpy and scipy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from fairquant.report.suite import MEASURES, Run, Suite, Summary, compare, holm, measures, summarise
from tests.report.suites import evaluate, suite

ACCURACY = next(measure for measure in MEASURES if measure.key == "worst_group_accuracy")


def test_mean_and_sample_deviation_by_hand():
    summary = Summary.of([0.70, 0.74, 0.78])
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.74)
    assert summary.sd == pytest.approx(0.04)  # √((0.04² + 0 + 0.04²) / 2)


def test_mean_and_deviation_agree_with_numpy():
    values = np.random.default_rng(0).normal(size=9)
    summary = Summary.of(list(values))
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.sd == pytest.approx(np.std(values, ddof=1))


def test_one_run_has_no_deviation_and_undefined_stays_undefined():
    assert Summary.of([0.5]) == Summary(1, 0.5, None)
    assert Summary.of([0.5, None, 0.7]) == Summary(3, None, None)
    assert Summary.of([]) == Summary(0, None, None)
    assert Summary.of([0.5]).text(str, str) == "0.5"


def test_measures_read_what_evaluate_writes():
    made = suite({"a": [(0, 0.8, 0.7)]})
    read = {measure.key: summarise(made, "a", measure).mean for measure in MEASURES}
    assert read == pytest.approx(
        {"overall_accuracy": 0.8, "worst_group_accuracy": 0.7, "gap_max_minus_min": 0.1, "eodd": 0.2,
         "worst_group_change": -0.05, "packed_mb": 1.25, "avg_bits": 5.2, "ratio": 6.0}
    )  # fmt: skip


def test_harmed_groups_are_a_column_only_where_counted():
    plain = suite({"a": [(0, 0.8, 0.7)]})
    assert "harmed_groups" not in [measure.key for measure in measures(plain)]
    run = Run("a", 0, evaluate(0.8, 0.7) | {"harmed_groups": 2})
    counted = Suite(("a",), (run,), {}, None, {})
    assert measures(counted)[-1].read(run.evaluate) == 2


def test_missing_gaps_are_undefined():
    values = evaluate(0.8, 0.7)
    values["gap"] = {}
    made = Suite(("a",), (Run("a", 0, values),), {}, None, {})
    eodd = next(measure for measure in MEASURES if measure.key == "eodd")
    assert summarise(made, "a", eodd) == Summary(1, None, None)


def comparison(made: Suite, method: str, key: str = "worst_group_accuracy"):
    return next(c for c in compare(made) if (c.method, c.measure) == (method, key))


def test_paired_test_by_hand():
    """Differences 1, 2, 3 points: t = 2 / (1 / √3) = 3.4641, p(df = 2) = 0.0742."""
    made = suite({"ref": [(0, 0.8, 0.70), (1, 0.8, 0.60), (2, 0.8, 0.65)],
                  "a": [(2, 0.8, 0.68), (0, 0.8, 0.71), (1, 0.8, 0.62)]}, reference="ref")  # fmt: skip
    found = comparison(made, "a")
    assert found.n == 3
    assert found.difference == pytest.approx(0.02)
    assert found.t == pytest.approx(2 * 3**0.5)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert found.p_holm == found.p


def test_only_seeds_of_both_are_paired():
    values = np.random.default_rng(1).uniform(0.5, 0.9, size=(2, 6))
    made = suite({"ref": [(seed, 0.8, values[0, seed]) for seed in range(5)],
                  "a": [(seed, 0.8, values[1, seed]) for seed in range(1, 6)]}, reference="ref")  # fmt: skip
    expected = stats.ttest_rel(values[1, 1:5], values[0, 1:5])
    found = comparison(made, "a")
    assert found.n == 4
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize(
    "own", [[(0, 0.8, 0.7), (1, 0.8, 0.6)], [(0, 0.8, 0.7), (1, 0.8, 0.6), (2, 0.8, 0.5)]], ids=["two", "constant"]
)
def test_nothing_is_tested_with_two_pairs_or_constant_differences(own):
    made = suite({"ref": [(seed, 0.8, worst - 0.1) for seed, _, worst in own], "a": own}, reference="ref")
    found = comparison(made, "a")
    assert found.difference == pytest.approx(0.1)
    assert (found.t, found.p, found.p_holm) == (None, None, None)


def test_holm_is_across_methods_within_a_measure():
    random_numbers = np.random.default_rng(2)
    runs = {name: [(seed, 0.8, float(random_numbers.uniform(0.5, 0.9))) for seed in range(4)] for name in "rabc"}
    made = suite(runs, reference="r")
    found = [comparison(made, name) for name in "abc"]
    assert [c.p_holm for c in found] == holm([c.p for c in found])
    assert len([c for c in compare(made) if c.measure == "worst_group_accuracy"]) == 3


def test_holm_by_hand_and_by_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 4·.005, 3·.01, 2·.03, then max
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    values = random.Random(0).sample([k / 1000 for k in range(1, 200)], 7)
    for level in (0.01, 0.05, 0.1):
        rejected = set()
        for rank, (p, place) in enumerate(sorted((p, place) for place, p in enumerate(values))):
            if p * (7 - rank) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(values)) if p <= level} == rejected


def test_no_reference_no_comparison():
    made = suite({"a": [(0, 0.8, 0.7)]}, reference=None)
    assert compare(made) == []
    assert compare(suite({"a": [(0, 0.8, 0.7)]}, reference="absent")) == []


def test_seeds_are_sorted_and_groups_named():
    made = suite({"a": [(2, 0.8, 0.7), (0, 0.9, 0.7)]})
    assert [run.seed for run in made.of("a")] == [0, 2]
    assert made.groups == ("female × <60", "50 % & more")
    assert summarise(made, "a", ACCURACY).mean == pytest.approx(0.7)
