"""The knapsack's question: losses, costs, limits and the objective, checked once, with sums that budgets can trust.

Whether a choice keeps a budget is decided by ``math.fsum``, the exact sum rounded once: no tolerance, and no error that
grows with the number of units. Whole-number costs are exact in every order of summation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.allocate.objective import Objective
from fairquant.errors import UserError

Floats = npt.NDArray[np.float64]
Choice = npt.NDArray[np.int64]


class Infeasible(UserError):
    """Budget number ``index`` allows ``limit``, but even the cheapest choice of every unit costs ``smallest``."""

    def __init__(self, index: int, limit: float, smallest: float) -> None:
        """Keep the numbers, so that the caller can say them in the budget's own words."""
        super().__init__(f"budget {index}: got {limit!r}; allowed: at least {smallest!r}, the cheapest widths' cost")
        self.index, self.limit, self.smallest = index, limit, smallest


def cheapest(costs: Floats) -> Floats:
    """Return the smallest possible spending of each budget: costs (K, U, W), not decreasing in W → (K,).

    >>> cheapest(np.array([[[2.0, 4.0], [1.0, 8.0]]])).tolist()
    [3.0]
    """
    return np.array([math.fsum(budget[:, 0].tolist()) for budget in costs])


@dataclass(frozen=True)
class Problem:
    """losses (G, U, W) ≥ 0 of any float type, costs (K, U, W) ≥ 0 not decreasing in W, limits (K,), and the objective.

    Raises ``ValueError`` for shapes that do not fit and values out of range, ``Infeasible`` for a limit too small.
    """

    losses: npt.NDArray[np.floating[Any]]
    costs: Floats
    limits: Floats
    objective: Objective

    def __post_init__(self) -> None:
        """Check shapes and ranges, then whether anything is feasible."""
        groups, units, widths = self.losses.shape
        if self.costs.shape != (len(self.limits), units, widths) or not widths:
            raise ValueError(
                f"costs: got shape {self.costs.shape}; allowed: {(len(self.limits), units, widths)}, W > 0"
            )
        if self.objective.scale.shape != (groups,):
            raise ValueError(f"objective: got {len(self.objective.scale)} groups; allowed: {groups}, as in losses")
        for name, values in (("losses", self.losses), ("costs", self.costs)):
            if values.size and not (values.min() >= 0 and values.max() < np.inf):
                raise ValueError(f"{name}: got NaN, infinity or a negative number; allowed: finite numbers >= 0")
        if (np.diff(self.costs, axis=2) < 0).any():
            raise ValueError("costs: got a wider choice that costs less; allowed: costs that do not decrease in W")
        for index, (limit, smallest) in enumerate(zip(self.limits.tolist(), self.smallest.tolist(), strict=True)):
            if not smallest <= limit:
                raise Infeasible(index, limit, smallest)

    @cached_property
    def smallest(self) -> Floats:
        """The spending (K,) of the cheapest choice."""
        return cheapest(self.costs)

    @cached_property
    def units(self) -> Choice:
        """The numbers (U,) of the units, for indexing."""
        return np.arange(self.losses.shape[1])

    def totals(self, choice: Choice) -> Floats:
        """Return each group's predicted loss (G,) of one choice per unit (U,)."""
        totals: Floats = self.losses[:, self.units, choice].sum(axis=1, dtype=np.float64)
        return totals

    def value(self, choice: Choice) -> float:
        """Return the objective of a choice."""
        return float(self.objective.value(self.totals(choice)))

    def spent(self, choice: Choice) -> Floats:
        """Return what a choice costs of each budget (K,): exact sums, rounded once."""
        return np.array([math.fsum(budget[self.units, choice].tolist()) for budget in self.costs])

    def fits(self, choice: Choice) -> bool:
        """Return whether a choice keeps every budget."""
        return bool((self.spent(choice) <= self.limits).all())
