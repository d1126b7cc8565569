"""Pareto plots of an analysis: size and accuracy in two dimensions; size, accuracy and fairness in three [C].

[C] is "Beyond naive quantization". Only choices of one model are held against each other. Size is the real packed size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairquant.report.analysis import JOIN, Grid, Place, base_of, full_precision, methods_of, places
from fairquant.report.analysis_front import pareto_front
from fairquant.report.curves_style import FULL_COLOUR, GRID, MARKERS, legend_outside, three_digits
from fairquant.report.plots import new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT = "#666666"
EDGE = "#333333"
MITIGATED = "#D55E00"
"""Edge of what was done against unfairness besides compressing."""


def front_2d(found: Sequence[Place]) -> list[bool]:
    """Return which choices none surpasses in size and overall accuracy."""
    return pareto_front([(place.packed_mb, place.overall) for place in found], ("min", "max"))


def front_3d(found: Sequence[Place]) -> list[bool]:
    """Return which choices none surpasses in size, overall accuracy and gap between groups."""
    return pareto_front([(place.packed_mb, place.overall, place.gap) for place in found], ("min", "max", "min"))


def front_rows(grid: Grid) -> list[list[object]]:
    """Return one csv row per choice: what it costs, what it gives, and of which front it is."""
    head = ["model", "method", "bits", "packed_mb", "overall_accuracy", "worst_group_accuracy", "gap_max_minus_min"]
    rows: list[list[object]] = [[*head, "front_size_accuracy", "front_size_accuracy_gap"]]
    for found in _by_model(grid).values():
        for place, flat, deep in zip(found, front_2d(found), front_3d(found), strict=True):
            rows.append([*vars(place).values(), str(flat).lower(), str(deep).lower()])
    return rows


def _by_model(grid: Grid) -> dict[str, list[Place]]:
    found = places(grid)
    kept = {model: [place for place in found if place.model == model] for model in grid}
    return {model: own for model, own in kept.items() if own}


def markers(methods: Sequence[str]) -> dict[str, str]:
    """Return a marker for each way of compressing; a mitigated method has that of its base."""
    bases = list(dict.fromkeys(base_of(name) for name in methods))
    return {name: MARKERS[bases.index(base_of(name)) % len(MARKERS)] for name in [*methods, *bases]}


def pareto_2d(grid: Grid) -> Figure | None:
    """Draw overall accuracy against size, a panel per model; colour is the worst group, a line joins the front.

    None where no choice has all its values.
    """
    found = _by_model(grid)
    if not found:
        return None
    look = markers(methods_of(grid))
    worst = [100 * place.worst for own in found.values() for place in own]
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = new_figure(3.2 + 4.0 * columns, 1.0 + 3.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    colours: Any = None
    for axes, (model, own) in zip(panels.flat, found.items(), strict=False):
        colours = _flat_panel(axes, own, look, (min(worst), max(worst)))
        full = full_precision(grid[model], "test_overall_before").mean
        if full is not None:
            axes.axhline(100 * full, color=FULL_COLOUR, linestyle=":", linewidth=1.4, label="full precision")
        axes.set_title(short(model), fontsize=10)
    for axes in list(panels.flat)[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("real packed size (MB, logarithmic)", fontsize=9)
    figure.supylabel("overall test accuracy (%)", fontsize=9)
    figure.colorbar(colours, ax=list(panels.flat)[: len(found)], label="worst group’s test accuracy (%)", shrink=0.9)
    legend_outside(figure, list(panels.flat)[: len(found)])
    return figure


def _flat_panel(axes: Axes, own: Sequence[Place], look: Mapping[str, str], bounds: tuple[float, float]) -> Any:
    from matplotlib.ticker import NullFormatter

    drawn: Any = None
    for method in dict.fromkeys(place.method for place in own):
        chosen = [place for place in own if place.method == method]
        drawn = axes.scatter(
            [place.packed_mb for place in chosen], [100 * place.overall for place in chosen], marker=look[method],
            c=[100 * place.worst for place in chosen], cmap="cividis", vmin=bounds[0], vmax=bounds[1], s=52,
            edgecolors=MITIGATED if JOIN in method else EDGE, linewidths=1.5 if JOIN in method else 0.6, zorder=3,
        )  # fmt: skip
    for name in dict.fromkeys(base_of(place.method) for place in own):
        axes.scatter([], [], marker=look[name], color="#bbbbbb", edgecolors=EDGE, linewidths=0.6, label=short(name))
    if any(JOIN in place.method for place in own):
        axes.scatter([], [], marker="o", color="#ffffff", edgecolors=MITIGATED, linewidths=1.5, label="with mitigation")
    best = sorted(
        (place.packed_mb, 100 * place.overall) for place, kept in zip(own, front_2d(own), strict=True) if kept
    )
    axes.plot([x for x, _ in best], [y for _, y in best], color=FRONT, linewidth=1.2, zorder=1, label="not surpassed")
    axes.set_xscale("log")
    sizes = _spread(sorted({place.packed_mb for place in own}))
    axes.set_xticks(sizes, labels=[three_digits(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    return drawn


def _spread(sizes: Sequence[float]) -> list[float]:
    """Return those of ascending ``sizes`` that are far enough apart to be written at a logarithmic axis."""
    kept: list[float] = []
    room = math.log(sizes[-1] / sizes[0]) / 7 if len(sizes) > 1 else 0.0
    for size in sizes:
        if not kept or math.log(size / kept[-1]) > max(room, 1e-6):
            kept.append(size)
    return kept


def pareto_3d(grid: Grid) -> Figure | None:
    """Draw size, overall accuracy and gap, a panel per model; what nothing surpasses in all three stands out.

    None where no choice has all its values.
    """
    found = _by_model(grid)
    if not found:
        return None
    look = markers(methods_of(grid))
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = new_figure(1.9 + 4.6 * columns, 0.3 + 4.0 * lines)
    panels = []
    for number, (model, own) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(lines, columns, number, projection="3d")
        _deep_panel(axes, own, look)
        axes.set_title(short(model), fontsize=10)
        panels.append(axes)
    legend_outside(figure, panels)
    return figure


def _deep_panel(axes: Any, own: Sequence[Place], look: Mapping[str, str]) -> None:
    """Size is drawn as its logarithm, because three-dimensional axes have no logarithmic scale that holds its grid."""
    kept = front_3d(own)
    floor = 100 * max(place.gap for place in own) + 1
    for place, best in zip(own, kept, strict=True):
        x, y, z = math.log10(place.packed_mb), 100 * place.overall, 100 * place.gap
        axes.plot([x, x], [y, y], [z, floor], color=FRONT if best else "#d8d8d8", linewidth=0.8, zorder=1)
        axes.scatter([x], [y], [z], marker=look[place.method], s=58 if best else 26, depthshade=False,
                     color="#D55E00" if best else "#ffffff", edgecolors=EDGE, linewidths=0.7)  # fmt: skip
    for name in dict.fromkeys(base_of(place.method) for place in own):
        axes.scatter([], [], [], marker=look[name], color="#ffffff", edgecolors=EDGE, linewidths=0.7,
                     label=short(name))  # fmt: skip
    axes.scatter([], [], [], marker="o", s=58, color="#D55E00", edgecolors=EDGE, linewidths=0.7,
                 label="not surpassed in all three")  # fmt: skip
    sizes = _spread(sorted({place.packed_mb for place in own}))[:5]
    axes.set_xticks([math.log10(size) for size in sizes], labels=[three_digits(size) for size in sizes])
    axes.set_zlim(floor, max(0.0, 100 * min(place.gap for place in own) - 1))  # small gaps on top: up is better
    axes.set_xlabel("size (MB)", fontsize=9)
    axes.set_ylabel("overall accuracy (%)", fontsize=9)
    axes.set_zlabel("gap between groups (points)", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect(None, zoom=0.93)
