"""A model's priced problem: predicted losses against budgets, for every granularity.

Per tensor and per channel all predicted losses fit into one table; layers that share widths (``assign.optimal.couple``)
are one row of units whose losses and costs add up. Per parameter the same problem is solved without a table
(``fairquant.assign.per_param``). Packed bytes depend on the allocation they describe (width map, scales): that budget
is met in a few rounds, each with what the allocation before it really needs; only what truly fits is kept. What is then
left is given out once more, and one width for all, which needs no map, is taken where it is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import BitMap, Granularity, Scheme, unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.allocate.knapsack import Infeasible, minimise
from fairquant.allocate.objective import Objective
from fairquant.allocate.spending import Spent
from fairquant.assign.budget import Prices, Reserve, first_reserve, prices, reserve_of, whole_bytes
from fairquant.assign.losses import Increase, LayerLosses, total_by_layer
from fairquant.assign.per_param import StreamedLayer, minimise_streamed, streamed_totals
from fairquant.config.schema import BudgetSection
from fairquant.cost.size import MEGABYTE, size_report
from fairquant.errors import ConfigError

NEGLIGIBLE = 1e-3
"""Share of a budget of packed bytes that may stay unspent."""
TRIES = 6
"""How often what a budget of packed bytes leaves is given out once more."""
ROUNDS = 6
"""How often a budget of packed bytes is met with the needs of the allocation before."""

Chosen = Mapping[str, npt.NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class Solved:
    """What a solver found: index into the widths for every unit by layer, and the rest as in ``Spent``."""

    chosen: Chosen
    totals: npt.NDArray[np.float64]
    value: float
    bound: float
    gap: float
    group_weights: npt.NDArray[np.float64]
    spent: npt.NDArray[np.float64]
    prices: npt.NDArray[np.float64]


class Solver(Protocol):
    """Finds the best widths for given prices."""

    def __call__(self, prices: Prices, objective: Objective, *, gap: float) -> Solved:
        """Solve; raises ``Infeasible`` where a limit cannot be met."""
        ...

    def totals_at(self, number: int) -> npt.NDArray[np.float64]:
        """Return the groups' totals (G,) with every free unit at candidate width ``number``."""
        ...


@dataclass(frozen=True)
class TableSolver:
    """Solves with all predicted losses in one table.

    ``layers``: losses of the layers that are free, in model order; ``blocks``: layers that share widths stand in one
    tuple, every layer in one; ``offset`` (G,): predicted loss of the protected layers.
    """

    layers: Mapping[str, LayerLosses]
    blocks: tuple[tuple[str, ...], ...]
    offset: npt.NDArray[np.float64]

    def __call__(self, prices: Prices, objective: Objective, *, gap: float) -> Solved:
        """Return the best widths; the protected layers are a unit without a choice."""
        position = {name: index for index, name in enumerate(self.layers)}
        losses, costs, numbers = [], [], []
        for block in self.blocks:
            table = sum(self.layers[name].losses for name in block)
            price = sum(prices.costs[:, position[name]] for name in block)
            numbers.append(np.shape(table)[1])
            losses.append(table)
            costs.append(np.repeat(np.asarray(price)[:, None, :], numbers[-1], axis=1))
        width_count = prices.costs.shape[2]
        losses.append(np.repeat(self.offset[:, None, None], width_count, axis=2))
        costs.append(np.zeros((len(prices.keys), 1, width_count)))
        found = minimise(
            np.concatenate(losses, axis=1), np.concatenate(costs, axis=1), prices.limits, objective, gap=gap
        )
        parts = np.split(found.choice, np.cumsum(numbers, dtype=np.intp))[:-1]  # the last one is the offset's
        by_name = {name: part for block, part in zip(self.blocks, parts, strict=True) for name in block}
        chosen = {name: by_name[name] for name in self.layers}
        return Solved(
            chosen, found.totals, found.value, found.bound, found.gap, found.group_weights, found.spent, found.prices
        )

    def totals_at(self, number: int) -> npt.NDArray[np.float64]:
        """Return the groups' totals (G,) with every free unit at candidate width ``number``."""
        chosen = {name: np.full(layer.losses.shape[1], number, np.intp) for name, layer in self.layers.items()}
        totals: npt.NDArray[np.float64] = np.sum([self.offset, *total_by_layer(self.layers, chosen).values()], axis=0)
        return totals


