"""Accuracy of each group before and after, as bars: one figure per model and width, a panel per method [C]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.report.analysis import groups_of
from fairquant.report.curves import bits_text
from fairquant.report.curves_style import GRID, legend_outside
from fairquant.report.curves_summary import Curves
from fairquant.report.plots import AFTER, AFTER_LABEL, BEFORE, BEFORE_LABEL, OTHER, new_figure, short
from fairquant.report.suite import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
WIDTH = 0.38


def group_summary(curves: Curves, method: str, bits: float, group: str, when: str) -> Summary:
    """Return mean and sd over seeds of the test accuracy of ``group``, ``when``: before | after."""
    return Summary.of([getattr(row, f"test_group_{when}").get(group) for row in curves.at(method, bits)])


def group_bars(curves: Curves, model: str, bits: float) -> Figure | None:
    """Draw every method's groups at ``bits``, thin bars being sd over seeds; None without rows there."""
    methods = [name for name in curves.methods if curves.at(name, bits)]
    if not methods:
        return None
    groups = groups_of(curves.rows)
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    long = max(map(len, groups)) > 6
    figure = new_figure(1.9 + columns * max(2.6, 0.8 + 0.42 * len(groups)), 0.9 + lines * (2.9 if long else 2.4))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place < len(methods):
            _panel(axes, curves, methods[place], bits, groups)
            axes.tick_params(labelbottom=place + columns >= len(methods))  # the lowest of its column
        else:
            axes.set_visible(False)
        if long:
            axes.tick_params(axis="x", labelrotation=90 if len(groups) > 8 else 30)
    figure.supylabel("test accuracy (%); thin bars: sd over seeds", fontsize=9)
    figure.suptitle(f"{short(model, 60)}, {bits_text(bits)}", fontsize=11)
    legend_outside(figure, list(panels.flat))
    return figure


def _panel(axes: Axes, curves: Curves, method: str, bits: float, groups: list[str]) -> None:
    sides = (("before", -WIDTH / 2, BEFORE, "", BEFORE_LABEL), ("after", WIDTH / 2, AFTER, "///", AFTER_LABEL))
    for when, shift, colour, hatch, label in sides:
        found = {place: group_summary(curves, method, bits, group, when) for place, group in enumerate(groups)}
        known = {place: summary for place, summary in found.items() if summary.mean is not None}
        x = [place + shift for place in known]
        y = [100 * float(summary.mean or 0.0) for summary in known.values()]
        axes.bar(x, y, WIDTH, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=label)
        sd = [100 * (summary.sd or 0.0) for summary in known.values()]
        if any(sd):
            axes.errorbar(x, y, yerr=sd, fmt="none", ecolor=OTHER, elinewidth=1)
    axes.set_title(short(method), fontsize=9)
    axes.set_xticks(range(len(groups)), labels=[short(group, 18) for group in groups], fontsize=8)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
