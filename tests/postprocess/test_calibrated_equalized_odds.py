"""Calibrated equalized odds against an independent computation from the paper's equations, and where they fail."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.postprocess._fitted import Scores
from tests.postprocess.samples import GROUPS, fit, sample

NAME = "calibrated_equalized_odds"
COSTS = ("fnr", "fpr", "weighted")


def generalized_rates(output, labels):
    """c_fp and c_fn of the paper's section 2, sample by sample in python floats."""
    false_positive = [h for h, y in zip(output, labels, strict=True) if not y]
    false_negative = [1 - h for h, y in zip(output, labels, strict=True) if y]
    return sum(false_positive) / len(false_positive), sum(false_negative) / len(false_negative)


def cost_of(output, labels, cost):
    """g = a · c_fp + b · c_fn with the group's own constants."""
    base = sum(labels) / len(labels)
    a, b = {"fnr": (0, 1), "fpr": (1, 0), "weighted": (1 - base, base)}[cost]
    false_positive, false_negative = generalized_rates(output, labels)
    return a * false_positive + b * false_negative


def brute_force(output, labels, cost, target):
    """α of a grid whose mixture, computed sample by sample, costs closest to ``target``."""
    base = sum(labels) / len(labels)
    own, trivial = cost_of(output, labels, cost), cost_of([base] * len(labels), labels, cost)
    grid = np.linspace(0, 1, 100_001)
    return grid[np.argmin(np.abs((1 - grid) * own + grid * trivial - target))]


def rows(scores, positives, members, group):
    chosen = members == group
    return scores.probability[chosen].tolist(), positives[chosen].tolist()


