"""Heat maps of models × methods: overall accuracy, worst group and gap side by side, one figure per width [C].

[C] is "Beyond naive quantization". A measure has the same colours in every figure of one analysis, and brighter is
better in all of them. The first row is full precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairquant.report.analysis import Grid, full_precision, methods_of, widths_of
from fairquant.report.curves import bits_text
from fairquant.report.curves_summary import MEASURES
from fairquant.report.plots import new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FULL = "full precision"
PANELS = (
    ("overall_accuracy", "test_overall_before", "overall accuracy (%)", "cividis"),
    ("worst_group_accuracy", "test_worst_before", "worst group’s accuracy (%)", "cividis"),
    ("gap_max_minus_min", "test_gap_before", "gap max − min (points)", "cividis_r"),
)
"""Measure, its column in full precision, title, colours: bright is good."""
Cells = list[list[float | None]]


def heat_values(grid: Grid, bits: float, measure: str, before: str) -> tuple[list[str], Cells]:
    """Return the rows' names (full precision, then methods with rows at ``bits``) and means, method × model."""
    methods = [name for name in methods_of(grid) if any(curves.at(name, bits) for curves in grid.values())]
    cells: Cells = [[full_precision(curves, before).mean for curves in grid.values()]]
    for name in methods:
        found = [curves.summary(name, bits, MEASURES[measure]) for curves in grid.values()]
        cells.append([None if summary is None else summary.mean for summary in found])
    return [FULL, *methods], cells


def heat_map(grid: Grid, bits: float) -> Figure:
    """Draw the three measures at ``bits``; "–" stands where there is no number."""
    names, _ = heat_values(grid, bits, *PANELS[0][:2])
    widest = max(len(short(name)) for name in names)
    figure = new_figure(1.4 + 0.085 * widest + 3 * (0.9 + 0.85 * len(grid)), 1.9 + 0.36 * len(names))
    panels = figure.subplots(1, len(PANELS), squeeze=False, sharey=True)[0]
    for axes, (measure, before, title, colours) in zip(panels, PANELS, strict=True):
        _, cells = heat_values(grid, bits, measure, before)
        draw_cells(axes, cells, colours=colours, bounds=_bounds(grid, measure, before))
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(grid)), labels=[short(model, 20) for model in grid], rotation=30, ha="right")
        axes.tick_params(length=0, labelsize=9)
        axes.axhline(0.5, color="white", linewidth=2.5)
    panels[0].set_yticks(range(len(names)), labels=[short(name) for name in names])
    figure.suptitle(f"{bits_text(bits)} (test, mean over seeds; bright is good)", fontsize=11)
    return figure


def draw_cells(axes: Axes, cells: Cells, *, colours: str, bounds: tuple[float, float]) -> None:
    """Draw shares as percent in coloured cells; the text is light on dark and dark on light."""
    from matplotlib import colormaps

    low, high = bounds
    shown = [[math.nan if value is None else value for value in row] for row in cells]
    scale = colormaps[colours]
    axes.imshow(shown, cmap=scale, aspect="auto", vmin=low, vmax=high)
    for line, row in enumerate(cells):
        for column, value in enumerate(row):
            place = 0.5 if value is None or high - low < 1e-12 else (value - low) / (high - low)
            red, green, blue, _ = scale(place)
            dark = value is not None and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = "–" if value is None else f"{100 * value:.1f}"
            axes.text(column, line, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")


def _bounds(grid: Grid, measure: str, before: str) -> tuple[float, float]:
    """Return the smallest and the largest mean of ``measure`` at any width."""
    known = [value for bits in widths_of(grid) for value in _flat(heat_values(grid, bits, measure, before)[1])]
    return (min(known), max(known)) if known else (0.0, 1.0)


def _flat(cells: Sequence[Sequence[float | None]]) -> list[float]:
    return [value for row in cells for value in row if value is not None]
