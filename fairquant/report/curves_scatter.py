"""Scatter plots of budget curves: overall against worst group's accuracy, predicted against measured loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fairquant.report.curves import bits_text
from fairquant.report.curves_style import (
    FULL_COLOUR,
    GRID,
    MARKERS,
    STATES,
    Style,
    legend_outside,
    styles,
    three_digits,
)
from fairquant.report.curves_summary import MEASURES, Curves
from fairquant.report.plots import new_figure, short
from fairquant.report.suite import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(curves: Curves, task: str, state: str) -> Figure:
    """Draw overall against worst group's accuracy, a panel per budget; a line joins what nothing surpasses."""
    look = styles(curves.methods)
    columns = min(4, len(curves.budgets))
    lines = -(-len(curves.budgets) // columns)
    figure = new_figure(1.2 + 3.0 * columns, 1.5 + 2.8 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place < len(curves.budgets):
            _pareto_panel(axes, curves, curves.budgets[place], look)
        else:
            axes.set_visible(False)
    figure.supxlabel("overall test accuracy (%)", fontsize=9)
    figure.supylabel("worst group’s test accuracy (%)", fontsize=9)
    figure.suptitle(f"{short(task, 70)}, {state}", fontsize=11)
    legend_outside(figure, list(panels.flat))
    return figure


def _pareto_panel(axes: Axes, curves: Curves, budget: float, look: Mapping[str, Style]) -> None:
    means: dict[str, tuple[float, float]] = {}
    for method in curves.methods:
        overall = curves.summary(method, budget, MEASURES["overall_accuracy"])
        worst = curves.summary(method, budget, MEASURES["worst_group_accuracy"])
        if overall is None or worst is None or overall.mean is None or worst.mean is None:
            continue
        means[method] = (100 * overall.mean, 100 * worst.mean)
        style = look[method]
        axes.errorbar(*means[method], xerr=100 * (overall.sd or 0.0), yerr=100 * (worst.sd or 0.0), fmt=style.marker,
                      color=style.colour, markerfacecolor=style.face, markersize=6, elinewidth=0.7, label=short(method),
                      zorder=3)  # fmt: skip
    best = [means[name] for name in front(means)]
    axes.plot([x for x, _ in best], [y for _, y in best], color="#999999", linewidth=1, zorder=1)
    rows = curves.at(None, budget)
    full = [Summary.of([getattr(row, f"test_{name}_before") for row in rows]).mean for name in ("overall", "worst")]
    if full[0] is not None and full[1] is not None:
        axes.plot(100 * full[0], 100 * full[1], "*", color=FULL_COLOUR, markersize=11, label="full precision", zorder=2)
    size = Summary.of([row.packed_mb for row in curves.rows if row.budget == budget]).mean
    axes.set_title(f"{bits_text(budget)}, {three_digits(size or 0.0)} MB", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)


def front(means: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names that none surpasses in both values, by the first value.

    >>> front({"a": (80.0, 60.0), "b": (79.0, 61.0), "c": (79.0, 59.0)})
    ['b', 'a']
    """
    kept = [
        name
        for name, (x, y) in means.items()
        if not any(other[0] >= x and other[1] >= y and other != (x, y) for other in means.values())
    ]
    return sorted(kept, key=lambda name: means[name])


def predicted_measured(curves: Curves | None, task: str) -> Figure | None:
    """Draw the measured rise of each group's test loss against the predicted one, a panel per method, logarithmic.

    None where nothing was predicted. What did not rise has no logarithm: it is counted in the panel's title.
    """
    if curves is None or not curves.predicting:
        return None
    methods = curves.predicting
    columns = min(3, len(methods))
    lines = -(-len(methods) // columns)
    figure = new_figure(1.6 + 3.3 * columns, 1.2 + 3.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place < len(methods):
            _loss_panel(axes, curves, methods[place])
            axes.tick_params(labelbottom=place + columns >= len(methods))  # the lowest of its column
        else:
            axes.set_visible(False)
    figure.supxlabel("predicted rise of a group’s cross-entropy (nats)", fontsize=9)
    figure.supylabel("measured rise on test (nats)", fontsize=9)
    figure.suptitle(f"{short(task, 70)}, {STATES[False]}", fontsize=11)
    legend_outside(figure, list(panels.flat))
    return figure


def _loss_panel(axes: Axes, curves: Curves, method: str) -> None:
    from matplotlib import colormaps

    drawn: list[float] = []
    left_out = total = 0
    for place, budget in enumerate(curves.budgets):
        pairs = [
            (predicted, row.test_loss_change.get(group))
            for row in curves.at(method, budget)
            for group, predicted in row.predicted.items()
        ]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and x > 0 and y > 0]
        left_out, total = left_out + len(pairs) - len(known), total + len(pairs)
        if known:
            colour = colormaps["cividis"](place / max(len(curves.budgets) - 1, 1))
            marker = MARKERS[place % len(MARKERS)]
            x_values, y_values = zip(*known, strict=True)
            axes.scatter(x_values, y_values, s=22, color=[colour], marker=marker, edgecolors="#333333",
                         linewidths=0.4, label=bits_text(budget), zorder=3)  # fmt: skip
            drawn += [value for pair in known for value in pair]
    if drawn:
        axes.set(xscale="log", yscale="log")
        ends = [min(drawn) / 1.5, max(drawn) * 1.5]
        axes.plot(ends, ends, color=FULL_COLOUR, linestyle=":", linewidth=1, label="measured as predicted", zorder=1)
    axes.set_title(short(method) + (f" ({left_out} of {total} did not rise)" if left_out else ""), fontsize=9)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
