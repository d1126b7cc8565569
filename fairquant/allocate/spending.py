"""What an allocator that spends a budget is given, and what it gives back; per layer, in model order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spent:
    """Chosen widths and their proof.

    Attributes:
        bits: uint8 widths by layer, of ``unit_shape``; protected layers are not in it.
        totals: (G,), predicted loss increase of each group, protected layers included.
        value: the objective of ``totals``.
        bound: no choice within the budget has an objective below it. Packed bytes depend on the choice itself: under
            that budget it holds for choices that need as much room for scales and map as was set aside for this one.
        gap: (value − bound)/value, ≥ 0.
        group_weights: (G,), what one unit of each group's loss weighs in the objective at the optimum; 0 where a group
            does not bind.
        prices: budget key → loss that one more unit of the budget would save, 0 where it does not bind.
    """

    bits: Mapping[str, npt.NDArray[np.uint8]]
    totals: Floats
    value: float
    bound: float
    gap: float
    group_weights: Floats
    prices: Mapping[str, float]


class Spending(Protocol):
    """A priced problem: every unit's predicted loss at every width, what widths cost, and the limits."""

    def minimise(self, *, gap: float) -> Spent:
        """Return widths whose objective lies within a share ``gap`` of the smallest possible.

        Raises ``ConfigError`` naming the smallest feasible budget where a limit cannot be met.
        """
        ...
