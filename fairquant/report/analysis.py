"""Models × methods × widths as one grid: the rows of an analysis, by model.

An analysis is a csv of ``report.curves`` whose task is the model's name, whose budget is the width, and whose method is
a way of compressing, or "COMPRESSION+MITIGATION". Everything is mean and sample standard deviation over seeds; a value
that is undefined in one run is undefined in the mean (``suite.Summary``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairquant.report.curves import CurveRow
from fairquant.report.curves_summary import MEASURES, Curves
from fairquant.report.suite import Summary

JOIN = "+"
"""Stands between a way of compressing and what was done against unfairness besides."""
Grid = Mapping[str, Curves]
"""Model → its rows by method and width."""


def by_model(rows: Iterable[CurveRow], order: Sequence[str] = ()) -> dict[str, Curves]:
    """Return model → its rows, models in the order of the rows; methods stand in ``order``, others behind by name."""
    found: dict[str, list[CurveRow]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return {model: Curves(own, [*order, *_mitigated(own, order)]) for model, own in found.items()}


def _mitigated(rows: Sequence[CurveRow], order: Sequence[str]) -> list[str]:
    """Return the mitigated methods in the order of what they are built on."""
    names = sorted({row.method for row in rows if JOIN in row.method})
    places = {name: place for place, name in enumerate(order)}
    return sorted(names, key=lambda name: places.get(base_of(name), len(places)))


def base_of(method: str) -> str:
    """Return the way of compressing.

    >>> base_of("qat+group_dro"), base_of("qat")
    ('qat', 'qat')
    """
    return method.partition(JOIN)[0]


def methods_of(grid: Grid) -> list[str]:
    """Return every method of any model, in the models' order."""
    return list(dict.fromkeys(name for curves in grid.values() for name in curves.methods))


def widths_of(grid: Grid) -> list[float]:
    """Return every width of any model, widest first."""
    return sorted({bits for curves in grid.values() for bits in curves.budgets}, reverse=True)


def groups_of(rows: Iterable[CurveRow]) -> list[str]:
    """Return the groups' names in the order of the rows."""
    return list(dict.fromkeys(name for row in rows for name in row.test_group_before))


def full_precision(curves: Curves, column: str) -> Summary:
    """Return mean and sd of ``column``, a ``test_…_before``, of one classifier per seed."""
    return Summary.of([getattr(row, column) for row in {row.seed: row for row in curves.rows}.values()])


@dataclass(frozen=True)
class Place:
    """One choice: what it costs and what it gives, means over seeds.

    Attributes:
        model: its name.
        method: its name.
        bits: the width.
        packed_mb: real packed size, megabytes.
        overall: test accuracy in [0, 1].
        worst: that of the worst group.
        gap: between the best and the worst group, in [0, 1].
    """

    model: str
    method: str
    bits: float
    packed_mb: float
    overall: float
    worst: float
    gap: float


def places(grid: Grid) -> list[Place]:
    """Return every choice whose four values are defined, by model, method and width, widest first."""
    found = []
    for model, curves in grid.items():
        for method in curves.methods:
            for bits in reversed(curves.budgets):
                keys = ("packed_mb", "overall_accuracy", "worst_group_accuracy", "gap_max_minus_min")
                known = [summary for key in keys if (summary := curves.summary(method, bits, MEASURES[key]))]
                values = [summary.mean for summary in known if summary.mean is not None]
                if len(values) == len(keys):
                    found.append(Place(model, method, bits, *values))
    return found
