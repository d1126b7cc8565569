"""Why each layer has its widths, and what other budgets would cost every group: rows for csv files and plots.

- ``layer_rows``: per layer its share of each group's importance, the predicted loss if the whole layer had one width
  (weighed by how much each group binds), the average width chosen, and the predicted loss of the choice per group;
- ``curve``: the Pareto curve, budget → predicted (and measured) loss per group, each budget solved on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import BitMap
from fairquant.allocate.info import ModelInfo
from fairquant.allocate.spending import Spent
from fairquant.assign.losses import total_by_layer
from fairquant.assign.run import Assignment
from fairquant.assign.spend import Problem, TableSolver
from fairquant.config.schema import BudgetSection
from fairquant.cost.size import MEGABYTE, size_report
from fairquant.errors import ConfigError
from fairquant.importance.maps import ImportanceMaps

Row = dict[str, str | int | float]
CURVE_GAP = 0.01
"""How far from the optimum a point of the curve may lie: less than a plot's line is thick."""


@dataclass(frozen=True)
class Measured:
    """What an allocation does on the validation split: the rise of each group's cross-entropy, its accuracy (G,)."""

    increase: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]


Measure = Callable[[BitMap], Measured]


def layer_rows(maps: ImportanceMaps, info: ModelInfo, assignment: Assignment) -> list[Row]:
    """Return one row per layer in model order; columns about losses are there where losses were predicted.

    ``loss_at_<b>bit`` is Σ_g λ_g L_g if the whole layer had b bits, with λ the groups' weights at the optimum;
    ``loss:<group>`` is that group's predicted loss of the widths chosen.
    """
    bits, spent, problem = assignment.bits, assignment.spent, assignment.problem
    sums = {name: maps.layers[name].reshape(len(maps.groups), -1).sum(axis=1, dtype=np.float64) for name in info.shapes}
    whole = np.maximum(np.sum([*sums.values()], axis=0), np.finfo(float).tiny)
    tables = _losses(problem, spent, bits, maps.groups) if problem is not None and spent is not None else {}
    rows: list[Row] = []
    for name, shape in info.shapes.items():
        row: Row = {"layer": name, "kind": info.kinds[name], "parameters": math.prod(shape)}
        row["bits"] = float(bits.layers[name].mean())
        shares = (sums[name] / whole).tolist()
        row |= {f"importance_share:{group}": share for group, share in zip(maps.groups, shares, strict=True)}
        rows.append(row | tables.get(name, _nothing(tables, maps.groups)))
    return rows


def _nothing(tables: Mapping[str, Row], groups: Sequence[str]) -> Row:
    """A protected layer was not priced: its cells stay empty where other rows have any."""
    return dict.fromkeys(next(iter(tables.values())), "") if tables else {}


def _losses(problem: Problem, spent: Spent, bits: BitMap, groups: Sequence[str]) -> dict[str, Row]:
    """Return the columns about predicted losses of every layer that was priced in a table."""
    if not isinstance(problem.solver, TableSolver):
        return {}
    widths, layers = np.array(problem.widths), problem.solver.layers
    by_group = total_by_layer(layers, {name: np.searchsorted(widths, bits.layers[name].reshape(-1)) for name in layers})
    rows = {}
    for name, layer in layers.items():
        at_width = np.einsum("g,guw->w", spent.group_weights, layer.losses).tolist()
        row: Row = {f"loss_at_{width}bit": value for width, value in zip(problem.widths, at_width, strict=True)}
        row |= {f"loss:{group}": value for group, value in zip(groups, by_group[name].tolist(), strict=True)}
        rows[name] = row
    return rows


def curve(
    assignment: Assignment, budgets: Sequence[float], groups: Sequence[str], measure: Measure | None
) -> Iterator[Row]:
    """Yield the allocation's own rows, budget "chosen", then one row per budget (average bits) and group.

    Budgets below what the widths can reach are left out. Raises ``ValueError`` for an allocation without a budget.
    """
    problem = assignment.problem
    if problem is None or assignment.spent is None:
        raise ValueError("assignment: got one without a budget; allowed: that of an allocator that spends one")
    yield from _point("chosen", assignment, problem, assignment.spent, groups, measure)
    for budget in sorted(budgets):
        try:
            spent = problem.with_budget(BudgetSection(avg_bits=budget)).minimise(gap=CURVE_GAP)
        except ConfigError:
            continue
        yield from _point(budget, assignment, problem, spent, groups, measure)


def _point(
    budget: float | str,
    assignment: Assignment,
    problem: Problem,
    spent: Spent,
    groups: Sequence[str],
    measure: Measure | None,
) -> Iterator[Row]:
    """Yield the rows of one point of the curve, a group each."""
    bits = assignment.with_steps(problem.full(spent.bits))
    packed = size_report(bits, problem.info.shapes, rest=problem.info.rest).packed
    head: Row = {"budget": budget, "avg_bits": bits.average(problem.info.shapes), "packed_mb": packed / MEGABYTE}
    measured = measure(bits) if measure else None
    for index, group in enumerate(groups):
        row: Row = {**head, "group": group, "predicted": float(spent.totals[index])}
        if measured is not None:
            row |= {"measured": _cell(measured.increase[index]), "accuracy": _cell(measured.accuracy[index])}
        yield row


def _cell(value: float) -> float | str:
    """Return a number, or an empty cell where it is undefined: a group without validation samples."""
    return "" if np.isnan(value) else float(value)
