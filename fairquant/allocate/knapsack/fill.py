"""The rest of the budgets: wider choices, as long as they fit and the objective does not rise.

Budgets are met from below: afterwards no unit can take a wider choice within all limits without raising the objective,
so what is left of a binding budget is less than one unit's step. Best gain per cost first, ties by unit, then width.
"""

from __future__ import annotations

import math

import numpy as np

from fairquant.allocate.knapsack.problem import Choice, Floats, Problem

EQUALS = 1e-3  # weight of the plain mean over groups beside the binding groups' weights: nobody's gain counts as none


def fill(problem: Problem, choice: Choice, weights: Floats) -> Choice:
    """Return ``choice`` (U,), which must keep the budgets, with wider choices where they fit.

    ``weights`` (G,) are the objective's weights at the optimum; a small equal share is added to those of all groups.
    """
    scale = problem.objective.scale
    weights = weights + EQUALS * scale * max(weights.max() / scale.max(), 1e-300) / len(scale)
    while (steps := _Steps.possible(problem, choice, weights)) is not None:
        choice = steps.taken(problem, choice)
    return choice


class _Steps:
    """Wider choices that fit one by one, the best of each unit, in the order they are to be taken."""

    def __init__(self, units: Choice, widths: Choice, gains: Floats, value: float, totals: Floats) -> None:
        self.units, self.widths, self.gains, self.value, self.totals = units, widths, gains, value, totals

    @classmethod
    def possible(cls, problem: Problem, choice: Choice, weights: Floats) -> _Steps | None:
        """Return the steps that are possible from ``choice``, None where there are none."""
        room = problem.limits - problem.spent(choice)
        units, widths = _fitting(problem, choice, room)
        totals = problem.totals(choice)
        value = float(problem.objective.value(totals))
        gains = problem.losses[:, units, choice[units]].astype(np.float64) - problem.losses[:, units, widths]
        harmless = problem.objective.value((totals[:, None] - gains).T) <= value
        units, widths, gains = units[harmless], widths[harmless], gains[:, harmless]
        ratio = weights @ gains / _shares(problem, choice, units, widths, room)
        order = np.lexsort((widths, units, -ratio))
        _, first = np.unique(units[order], return_index=True)
        order = order[np.sort(first)]
        if not len(order):
            return None
        return cls(units[order], widths[order], gains[:, order], value, totals)

    def taken(self, problem: Problem, choice: Choice) -> Choice:
        """Return ``choice`` after as many of the first steps as fit together and never raise the objective."""
        path = problem.objective.value(np.cumsum(-self.gains, axis=1).T + self.totals)
        rises = np.flatnonzero(np.diff(path, prepend=self.value) > 0)
        low, high = 1, int(rises[0]) if len(rises) else len(path)
        while low < high:  # costs do not fall along the path: bisect for the last number of steps that fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if problem.fits(self._after(choice, middle)) else (low, middle - 1)
        return self._after(choice, low)

    def _after(self, choice: Choice, number: int) -> Choice:
        result = choice.copy()
        result[self.units[:number]] = self.widths[:number]
        return result


def _fitting(problem: Problem, choice: Choice, room: Floats) -> tuple[Choice, Choice]:
    """Return units and widths of the wider choices that fit one by one, decided by exact sums where it is close."""
    above = np.arange(problem.costs.shape[2]) > choice[:, None]
    close = np.zeros(above.shape, dtype=bool)
    for costs, limit, left in zip(problem.costs, problem.limits, room, strict=True):
        step = costs - costs[problem.units, choice][:, None]
        doubt = 1e-12 * (abs(limit) + 1e-300)
        close |= above & (np.abs(step - left) <= doubt)
        above &= step <= left + doubt
    units, widths = np.nonzero(above)
    fits = np.ones(len(units), dtype=bool)
    doubtful = np.flatnonzero(close[units, widths])
    for costs, limit in zip(problem.costs, problem.limits.tolist(), strict=True):
        spent = costs[problem.units, choice].tolist()
        high = math.fsum(spent)
        middle = math.fsum([*spent, -high])
        exact = (high, middle, math.fsum([*spent, -high, -middle]))  # the sum to some 150 bits
        before, after = costs[units, choice[units]], costs[units, widths]
        for number in doubtful.tolist():
            fits[number] &= math.fsum((*exact, -before[number], after[number])) <= limit
    return units[fits], widths[fits]


def _shares(problem: Problem, choice: Choice, units: Choice, widths: Choice, room: Floats) -> Floats:
    """Return what each step costs, as the largest share of what is left of any budget, at least 1e-300."""
    steps = problem.costs[:, units, widths] - problem.costs[:, units, choice[units]]
    shares = steps / np.maximum(room, 1e-300)[:, None]
    largest: Floats = np.maximum(shares.max(axis=0, initial=0.0), 1e-300)
    return largest