@dataclass(frozen=True)
class StreamedSolver:
    """Solves for single weights, layers read block by block.

    ``layers``: those that are free, in model order; ``widths``: candidates; ``increase``: h(δ, w) of the metric;
    ``offset`` (G,): predicted loss of the protected layers.
    """

    layers: Sequence[StreamedLayer]
    widths: tuple[int, ...]
    increase: Increase
    offset: npt.NDArray[np.float64]

    def __call__(self, prices: Prices, objective: Objective, *, gap: float) -> Solved:
        """Return the best width of every weight."""
        found = minimise_streamed(
            self.layers,
            self.widths,
            prices.costs,
            prices.limits,
            objective,
            increase=self.increase,
            offset=self.offset,
            gap=gap,
        )
        chosen = {layer.name: index.reshape(-1) for layer, index in zip(self.layers, found.choice, strict=True)}
        return Solved(
            chosen, found.totals, found.value, found.bound, found.gap, found.group_weights, found.spent, found.prices
        )

    def totals_at(self, number: int) -> npt.NDArray[np.float64]:
        """Return the groups' totals (G,) with every weight at candidate width ``number``."""
        return streamed_totals(self.layers, self.widths, number, len(self.offset), increase=self.increase) + self.offset


_Answer = tuple[BitMap, Solved, Prices]


