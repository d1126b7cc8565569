"""Calibrated equalized odds: groups served better give up as much as makes their cost that of the worst group.

Pleiss, Raghavan, Wu, Kleinberg & Weinberger 2017, "On fairness and calibration" (NeurIPS, arXiv 1709.02012),
algorithm 1. With h(x) the predicted probability of the positive class and μ_g group g's base rate, the generalised
rates are c_fp = E[h(x) | y = 0] and c_fn = E[1 − h(x) | y = 1]; the cost of group g under h is

    fnr: c_fn      fpr: c_fp      weighted: (1 − μ_g) c_fp + μ_g c_fn = E|y − h(x)|.

The trivial classifier that says μ_g of everybody is calibrated and costs 1 − μ_g, μ_g and 2 μ_g (1 − μ_g). Giving its
answer instead of the classifier's with probability α keeps h calibrated and makes the cost linear in α, so that

    α_g = (cost of the worst group − cost_g) / (cost of the trivial classifier on g − cost_g)

makes group g cost what the worst group costs. Of two groups the better one changes, as published; of more, every group
but the worst does, each against that same cost. A sample is decided positive where the probability it is given exceeds
1/2, so a group's withheld samples are all decided as its majority.

The published condition cost_g ≤ worst ≤ trivial cost need not hold: α_g is the number in [0, 1] that brings the cost of
g closest to the worst. Where costs are equal it is 0; where the trivial classifier costs no more than the classifier
does (one that is worse than a constant) nothing can be given up and α_g = 0; where even the trivial classifier costs
less than the worst group α_g = 1. The last two leave a difference, and one warning names these groups. A cost that is
undefined on the samples (c_fn without positives) leaves its group out. The rates are those of the predicted
probabilities, which this method takes to be calibrated; the rates of the decisions need not become equal.

>>> import numpy as np
>>> probability = np.array([0.5, 0.5, 0.75, 0.25])  # costs (fnr) 1/2 and 1/4; on the second the trivial one costs 3/4
>>> scores = Scores(np.array([0.5, 0.75, 0.25, 0.25, 0.25]), np.array([False, True, False, False, False]))
>>> positives, members = np.array([True, True, False, False, False]), np.array([0, 1, 1, 1, 1])
>>> fitted = fit(scores, positives, members, groups=("a", "b"), options=Options(cost="fnr"))
>>> fitted.settings()["b"]
{'withheld': 0.5, 'base_rate': 0.25, 'cost': 0.25, 'cost_after': 0.5}
>>> fitted.chance(scores, members).tolist()
[0.0, 0.5, 0.0, 0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fairquant.config import Section
from fairquant.postprocess._fitted import LOG, Bools, Fitted, Floats, Ints, Scores, usable

Cost = Literal["fnr", "fpr", "weighted"]

TOLERANCE = 1e-9
"""Costs that differ by less are equal: rounding alone must not move α where the trivial cost is as close."""


class Options(Section):
    """``cost``: what is made equal over the groups: false negatives, false positives, or both by base rate."""

    cost: Cost = "weighted"


@dataclass(frozen=True)
class Mixing:
    """How a group's decisions are mixed.

    Attributes:
        withheld: α in [0, 1], the share of samples that get the trivial classifier's answer.
        base_rate: μ, the share of positives.
        cost: of the classifier.
        cost_after: of the mixture.
    """

    withheld: float
    base_rate: float
    cost: float
    cost_after: float


@dataclass(frozen=True, eq=False)
class Mixed(Fitted):
    """The classifier, mixed with a trivial one by group; ``mixing`` by number of the group."""

    groups: tuple[str, ...]
    mixing: Mapping[int, Mixing]

    def chance(self, scores: Scores, members: Ints) -> Floats:
        """Return (1 − α) · own decision + α · the trivial classifier's decision."""
        chance: Floats = scores.decision.astype(np.float64)
        for g, own in self.mixing.items():
            trivial = float(own.base_rate > 0.5)
            chance[members == g] = (1 - own.withheld) * chance[members == g] + own.withheld * trivial
        return chance

    def settings(self) -> dict[str, dict[str, float]]:
        """Return the mixing of each group, by its name."""
        return {self.groups[g]: dict(vars(own)) for g, own in self.mixing.items()}


def fit(scores: Scores, positives: Bools, members: Ints, *, groups: Sequence[str], options: Options) -> Mixed:
    """Return the mixture that makes the groups' costs on these samples equal, as far as it can be done.

    Args:
        scores: probabilities and decisions of N validation samples.
        positives: (N,), whether a sample is of the positive class.
        members: (N,), groups in [0, G).
        groups: G names.
        options: which cost.
    """
    costs = {}
    for g in range(len(groups)):
        own = members == g
        costs[g] = _costs(scores.probability[own], positives[own], options.cost)
    known = [found is not None for found in costs.values()]
    chosen = usable(known, positives, members, groups=groups, method="calibrated_equalized_odds")
    pairs = {g: found for g in chosen if (found := costs[g]) is not None}
    worst = max((cost for cost, _ in pairs.values()), default=0.0)
    mixing = {}
    for g, (cost, trivial) in pairs.items():
        withheld = _withheld(cost, trivial, worst)
        base_rate = float(positives[members == g].mean())
        mixing[g] = Mixing(withheld, base_rate, cost, cost + withheld * (trivial - cost))
    _warn(mixing, worst, groups)
    return Mixed(tuple(groups), mixing)


def _costs(probability: Floats, positives: Bools, cost: Cost) -> tuple[float, float] | None:
    """Return a group's cost under the classifier and under the trivial one; None where it is undefined."""
    error = np.where(positives, 1 - probability, probability)
    counted = {"fnr": positives, "fpr": ~positives, "weighted": np.ones_like(positives)}[cost]
    if not counted.any():
        return None
    trivial = np.where(positives, 1 - positives.mean(), positives.mean())
    return float(error[counted].mean()), float(trivial[counted].mean())


def _withheld(cost: float, trivial: float, worst: float) -> float:
    """Return the α in [0, 1] that brings cost + α (trivial − cost) closest to ``worst`` >= ``cost``."""
    if worst - cost <= TOLERANCE or trivial <= cost:
        return 0.0
    return min((worst - cost) / (trivial - cost), 1.0)


def _warn(mixing: Mapping[int, Mixing], worst: float, groups: Sequence[str]) -> None:
    """Log one line that names the groups whose cost stays below the worst."""
    below = [f"{groups[g]!r} ({own.cost_after:.4f})" for g, own in mixing.items() if worst - own.cost_after > TOLERANCE]
    if below:
        text = "evaluate.postprocess: calibrated_equalized_odds: cost %.4f of the worst group is out of reach of %s"
        LOG.warning(text, worst, ", ".join(below))
