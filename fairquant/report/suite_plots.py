"""A suite's plots: a radar per method [A: FairQuant, arXiv 2602.23192] and a heat map of methods × groups.

Equal inputs give equal bytes. Radars stand side by side, each method's polygon over the others in grey, because more
than a handful of polygons on one another cannot be told apart. Every axis runs from the lowest to the highest mean
among the methods, both written at the axis, and further out is better on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.report.plots import BEFORE, new_figure, short
from fairquant.report.suite import MEASURES, Suite, group_accuracy, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#c4c4c4"
INNER = 0.15
"""Radius of the lowest mean, so that a polygon keeps an area."""

AXES = {
    "overall_accuracy": "overall\naccuracy",
    "worst_group_accuracy": "worst\ngroup",
    "gap_max_minus_min": "1 − gap",
    "eodd": "1 − EOdd",
    "ratio": "size saved",
}
"""Measure → name of the radar's axis on which more is better."""


def write_plots(suite: Suite, folder: Path) -> dict[str, str]:
    """Write radar.png and heat_map.png into ``folder``; return {file name: what it shows} of those drawn."""
    plots = {
        "radar.png": (radar(suite), "Radar of each method over the others in grey; further out is better"),
        "heat_map.png": (heat_map(suite), "Mean test accuracy of each group after compression"),
    }
    for name, (figure, _) in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=120, metadata={"Software": None})
    return {name: text for name, (figure, text) in plots.items() if figure is not None}


def radar_values(suite: Suite) -> dict[str, dict[str, float]]:
    """Return method → axis → mean in [0, 1] (EOdd: at most 1), more is better; axes some method lacks are left out.

    The gap and EOdd count as 1 − x, compression as the share of bytes saved, 1 − 1 / ratio.
    """
    means = {
        method: {m.key: summarise(suite, method, m).mean for m in MEASURES if m.key in AXES}
        for method in suite.methods
        if suite.of(method)
    }
    shared = [key for key in AXES if means and all(values[key] is not None for values in means.values())]
    return {
        method: {key: _better(key, value) for key in shared if (value := values[key]) is not None}
        for method, values in means.items()
    }


def _better(key: str, value: float) -> float:
    if key == "ratio":
        return 1 - 1 / value
    return 1 - value if key in ("gap_max_minus_min", "eodd") else value


def radar(suite: Suite) -> Figure | None:
    """Draw one radar per method; None with fewer than three axes."""
    values = radar_values(suite)
    axes_names = list(next(iter(values.values()), {}))
    if len(axes_names) < 3:
        return None
    bounds = {key: (min(v[key] for v in values.values()), max(v[key] for v in values.values())) for key in axes_names}
    polygons = {name: [_radius(v[key], bounds[key]) for key in axes_names] for name, v in values.items()}
    columns = min(4, len(polygons))
    rows = math.ceil(len(polygons) / columns)
    figure = new_figure(3.9 * columns, 3.2 * rows)
    for place, name in enumerate(polygons):
        _radar_axes(figure, (rows, columns, place + 1), name, polygons, axes_names, bounds)
    return figure


def _radius(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return 1.0 if high - low < 1e-12 else INNER + (1 - INNER) * (value - low) / (high - low)


def _radar_axes(
    figure: Figure,
    place: tuple[int, int, int],
    name: str,
    polygons: Mapping[str, Sequence[float]],
    names: Sequence[str],
    bounds: Mapping[str, tuple[float, float]],
) -> None:
    """Draw the radar of one method."""
    axes = figure.add_subplot(*place, projection="polar")
    angles = [2 * math.pi * step / len(names) for step in range(len(names))]
    for other, radii in polygons.items():
        if other != name:
            axes.plot([*angles, angles[0]], [*radii, radii[0]], color=GREY, linewidth=0.8, zorder=1)
    own = polygons[name]
    axes.plot([*angles, angles[0]], [*own, own[0]], "o-", color=BEFORE, linewidth=1.8, markersize=4, zorder=3)
    axes.fill([*angles, angles[0]], [*own, own[0]], color=BEFORE, alpha=0.2, zorder=2)
    axes.set(ylim=(0, 1.02), yticks=[INNER, 1.0], yticklabels=[])
    axes.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
    labels = [f"{AXES[key]}\n{100 * bounds[key][0]:.1f}–{100 * bounds[key][1]:.1f} %" for key in names]
    axes.set_xticks(angles, labels=labels, fontsize=7)
    axes.tick_params(axis="x", pad=4)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = round(math.sin(angle), 6)  # angles grow to the left, from the top
        text.set_horizontalalignment("center" if side == 0 else "right" if side > 0 else "left")
    axes.spines["polar"].set_color(GREY)
    axes.set_title(short(name), fontsize=11, fontweight="bold", pad=14)


def heat_map(suite: Suite) -> Figure | None:
    """Draw methods × groups, the mean accuracy in percent in every cell; None without runs."""
    methods = [method for method in suite.methods if suite.of(method)]
    means = [[group_accuracy(suite, method, group).mean for group in suite.groups] for method in methods]
    known = [value for row in means for value in row if value is not None]
    if not known:
        return None
    figure = new_figure(2.6 + 0.95 * len(suite.groups), 1.6 + 0.42 * len(methods))
    axes = figure.add_subplot()
    grid = [[math.nan if value is None else 100 * value for value in row] for row in means]
    low, high = 100 * min(known), 100 * max(known)
    image = axes.imshow(grid, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    _numbers(axes, means, (low + high) / 2)
    names = [short(group, 18) for group in suite.groups]
    axes.set_xticks(range(len(names)), labels=names)
    if max(map(len, names)) > 8:
        axes.tick_params(axis="x", labelrotation=30)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
    axes.set_yticks(range(len(methods)), labels=[short(method) for method in methods])
    figure.colorbar(image, ax=axes, label="test accuracy (%)")
    return figure


def _numbers(axes: Axes, means: Sequence[Sequence[float | None]], middle: float) -> None:
    """Write each mean into its cell, light on dark and dark on light; "–" where there is none."""
    for row, values in enumerate(means):
        for column, value in enumerate(values):
            light = value is not None and 100 * value < middle
            text = "–" if value is None else f"{100 * value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if light else "black")
