"""Budget curves against each other: a method's worst group beside the best of its rivals at the same bytes.

At each budget the rival is the method of the highest mean accuracy of the worst group over seeds, so that a method has
to stand against a different one wherever another is best. The difference is judged by the intervals of both changes
(bootstrap over test samples, ends averaged over seeds), whose half-widths towards each other add in quadrature:
``above`` or ``below`` where the difference is larger than that, else ``within``. The best of several rivals is best by
luck, too, and nothing is taken off for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairquant.report.cells import points
from fairquant.report.curves import CurveRow
from fairquant.report.curves_summary import MEASURES, Curves
from fairquant.report.suite import Summary


@dataclass(frozen=True)
class Duel:
    """One method against its best rival at one budget.

    Attributes:
        rival: the best of the others.
        difference: mean accuracy of the worst group, the method's less the rival's, over the seeds both have.
        verdict: above | within | below, as the module says; within where one of the two has no interval.
    """

    rival: str
    difference: float
    verdict: str


def duel(curves: Curves, method: str, budget: float, rivals: Sequence[str]) -> Duel | None:
    """Return how ``method`` stands against the best of ``rivals`` at ``budget``; None where one of them is not there.

    Only seeds count that the method and a rival both have; a rival without any of them is no rival.
    """
    own = {row.seed: row for row in curves.at(method, budget)}
    found: list[tuple[float, str, float]] = []
    for rival in rivals:
        pairs = [(own[row.seed], row) for row in curves.at(rival, budget) if row.seed in own and rival != method]
        means = [Summary.of([row.test_worst_after for row in side]).mean for side in zip(*pairs, strict=True)]
        if len(means) == 2 and means[0] is not None and means[1] is not None:
            found.append((means[1], rival, means[0] - means[1]))
    if not found:
        return None
    _, rival, difference = max(found)
    return Duel(rival, difference, _verdict(curves.at(method, budget), curves.at(rival, budget), difference))


def _verdict(own: Sequence[CurveRow], rival: Sequence[CurveRow], difference: float) -> str:
    better, worse = (own, rival) if difference >= 0 else (rival, own)
    down, up = _reach(better, "low"), _reach(worse, "high")
    if down is None or up is None or abs(difference) <= math.hypot(down, up):
        return "within"
    return "above" if difference > 0 else "below"


def _reach(rows: Sequence[CurveRow], end: str) -> float | None:
    """Return how far the interval of the worst group's change goes from its mean to ``end``."""
    mean, limit = (
        Summary.of([MEASURES[name](row) for row in rows]).mean
        for name in ("worst_group_change", f"worst_group_change_{end}")
    )
    return None if mean is None or limit is None else abs(limit - mean)


def duel_table(curves: Curves, methods: Sequence[str], rivals: Sequence[str]) -> list[tuple[str, ...]]:
    """Return method × budget: the difference in points, the verdict and the rival's name."""
    cells: list[tuple[str, ...]] = [("method", *(f"{budget:g}" for budget in curves.budgets))]
    for method in methods:
        duels = [duel(curves, method, budget, rivals) for budget in curves.budgets]
        if any(duels):
            cells.append((method, *("" if d is None else _cell(d) for d in duels)))
    return cells


def _cell(found: Duel) -> str:
    return f"{points(found.difference)} {found.verdict} ({found.rival})"
