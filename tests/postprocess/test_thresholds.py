"""Thresholds against fairlearn's own predictions, a linear programme over all thresholds, and the constraint itself."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.postprocessing import ThresholdOptimizer
from scipy.optimize import linprog

from fairquant.postprocess._fitted import Scores
from fairquant.postprocess._given import GivenScores
from tests.postprocess.samples import fit, sample

NAME = "thresholds"
CONSTRAINTS = ("demographic_parity", "equalized_odds")


def rates(chance, positives, members, groups=3):
    """Expected selection rate, TPR and FPR of each group."""
    return [
        [
            float(chance[(members == g) & chosen].mean())
            for chosen in (np.full_like(positives, True), positives, ~positives)
        ]
        for g in range(groups)
    ]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
class TestRules:
    def test_are_fairlearns(self, constraint):
        """On samples it was not fitted on, mean decisions of fairlearn's own random draws."""
        scores, positives, members = sample()
        other, _, others = sample(seed=7)
        fitted = fit(NAME, scores, positives, members, constraint=constraint)
        optimizer = ThresholdOptimizer(
            estimator=GivenScores(), constraints=constraint, prefit=True, predict_method="predict"
        ).fit(scores.probability[:, None], positives.astype(int), sensitive_features=members)
        expected = optimizer._pmf_predict(other.probability[:, None], sensitive_features=others)[:, 1]
        np.testing.assert_allclose(fitted.chance(other, others), expected, atol=1e-12)

    def test_hold_the_constraint_on_the_samples_they_were_fitted_on(self, constraint):
        scores, positives, members = sample()
        fitted = fit(NAME, scores, positives, members, constraint=constraint)
        found = np.array(rates(fitted.chance(scores, members), positives, members))
        columns = found[:, :1] if constraint == "demographic_parity" else found[:, 1:]
        assert np.ptp(columns, axis=0).max() < 1e-9
        before = np.array(rates(scores.decision.astype(float), positives, members))
        assert np.ptp(before[:, 0]) > 0.1 and np.ptp(before[:, 1]) > 0.1

    def test_a_group_with_one_class_is_left_out(self, constraint, caplog):
        scores, positives, members = sample()
        kept = (members != 1) | ~positives
        only = scores.only(kept)
        fitted = fit(NAME, only, positives[kept], members[kept], constraint=constraint)
        assert set(fitted.settings()) == {"a", "c"}
        own = members[kept] == 1
        assert np.array_equal(fitted.chance(only, members[kept])[own], only.decision[own])
        assert f"'b' (0 of the positive class, {own.sum()} of the other)" in caplog.text


def best_accuracy(probability, positives, members, constraint):
    """Oracle: the linear programme over all lots of thresholds whose rates are equal over two groups."""
    rows, worth, cells = [], [], []
    for g in (0, 1):
        own, labels = probability[members == g], positives[members == g]
        for cut in [np.inf, *sorted(own, reverse=True)]:
            chosen = own >= cut
            parts = [np.full_like(labels, True)] if constraint == "demographic_parity" else [labels, ~labels]
            cells.append([chosen[part].mean() * (1, -1)[g] for part in parts])
            rows.append([g == 0, g == 1])
            worth.append((chosen == labels).sum() / len(positives))
    equal = np.vstack([np.array(rows, float).T, np.array(cells).T])
    target = np.concatenate([[1, 1], np.zeros(len(equal) - 2)])
    solved = linprog(-np.array(worth), A_eq=equal, b_eq=target, bounds=(0, 1))
    assert solved.status == 0
    return -solved.fun


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_no_lot_of_thresholds_that_meets_the_constraint_is_more_accurate(constraint, seed):
    random = np.random.default_rng(seed)
    members, positives = np.repeat([0, 1], 60), random.random(120) < 0.5
    margin = (positives - 0.5) * np.where(members, 1.0, 3.0) + random.normal(size=120)
    scores = Scores(1 / (1 + np.exp(-margin)), margin > 0)
    chance = fit(NAME, scores, positives, members, groups="xy", constraint=constraint).chance(scores, members)
    best = best_accuracy(scores.probability, positives, members, constraint)
    accuracy = np.where(positives, chance, 1 - chance).mean()
    assert best - 0.003 <= accuracy <= best + 1e-9  # fairlearn looks at a grid of 1000 steps


def test_settings_say_how_a_group_is_decided():
    scores, positives, members = sample()
    fitted = fit(NAME, scores, positives, members)
    for g, row in enumerate(fitted.settings().values()):
        assert 0 <= row["low"] <= row["high"] <= 1 and 0 <= row["share"] <= 1 and 0 <= row["blind"] <= 1
        own = scores.probability[members == g]
        seeing = row["share"] * (own > row["low"]) + (1 - row["share"]) * (own > row["high"])
        expected = row["blind"] * row["blind_chance"] + (1 - row["blind"]) * seeing
        np.testing.assert_allclose(fitted.chance(scores, members)[members == g], expected, atol=1e-12)