@dataclass(frozen=True)
class Problem:
    """The ``Spending`` an allocator is given.

    Attributes:
        solver: finds widths for prices.
        objective: over the groups' totals.
        budget: the limits.
        info: of the model.
        granularity: of the widths.
        widths: candidates, ascending.
        held: protected layer → width.
        scheme: of the grids; zero points take room.
    """

    solver: Solver
    objective: Objective
    budget: BudgetSection
    info: ModelInfo
    granularity: Granularity
    widths: tuple[int, ...]
    held: Mapping[str, int]
    scheme: Scheme = "symmetric"

    def minimise(self, *, gap: float) -> Spent:
        """Return the best widths within the budget; see ``Spending``."""
        if self.budget.size_mb is None:
            reserve = self._first_reserve()
            try:
                best, solved, priced = self._solve(reserve, gap)
            except Infeasible as error:
                raise self._infeasible(self._priced(reserve), error) from None
        else:
            best, solved, priced = self._packed(gap)
        return Spent(
            bits={name: best.layers[name] for name in best.layers if name not in self.held},
            totals=solved.totals,
            value=solved.value,
            bound=solved.bound,
            gap=solved.gap,
            group_weights=solved.group_weights,
            prices={key: float(price) for key, price in zip(priced.keys, solved.prices / priced.unit, strict=True)},
        )

    def with_budget(self, budget: BudgetSection) -> Problem:
        """Return the same problem under another budget."""
        return replace(self, budget=budget)

    def full(self, free: Mapping[str, npt.NDArray[np.uint8]]) -> BitMap:
        """Return the widths ``free`` with those of the protected layers, in model order."""
        layers = {}
        for name, shape in self.info.shapes.items():
            kept = unit_shape(self.granularity, shape)
            layers[name] = np.full(kept, self.held[name], np.uint8) if name in self.held else free[name].reshape(kept)
        return BitMap(self.granularity, layers, scheme=self.scheme)

    def _bitmap(self, chosen: Chosen) -> BitMap:
        widths = np.array(self.widths, dtype=np.uint8)
        return self.full({name: widths[index] for name, index in chosen.items()})

    def _first_reserve(self) -> Reserve:
        return first_reserve(self.widths, self.held, self.info, self.granularity, self.scheme)

    def _priced(self, reserve: Reserve) -> Prices:
        return prices(
            self.budget,
            self.info,
            granularity=self.granularity,
            widths=self.widths,
            held=self.held,
            reserve=reserve,
            scheme=self.scheme,
        )

    def _solve(self, reserve: Reserve, gap: float, less: float = 0.0) -> tuple[BitMap, Solved, Prices]:
        """Solve with ``reserve``; ``less`` bits are taken from the budget of packed bytes."""
        priced = self._priced(reserve)
        limits = priced.limits - np.array([less if key == "size_mb" else 0.0 for key in priced.keys])
        solved = self.solver(replace(priced, limits=limits), self.objective, gap=gap)
        return self._bitmap(solved.chosen), solved, priced

    def _packed(self, gap: float) -> tuple[BitMap, Solved, Prices]:
        """Meet the budget of packed bytes, which depend on the allocation.

        The first reserve holds for every allocation; where that leaves too little, the cheapest one's is taken. Every
        further round takes what the allocation before really needs; where that allocation did not fit for its scales,
        at least as many as in any round before. Only what truly fits counts. Then the rest is spent (``_spent_up``),
        and allocations that need no map are compared (``_uniform``).
        """
        cheapest = self._bitmap({name: np.zeros(self._units(name), np.intp) for name in self._free})
        reserve, best = self._first_reserve(), None
        used = reserve
        for attempt in range(ROUNDS):
            try:
                bits, solved, priced = self._solve(reserve, gap)
            except Infeasible as error:
                priced = self._priced(reserve)
                if priced.keys[error.index] != "size_mb" or self._excess(cheapest) > 0:
                    raise self._infeasible(priced, error) from None
                if attempt:
                    break
                reserve = reserve_of(cheapest, self.widths)
                continue
            needed = reserve_of(bits, self.widths)
            if self._excess(bits) > 0:  # a code is never longer than reserved, but scales may be more
                reserve = Reserve(needed.code, _largest(reserve.grids, needed.grids))
            elif best is None or solved.value < best[1].value:
                best, used, reserve = (bits, solved, priced), reserve, needed
            else:
                break
        if best is None:  # next to nothing is left beside the cheapest widths: they are what fits
            used = reserve_of(cheapest, self.widths)
            priced = self._priced(used)
            least = priced.costs[:, :, 0] @ np.array([self._units(name) for name in self._free])
            best = self._solve(used, gap, float((priced.limits - least)[priced.keys.index("size_mb")]))
        return self._uniform(self._spent_up(best, used, gap))

    def _spent_up(self, best: _Answer, reserve: Reserve, gap: float) -> _Answer:
        """Return a better answer within the bytes that the best one leaves of what ``reserve`` set aside for it.

        Code and scales are those of the allocation, so what is given out beyond the reserve may fit or not: it grows by
        what the last answer left, and is halved between one that fits and one that does not.
        """
        fitting, over, more = 0.0, math.inf, -8.0 * self._excess(best[0])
        for _ in range(TRIES):
            if more - fitting < NEGLIGIBLE * 8 * whole_bytes(float(self.budget.size_mb or 0)):
                break
            try:
                bits, solved, priced = self._solve(reserve, gap, -more)
            except Infeasible:  # another budget's, at the edge
                break
            left = -8.0 * self._excess(bits)
            if left >= 0:
                best = (bits, solved, priced) if solved.value < best[1].value else best
                fitting, more = more, min(more + left, (more + over) / 2)
            else:
                over, more = more, (fitting + more) / 2
        return best

    def _uniform(self, best: _Answer) -> _Answer:
        """Return one width for all free units where that is better: it needs no map, which no reserve can know."""
        for number, width in enumerate(self.widths):
            chosen = {name: np.full(self._units(name), number, np.intp) for name in self._free}
            bits = self._bitmap(chosen)
            if self._keeps_all(bits, width):
                totals = self.solver.totals_at(number)
                value = float(self.objective.value(totals))
                if value < best[1].value:
                    solved = replace(
                        best[1], chosen=chosen, totals=totals, value=value, bound=min(best[1].bound, value)
                    )
                    gap = (value - solved.bound) / max(value, np.finfo(float).tiny)
                    best = (bits, replace(solved, gap=gap), best[2])
        return best

    def _keeps_all(self, bits: BitMap, width: int) -> bool:
        """Return whether ``bits``, ``width`` for all free units, keeps every budget."""
        if self._excess(bits) > 0:
            return False
        others = self.budget.model_copy(update={"size_mb": None})
        if others.avg_bits is None and others.gbops is None:
            return True
        priced = replace(self, budget=others)._priced(self._first_reserve())
        number, sizes = self.widths.index(width), np.array([self._units(name) for name in self._free])
        return bool((priced.costs[:, :, number] @ sizes <= priced.limits).all())

    @property
    def _free(self) -> list[str]:
        return [name for name in self.info.shapes if name not in self.held]

    def _units(self, name: str) -> int:
        return math.prod(unit_shape(self.granularity, self.info.shapes[name]))

    def _excess(self, bits: BitMap) -> int:
        """Return by how many bytes the packed file of ``bits`` is over the budget; ≤ 0 where it fits."""
        return self._packed_bytes(bits) - whole_bytes(float(self.budget.size_mb or 0))

    def _packed_bytes(self, bits: BitMap) -> int:
        return size_report(bits, self.info.shapes, rest=self.info.rest).packed

    def _infeasible(self, priced: Prices, error: Infeasible) -> ConfigError:
        key = priced.keys[error.index]
        smallest = priced.readable(error.index, error.smallest)
        if key == "size_mb":
            cheapest = self._bitmap({name: np.zeros(self._units(name), np.intp) for name in self._free})
            smallest = self._packed_bytes(cheapest) / MEGABYTE
        held = f" and {len(self.held)} protected layers" if self.held else ""
        return ConfigError(
            f"budget.{key}: got {getattr(self.budget, key):g}; allowed: at least {smallest:.12g}, "
            f"what {self.widths[0]} bits everywhere{held} need (assign.optimal.bits, granularity {self.granularity})"
        )


