"""Budget curves as plots: accuracy against real size, with full precision; the others are in ``curves_scatter``.

Equal rows give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.report.curves import CurveRow
from fairquant.report.curves_scatter import pareto, predicted_measured
from fairquant.report.curves_style import FULL_COLOUR, GRID, STATES, Style, legend_outside, styles, three_digits
from fairquant.report.curves_summary import MEASURES, Curves, by_task
from fairquant.report.plots import new_figure, short
from fairquant.report.suite import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAR = 6.0
"""Points below full precision that the enlarged panels show."""


def write_plots(rows: Sequence[CurveRow], folder: Path, *, order: Sequence[str] = ()) -> dict[str, str]:
    """Write every plot of every task into ``folder``; return {file name: "<task>: what it shows"}."""
    made: dict[str, tuple[Figure, str]] = {}
    for number, (task, both) in enumerate(by_task(rows, order).items(), start=1):
        slug = f"{number}_{re.sub('[^A-Za-z0-9]+', '_', task).strip('_')}"
        made[f"{slug}_worst_group.png"] = (
            size_curves(both, task, "worst_group_accuracy"),
            f"{task}: worst group's accuracy by real size",
        )
        made[f"{slug}_overall.png"] = (size_curves(both, task, "overall_accuracy"), f"{task}: accuracy by real size")
        for tuned, curves in both.items():
            text = f"{task}: overall and worst group's accuracy at each budget, {STATES[tuned]}"
            made[f"{slug}_pareto_{'tuned' if tuned else 'untuned'}.png"] = (pareto(curves, task, STATES[tuned]), text)
        figure = predicted_measured(both.get(False), task)
        if figure is not None:
            made[f"{slug}_predicted.png"] = (figure, f"{task}: predicted and measured rise of each group's loss")
    for name, (figure, _) in made.items():
        figure.savefig(folder / name, dpi=120, metadata={"Software": None})
    return {name: text for name, (_, text) in made.items()}


def size_curves(both: Mapping[bool, Curves], task: str, measure: str) -> Figure:
    """Draw ``measure`` in percent against packed megabytes, a column without and one with fine-tuning; bands are sd.

    The lower row shows the same near full precision, where curves are decided.
    """
    methods = list(dict.fromkeys(name for curves in both.values() for name in curves.methods))
    look = styles(methods)
    figure = new_figure(1.7 + 5.8 * len(both), 9.2)
    panels = figure.subplots(2, len(both), squeeze=False, sharey="row")
    for column, (tuned, curves) in zip(panels.T, both.items(), strict=True):
        full = _full(curves, measure)
        for axes in column:
            for method in curves.methods:
                _curve(axes, curves, method, measure, look[method])
            _full_line(axes, full)
            _size_axis(axes, curves)
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
        column[0].set_title(STATES[tuned], fontsize=10)
        column[1].set_xlabel("real packed size (MB, logarithmic); above: bits per weight", fontsize=9)
        if full.mean is not None:
            column[1].set_ylim(100 * full.mean - NEAR, 100 * full.mean + NEAR / 3)
    what = measure.replace("_", " ").replace("group ", "group’s ")
    panels[0][0].set_ylabel(f"{what} on test (%)", fontsize=9)
    panels[1][0].set_ylabel(f"the same, within {NEAR:g} points of full precision", fontsize=9)
    figure.suptitle(short(task, 90), fontsize=11)
    legend_outside(figure, list(panels.flat))
    return figure


def _curve(axes: Axes, curves: Curves, method: str, measure: str, style: Style) -> None:
    points = [
        (size.mean, 100 * value.mean, 100 * (value.sd or 0.0))
        for budget in curves.budgets
        if (size := curves.summary(method, budget, MEASURES["packed_mb"])) is not None
        and (value := curves.summary(method, budget, MEASURES[measure])) is not None
        and size.mean is not None
        and value.mean is not None
    ]
    if not points:
        return
    x, y, sd = zip(*points, strict=True)
    axes.plot(x, y, linestyle=style.dashes, marker=style.marker, color=style.colour, markerfacecolor=style.face,
              markersize=5, linewidth=1.4, label=short(method), zorder=3)  # fmt: skip
    if any(sd):
        low, high = ([a + sign * b for a, b in zip(y, sd, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=style.colour, alpha=0.1, linewidth=0, zorder=1)


def _full(curves: Curves, measure: str) -> Summary:
    """Return the full-precision classifiers' mean and sd."""
    column = {"worst_group_accuracy": "test_worst_before", "overall_accuracy": "test_overall_before"}[measure]
    return Summary.of([getattr(row, column) for row in {row.seed: row for row in curves.rows}.values()])


def _full_line(axes: Axes, full: Summary) -> None:
    """Draw the full-precision classifiers' mean as a line and their sd as a band."""
    if full.mean is None:
        return
    axes.axhline(100 * full.mean, color=FULL_COLOUR, linestyle=":", linewidth=1.4, label="full precision", zorder=2)
    if full.sd:
        axes.axhspan(
            100 * (full.mean - full.sd), 100 * (full.mean + full.sd), color=FULL_COLOUR, alpha=0.06, linewidth=0
        )


def _size_axis(axes: Axes, curves: Curves) -> None:
    """Scale megabytes logarithmically, with ticks at the budgets' sizes and the budgets above."""
    from matplotlib.ticker import NullLocator

    sizes = [Summary.of([row.packed_mb for row in curves.rows if row.budget == b]).mean or 0.0 for b in curves.budgets]
    axes.set_xscale("log")
    axes.set_xticks(sizes, labels=[three_digits(size) for size in sizes], fontsize=8)
    above = axes.secondary_xaxis("top")
    above.set_xticks(sizes, labels=[f"{budget:g}" for budget in curves.budgets], fontsize=8)
    for axis in (axes.xaxis, above.xaxis):
        axis.set_minor_locator(NullLocator())