@pytest.mark.parametrize("cost", COSTS)
class TestAgainstThePaper:
    @pytest.mark.parametrize("seed", range(3))
    def test_two_groups_follow_algorithm_1(self, cost, seed):
        """α = (g_1(h_1) − g_2(h_2)) / (g_2(h^μ) − g_2(h_2)) for the better group, no change for the other."""
        scores, positives, members = sample(seed, bases=(0.4, 0.5), strengths=(1.5, 1.8))
        costs = [cost_of(*rows(scores, positives, members, g), cost) for g in (0, 1)]
        better, worse = np.argsort(costs)
        output, labels = rows(scores, positives, members, better)
        base = np.mean(labels)
        trivial = cost_of([base] * len(labels), labels, cost)
        alpha = (costs[worse] - costs[better]) / (trivial - costs[better])
        assert 0 < alpha < 1  # the paper's condition holds
        fitted = fit(NAME, scores, positives, members, groups=("x", "y"), cost=cost)
        found = [fitted.settings()[name] for name in ("x", "y")]
        assert found[better]["withheld"] == pytest.approx(alpha, rel=1e-10)
        assert found[better]["base_rate"] == pytest.approx(base)
        assert found[better]["cost_after"] == pytest.approx(costs[worse], rel=1e-10)
        assert found[worse]["withheld"] == 0.0
        assert found[worse]["cost"] == found[worse]["cost_after"] == pytest.approx(costs[worse], rel=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_every_group_comes_as_close_to_the_worst_as_a_search_over_alpha(self, cost, seed):
        """Scores of any quality: some groups cannot reach the worst, some are worse than their base rate."""
        random = np.random.default_rng(seed)
        members = random.integers(0, 4, 400)
        positives = random.random(400) < np.array([0.2, 0.5, 0.6, 0.8])[members]
        noise = np.array([0.2, 1.0, 2.0, 3.0])[members]
        margin = (positives - 0.5) * random.normal(1.5, noise) + random.normal(size=400)
        scores = Scores(1 / (1 + np.exp(-margin)), margin > 0)
        fitted = fit(NAME, scores, positives, members, groups=tuple("abcd"), cost=cost).settings()
        target = max(cost_of(*rows(scores, positives, members, g), cost) for g in range(4))
        for g, name in enumerate("abcd"):
            expected = brute_force(*rows(scores, positives, members, g), cost, target)
            assert fitted[name]["withheld"] == pytest.approx(expected, abs=1.1e-5)

    def test_drawing_the_mixture_gives_the_cost(self, cost):
        """Monte Carlo over the published randomised output: base rate with probability α, else the score."""
        scores, positives, members = sample(n=4000)
        fitted = fit(NAME, scores, positives, members, cost=cost).settings()
        random = np.random.default_rng(0)
        for g, name in enumerate(GROUPS):
            output, labels = rows(scores, positives, members, g)
            draws = [
                cost_of(np.where(random.random(len(labels)) < fitted[name]["withheld"], np.mean(labels), output),
                        labels, cost)
                for _ in range(40)
            ]  # fmt: skip
            assert np.mean(draws) == pytest.approx(fitted[name]["cost_after"], abs=0.004)

    def test_equal_costs_change_nothing(self, cost):
        """Two groups with the same samples, and a third whose classifier is its base rate."""
        scores, positives, members = sample(bases=(0.4,), strengths=(1.5,), n=100)
        twice = Scores(np.tile(scores.probability, 2), np.tile(scores.decision, 2))
        groups = np.repeat([0, 1], 100)
        fitted = fit(NAME, twice, np.tile(positives, 2), groups, groups=("x", "y"), cost=cost)
        assert [row["withheld"] for row in fitted.settings().values()] == [0.0, 0.0]
        assert np.array_equal(fitted.chance(twice, groups), twice.decision)

    def test_perfect_and_constant_classifiers(self, cost):
        """No cost at all in either group; and scores that are the base rate already."""
        labels, members = np.array([True, False] * 4), np.repeat([0, 1], 4)
        perfect = Scores(labels.astype(float), labels)
        constant = Scores(np.full(8, 0.5), np.zeros(8, bool))
        for scores in (perfect, constant):
            fitted = fit(NAME, scores, labels, members, groups="xy", cost=cost)
            assert [row["withheld"] for row in fitted.settings().values()] == [0, 0]


def test_decisions_are_mixed_with_the_majoritys():
    scores, positives, members = sample()
    fitted = fit(NAME, scores, positives, members, cost="weighted")
    chance = fitted.chance(scores, members)
    for g, name in enumerate(GROUPS):
        row, own = fitted.settings()[name], members == g
        expected = (1 - row["withheld"]) * scores.decision[own] + row["withheld"] * (row["base_rate"] > 0.5)
        np.testing.assert_allclose(chance[own], expected)


def test_out_of_reach_is_named(caplog):
    """Group b is always positive with base rate 3/4: at most 1/4 of its positives can be missed, group a misses 1/2."""
    scores = Scores(np.array([0.5, 0.5, 0.9, 0.9, 0.9, 0.9]), np.array([False, False, True, True, True, True]))
    positives, members = np.array([True, False, True, True, True, False]), np.array([0, 0, 1, 1, 1, 1])
    fitted = fit(NAME, scores, positives, members, groups=("a", "b"), cost="fnr")
    assert fitted.settings()["b"] == pytest.approx(
        {"withheld": 1.0, "base_rate": 0.75, "cost": 0.1, "cost_after": 0.25}
    )
    assert fitted.chance(scores, members).tolist() == [0, 0, 1, 1, 1, 1]
    assert caplog.messages == [
        f"evaluate.postprocess: {NAME}: cost 0.5000 of the worst group is out of reach of 'b' (0.2500)"
    ]


def test_a_classifier_worse_than_its_base_rate_is_left_alone(caplog):
    """Group b's scores are wrong way round, group a's are worse still; mixing could only help b."""
    positives, members = np.array([True, False] * 4), np.repeat([0, 1], 4)
    scores = Scores(np.where(positives, np.where(members, 0.4, 0.1), np.where(members, 0.6, 0.9)), ~positives)
    fitted = fit(NAME, scores, positives, members, groups=("a", "b"), cost="weighted")
    assert [row["withheld"] for row in fitted.settings().values()] == [0.0, 0.0]
    assert "out of reach of 'b' (0.6000)" in caplog.text


@pytest.mark.parametrize(("cost", "missing"), [("fnr", True), ("fpr", False)])
def test_a_group_without_the_class_of_the_cost_is_left_out(cost, missing, caplog):
    scores, positives, members = sample()
    kept = (members != 1) | (positives != missing)
    only = scores.only(kept)
    fitted = fit(NAME, only, positives[kept], members[kept], cost=cost)
    assert set(fitted.settings()) == {"a", "c"}
    own = members[kept] == 1
    assert np.array_equal(fitted.chance(only, members[kept])[own], only.decision[own])
    assert "too few validation samples to fit on in 'b'" in caplog.text
    both = fit(NAME, only, positives[kept], members[kept], cost="weighted")
    assert set(both.settings()) == set(GROUPS)
