"""Thresholds by group: the most accurate decisions from the scores that meet a constraint between groups.

Hardt, Price & Srebro 2016, "Equality of opportunity in supervised learning" (arXiv 1610.02413), as fairlearn's
``ThresholdOptimizer`` solves it: a group is decided by one of two thresholds on the predicted probability, drawn by
lot, so that selection rates (demographic_parity) or true and false positive rates (equalized_odds) of all groups agree
on the samples it is fitted on, and accuracy is highest among the points of a grid of 1000 steps. For equalized odds a
share of a group's samples is decided by another lot, blind to the score.

A group that lacks positives or negatives has no such curve and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairquant.config import Section
from fairquant.postprocess._fitted import Bools, Fitted, Floats, Ints, Scores, usable


class Options(Section):
    """``constraint``: what is made equal over the groups."""

    constraint: Literal["demographic_parity", "equalized_odds"] = "equalized_odds"


@dataclass(frozen=True)
class Rule:
    """How a group is decided, in shares of its samples.

    A sample is decided positive with probability
    blind · blind_chance + (1 − blind) · (share · [score > low] + (1 − share) · [score > high]).

    Attributes:
        share: of decisions by the threshold ``low``.
        low: threshold, ≤ ``high``; −inf is everybody.
        high: threshold; inf is nobody.
        blind: share of decisions that do not look at the score.
        blind_chance: probability with which those are positive.
    """

    share: float
    low: float
    high: float
    blind: float = 0.0
    blind_chance: float = 0.0

    def chance(self, probability: Floats) -> Floats:
        """Return the probability with which samples of these scores are decided positive."""
        seeing = self.share * (probability > self.low) + (1 - self.share) * (probability > self.high)
        return np.clip(self.blind * self.blind_chance + (1 - self.blind) * seeing, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Ruled(Fitted):
    """A rule for each group, by its number."""

    groups: tuple[str, ...]
    rules: Mapping[int, Rule]

    def chance(self, scores: Scores, members: Ints) -> Floats:
        """Return the chance by each group's rule; groups without one keep their decisions."""
        chance: Floats = scores.decision.astype(np.float64)
        for g, rule in self.rules.items():
            own = members == g
            chance[own] = rule.chance(scores.probability[own])
        return chance

    def settings(self) -> dict[str, dict[str, float]]:
        """Return each group's rule, by its name; thresholds beyond every score as 0 (everybody) and 1 (nobody)."""
        ends = ("low", "high")
        return {
            self.groups[g]: dict(vars(rule)) | {end: min(max(getattr(rule, end), 0.0), 1.0) for end in ends}
            for g, rule in self.rules.items()
        }


def fit(scores: Scores, positives: Bools, members: Ints, *, groups: Sequence[str], options: Options) -> Ruled:
    """Return the rules that are most accurate on these samples under the constraint.

    Args:
        scores: probabilities and decisions of N validation samples.
        positives: (N,), whether a sample is of the positive class.
        members: (N,), groups in [0, G).
        groups: G names.
        options: which constraint.
    """
    both = [{True, False} <= set(positives[members == g].tolist()) for g in range(len(groups))]
    chosen = usable(both, positives, members, groups=groups, method="thresholds")
    if not chosen:
        return Ruled(tuple(groups), {})
    inside = np.isin(members, chosen)
    rules = _optimize(scores.probability[inside], positives[inside], members[inside], options.constraint)
    return Ruled(tuple(groups), rules)


def _optimize(probability: Floats, positives: Bools, members: Ints, constraint: str) -> dict[int, Rule]:
    from fairlearn.postprocessing import ThresholdOptimizer

    from fairquant.postprocess._given import GivenScores

    optimizer = ThresholdOptimizer(
        estimator=GivenScores(), constraints=constraint, prefit=True, predict_method="predict"
    )
    optimizer.fit(probability[:, None], positives.astype(np.int64), sensitive_features=members)
    found = optimizer.interpolated_thresholder_.interpolation_dict
    return {int(g): _rule(found[g]) for g in sorted(found, key=int)}


def _rule(found: Mapping[str, object]) -> Rule:
    """Return fairlearn's interpolation of two thresholds, the lower one first."""
    shares = [float(found[f"p{i}"]) for i in (0, 1)]  # type: ignore[arg-type]
    cuts = [float(found[f"operation{i}"].threshold) for i in (0, 1)]  # type: ignore[attr-defined]
    low = int(cuts[1] < cuts[0])
    blind, chance = (float(found.get(key, 0.0)) for key in ("p_ignore", "prediction_constant"))  # type: ignore[arg-type]
    return Rule(shares[low], cuts[low], cuts[1 - low], blind, chance)
