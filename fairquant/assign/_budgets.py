"""Budgets of single weights in whole numbers: exact spending from counts, and the last steps that still fit.

A float is a whole number over a power of two, so a budget's costs share one denominator and spending is a whole number
of it. A budget is kept when its exact sum, rounded once, is at most the limit: what ``math.fsum`` of all weights' costs
says.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairquant.allocate.knapsack import Infeasible

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Index = npt.NDArray[np.uint8]


class Budgets:
    """Costs (K, n_layers, W) of one weight, limits (K,), numbers of weights (n_layers,).

    Raises ``ValueError`` for shapes that do not fit and costs that decrease with the width, ``Infeasible`` for a limit
    below the cost of every weight's cheapest width.
    """

    def __init__(self, costs: Floats, limits: Floats, sizes: Sequence[int], widths: int) -> None:
        """Check, and bring every budget's costs to one denominator."""
        if costs.shape != (len(limits), len(sizes), widths) or not widths:
            raise ValueError(f"costs: got shape {costs.shape}; allowed: {(len(limits), len(sizes), widths)}, W > 0")
        if not (np.isfinite(costs).all() and (costs >= 0).all() and (np.diff(costs, axis=2) >= 0).all()):
            raise ValueError("costs: got NaN, infinity, a negative number or a wider choice that costs less; "
                             "allowed: finite numbers >= 0 that do not decrease in W")  # fmt: skip
        self.costs, self.limits, self.sizes = costs, limits, tuple(sizes)
        self.denominators = [max((x.as_integer_ratio()[1] for x in row.ravel().tolist()), default=1) for row in costs]
        self.whole: list[list[list[int]]] = [
            [[self._whole(x, denominator) for x in layer] for layer in row.tolist()]
            for row, denominator in zip(costs, self.denominators, strict=True)
        ]
        cheapest = np.zeros((len(sizes), widths), dtype=np.int64)
        cheapest[:, 0] = sizes
        self.smallest = self.spent(cheapest)
        widest = np.roll(cheapest, -1, axis=1)
        self.largest = self.spent(widest)
        for index, (limit, smallest) in enumerate(zip(limits.tolist(), self.smallest.tolist(), strict=True)):
            if not smallest <= limit:
                raise Infeasible(index, limit, smallest)

    @staticmethod
    def _whole(value: float, denominator: int) -> int:
        numerator, own = value.as_integer_ratio()
        return numerator * (denominator // own)

    def totals(self, counts: Counts) -> list[int]:
        """Return exact spending (K,) in each budget's own denominator, of counts (n_layers, W)."""
        numbers = counts.reshape(-1).tolist()
        return [
            sum(number * cost for number, cost in zip(numbers, itertools.chain(*layers), strict=True))
            for layers in self.whole
        ]

    def spent(self, counts: Counts) -> Floats:
        """Return spending (K,), rounded once."""
        return np.array(self._rounded(self.totals(counts)))

    def _rounded(self, totals: Sequence[int]) -> list[float]:
        return [total / denominator for total, denominator in zip(totals, self.denominators, strict=True)]

    def keeps(self, totals: Sequence[int]) -> bool:
        """Return whether exact spending (K,) is within every limit."""
        return all(spent <= limit for spent, limit in zip(self._rounded(totals), self.limits.tolist(), strict=True))


class Filling:
    """Steps from one choice to a wider one, taken in order whenever they still fit.

    The outcome is that of going through all weights one by one: cutting them into blocks changes nothing.
    """

    def __init__(self, budgets: Budgets, counts: Counts) -> None:
        """Start from spending that keeps the budgets."""
        self.budgets = budgets
        self.totals = budgets.totals(counts)
        self.over: set[tuple[int, int]] = set()  # (layer, kind of step) that did not fit: room only shrinks

    def take(self, layer: int, low: Index, high: Index) -> npt.NDArray[np.bool_]:
        """Return where a block's weights of ``layer`` may go from index ``low`` to ``high``; the shape is theirs."""
        taken = np.zeros(low.shape, dtype=bool)
        widths = self.budgets.costs.shape[2]
        places = np.flatnonzero(high.reshape(-1) > low.reshape(-1))
        kinds = low.reshape(-1)[places].astype(np.int64) * widths + high.reshape(-1)[places]
        for kind in [kind for number, kind in self.over if number == layer]:
            places, kinds = places[kinds != kind], kinds[kinds != kind]
        while len(places):
            fitting = self._longest(layer, kinds)
            taken.reshape(-1)[places[:fitting]] = True
            self.totals = self._after(layer, kinds[:fitting])
            if fitting == len(places):
                break
            kind = int(kinds[fitting])
            self.over.add((layer, kind))
            rest = np.flatnonzero(kinds[fitting:] != kind) + fitting
            places, kinds = places[rest], kinds[rest]
        return taken

    def _longest(self, layer: int, kinds: Counts) -> int:
        """Return how many of the first steps fit together: costs are >= 0, so it can be bisected."""
        low, high = 0, len(kinds)
        middle = high
        while True:
            if self.budgets.keeps(self._after(layer, kinds[:middle])):
                low = middle
            else:
                high = middle - 1
            if low >= high:
                return low
            middle = (low + high + 1) // 2

    def _after(self, layer: int, kinds: Counts) -> list[int]:
        """Return exact spending after steps of these kinds."""
        widths = self.budgets.costs.shape[2]
        numbers = np.bincount(kinds, minlength=1)
        found = [(divmod(kind, widths), int(numbers[kind])) for kind in np.flatnonzero(numbers).tolist()]
        return [
            total + sum(number * (costs[layer][high] - costs[layer][low]) for (low, high), number in found)
            for total, costs in zip(self.totals, self.budgets.whole, strict=True)
        ]
