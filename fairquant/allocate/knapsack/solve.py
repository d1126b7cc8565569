"""Bound, core, fill: the widths, and the proof of how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.allocate.knapsack.core import open_choices, solve_core
from fairquant.allocate.knapsack.dual import Dual, Relaxation, maximise
from fairquant.allocate.knapsack.fill import fill
from fairquant.allocate.knapsack.problem import Choice, Floats, Problem
from fairquant.allocate.objective import Objective

FIRST_CORE, LARGEST_CORE, GROWTH = 400, 25_600, 4


@dataclass(frozen=True)
class Solution:
    """The choice of each unit and what it is worth.

    ``choice`` (U,) indexes the widths; ``totals`` (G,) are the groups' predicted losses and ``value`` their objective;
    no choice within the budgets has an objective below ``bound``, and ``gap`` = (value − bound)/value ≥ 0;
    ``spent`` (K,) are exact sums; ``group_weights`` (G,) say which groups bind (λ_g·scale_g in the dual); ``prices``
    (K,) are the loss that one more unit of each budget saves at the margin, 0 where a budget does not bind.
    """

    choice: Choice
    totals: Floats
    value: float
    bound: float
    gap: float
    spent: Floats
    group_weights: Floats
    prices: Floats


def minimise(
    losses: npt.NDArray[np.floating[Any]],
    costs: Floats,
    limits: npt.ArrayLike,
    objective: Objective,
    *,
    gap: float = 1e-3,
) -> Solution:
    """Return the choice of one width per unit with the least objective of Σ_u losses[g, u, w] within all budgets.

    ``losses`` (G, U, W) are ≥ 0 and may be of any float type (they are not copied as a whole); ``costs`` (K, U, W) ≥ 0
    do not decrease in W; ``limits`` (K,). The result is within a share ``gap`` of the optimum, and says so in its own
    ``gap``; should the search for the proof run out of its allowance, that number is larger and still true. Raises
    ``Infeasible`` where the cheapest choice exceeds a limit.

    >>> losses = np.array([[[9.0, 4.0, 1.0], [8.0, 2.0, 0.5]]])  # one group, two units, widths of 1, 2 and 3 bits
    >>> costs = np.array([[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]])
    >>> solution = minimise(losses, costs, [4.5], Objective.tail(1, cap=1.0))
    >>> solution.choice.tolist(), solution.value, solution.spent.tolist()
    ([1, 1], 6.0, [4.0])
    """
    problem = Problem(losses, np.asarray(costs, dtype=np.float64), np.asarray(limits, dtype=np.float64), objective)
    if not len(problem.units):
        return _nothing_to_choose(problem)
    relaxation = Relaxation(problem)
    dual = maximise(relaxation, gap / 50)
    choice, bound = _within(relaxation, dual, gap)
    weights = objective.scale / len(objective.scale) if objective.is_mean else dual.weights * objective.scale
    choice = fill(problem, choice, weights)
    totals = problem.totals(choice)
    value = float(objective.value(totals))
    bound = min(bound, value)
    return Solution(
        choice, totals, value, bound, (value - bound) / max(value, np.finfo(float).tiny), problem.spent(choice),
        weights, _prices(relaxation, dual),
    )  # fmt: skip


def _within(relaxation: Relaxation, dual: Dual, gap: float) -> tuple[Choice, float]:
    """Return the best choice found and a bound, by cores that grow until the two are within a share ``gap``."""
    choice, value, bound = dual.feasible, dual.value, dual.bound
    priced = relaxation.priced(dual.weights, dual.prices)
    reduced = priced - priced.min(axis=1, keepdims=True)
    most = FIRST_CORE
    while bound < value * (1 - gap) and most <= LARGEST_CORE:
        cutoff = value * (1 - gap / 2)
        chosen, complete = open_choices(reduced, dual.choice, cutoff - dual.bound, most)
        result = solve_core(relaxation, chosen, value, gap / 2)
        if result.choice is not None and (found := relaxation.problem.value(result.choice)) < value:
            choice, value = result.choice, found
        if complete:
            return choice, max(bound, min(result.bound, cutoff))
        most *= GROWTH
    return choice, bound


def _prices(relaxation: Relaxation, dual: Dual) -> Floats:
    """Return the loss saved per unit of each budget (K,) at the margin, 0 where the budget does not bind.

    Where a limit leaves nothing above the cheapest choice, the price is the best ratio of weighted loss saved to cost
    over all choices it forbids: what the first unit of room would bring.
    """
    problem = relaxation.problem
    prices = np.zeros(len(problem.limits))
    prices[relaxation.binding] = dual.prices / relaxation.room
    exhausted = np.flatnonzero(problem.limits == problem.smallest)
    if len(exhausted):
        priced = relaxation.priced_freely(dual.weights, dual.prices)
        saved = np.where(relaxation.allowed, priced, np.inf).min(axis=1, keepdims=True) - priced
        for index in exhausted:
            above = problem.costs[index] - problem.costs[index, :, :1]
            prices[index] = (saved[above > 0] / above[above > 0]).max(initial=0.0)
    return prices


def _nothing_to_choose(problem: Problem) -> Solution:
    """Return the solution without units: every loss and cost is 0."""
    groups, budgets = len(problem.losses), len(problem.limits)
    weights = problem.objective.scale / groups
    none = np.zeros(0, dtype=np.int64)
    return Solution(none, np.zeros(groups), 0.0, 0.0, 0.0, np.zeros(budgets), weights, np.zeros(budgets))