def _largest(one: Mapping[str, int] | None, other: Mapping[str, int] | None) -> dict[str, int]:
    """Return the larger room for grids of each layer."""
    first, second = one or {}, other or {}
    return {name: max(first.get(name, 0), second.get(name, 0)) for name in {**first, **second}}


def coupled(layers: Mapping[str, int], patterns: Callable[[str], list[str]], couple: tuple[tuple[str, ...], ...]) -> (
    tuple[tuple[str, ...], ...]
):  # fmt: skip
    """Return layers in model order as blocks that share widths.

    ``layers``: layer → number of units; ``patterns`` finds the layers of one pattern; ``couple`` as in params.yaml.
    Raises ``ConfigError`` for a layer in two lists, and for layers of a list with different numbers of units.
    """
    block_of: dict[str, int] = {}
    for index, names in enumerate(couple):
        members = [name for name in layers if any(name in patterns(pattern) for pattern in names)]
        for name in members:
            if name in block_of:
                raise ConfigError(f"assign.optimal.couple: got layer {name} in two lists; allowed: in one at most")
            if layers[name] != layers[members[0]]:
                raise ConfigError(
                    f"assign.optimal.couple: got layers {members[0]} ({layers[members[0]]} units) and {name} "
                    f"({layers[name]} units); allowed: layers with the same number of units"
                )
            block_of[name] = index
    blocks: dict[object, list[str]] = {}
    for name in layers:
        blocks.setdefault(block_of.get(name, name), []).append(name)
    return tuple(tuple(names) for names in blocks.values())


def protected_losses(layers: Mapping[str, LayerLosses], n_groups: int) -> npt.NDArray[np.float64]:
    """Return the predicted loss (G,) of layers that have one candidate width."""
    chosen = {name: np.zeros(layer.losses.shape[1], dtype=np.intp) for name, layer in layers.items()}
    parts = total_by_layer(layers, chosen)
    return np.sum([*parts.values()], axis=0) if parts else np.zeros(n_groups)
