"""The budget curve as a plot: what each budget would cost every group, as predicted and as measured.

Groups differ by colour (after Tol's nine muted ones, "Colour Schemes", SRON technical note EPS/TN/09-002, 2021) and by
marker, so that they can be told apart without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fairquant.report.inputs import Row, number
from fairquant.report.plots import OTHER, new_figure, short
from fairquant.report.widths import CHOSEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_LINES = 12
"""Of more groups than can be told apart those of the largest weight are drawn, then of the largest predicted loss."""
GRID = "#e5e5e5"
LOSSES = ("predicted", "measured")

Look = Mapping[str, Any]
"""Settings of a matplotlib line."""


def budget_curve(
    rows: Sequence[Row], weights: Mapping[str, float], reference: Mapping[str, float | None]
) -> Figure | None:
    """Draw the rise of each group's loss, predicted and measured, and its accuracy over average bits.

    Losses are drawn logarithmically; what did not rise has no logarithm and stands below, a row per group.

    Args:
        rows: those of plots/bits/pareto.csv.
        weights: group → its weight in the objective; groups of weight > 0 bind and have thick lines.
        reference: group → full precision's validation accuracy in [0, 1], None where unknown.

    Returns:
        The figure, the lowest axes only where accuracy was measured; None with fewer than two budgets beside the chosen
        one, which are no curve.
    """
    if len({row["budget"] for row in rows} - {CHOSEN}) < 2:
        return None
    looks = _looks(_drawn(rows, weights), weights)
    rows = [row for row in rows if row["group"] in looks]
    measured = any(number(row["accuracy"]) is not None for row in rows)
    falls = any((v := number(row[column])) is not None and v <= 0 for row in rows for column in LOSSES)
    heights = {"loss": 4.2} | ({"fall": 0.3 + 0.11 * len(looks)} if falls else {})
    heights |= {"accuracy": 4.2} if measured else {}
    figure = new_figure(9.5, 0.6 + sum(heights.values()))
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=[*heights.values()])
    panels: dict[str, Axes] = dict(zip(heights, grid.flat, strict=True))
    for place, (group, look) in enumerate(looks.items()):
        own = [row for row in rows if row["group"] == group]
        for column in LOSSES:
            _losses(panels, own, column, place, look)
        if measured:
            known = [(row, 100 * value) for row in own if (value := number(row["accuracy"])) is not None]
            _line(panels["accuracy"], known, look)
            if (full := reference[group]) is not None:
                panels["accuracy"].axhline(100 * full, color=look["color"], linestyle=":", linewidth=0.9, zorder=1)
    _axes_of_values(panels, len(looks))
    _bits_axis([*panels.values()], rows)
    _key(figure, looks, weights, measured=measured, full=measured and any(v is not None for v in reference.values()))
    return figure


def _drawn(rows: Sequence[Row], weights: Mapping[str, float]) -> list[str]:
    """Return the groups to draw, in their order."""
    largest = {row["group"]: 0.0 for row in rows}
    for row in rows:
        largest[row["group"]] = max(largest[row["group"]], number(row["predicted"]) or 0.0)
    ranked = sorted(largest, key=lambda group: (-weights[group], -largest[group]))
    chosen = set(ranked[:MOST_LINES])
    return [group for group in largest if group in chosen]


def _looks(groups: Sequence[str], weights: Mapping[str, float]) -> dict[str, Look]:
    """Return how each group is drawn."""
    return {
        group: {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linewidth": 2.4 if weights[group] > 0 else 1.1,
        }
        for place, group in enumerate(groups)
    }


def _losses(panels: Mapping[str, Axes], own: Sequence[Row], column: str, place: int, look: Look) -> None:
    """Draw one group's losses above 0 in the upper axes, and marks of the others in the group's row below."""
    extra: Look = {"linestyle": "--", "markerfacecolor": "white"} if column == "predicted" else {}
    known = [(row, value) for row in own if (value := number(row[column])) is not None]
    _line(panels["loss"], [(row, value if value > 0 else math.nan) for row, value in known], {**look, **extra})
    fallen = [(row, float(place)) for row, value in known if value <= 0]
    if fallen:
        _line(panels["fall"], fallen, {**look, **extra, "linestyle": ""})


def _line(axes: Axes, points: Sequence[tuple[Row, float]], look: Look) -> None:
    """Join one group's values of the budgets, narrowest first; that of the chosen widths stands alone and larger."""
    chosen, others = ([(float(row["avg_bits"]), value) for row, value in points if (row["budget"] == CHOSEN) == which]
                      for which in (True, False))  # fmt: skip
    if others:
        axes.plot(*zip(*sorted(others), strict=True), markersize=4.5, zorder=3, **look)
    if chosen:
        axes.plot(*zip(*chosen, strict=True), zorder=4, **{**look, "linestyle": "", "markersize": 8})


def _axes_of_values(panels: Mapping[str, Axes], groups: int) -> None:
    panels["loss"].set_yscale("log")
    panels["loss"].set_ylabel("rise of a group's cross-entropy\n(nats per sample, logarithmic)")
    if "fall" in panels:
        panels["fall"].set(ylim=(groups - 0.3, -0.7), yticks=[])
        panels["fall"].set_ylabel("did not\nrise", rotation=0, ha="right", va="center")
    if "accuracy" in panels:
        panels["accuracy"].set_ylabel("validation accuracy (%)")


def _bits_axis(panels: Sequence[Axes], rows: Sequence[Row]) -> None:
    """Scale average bits logarithmically where all are above 0, with ticks at the budgets; mark the chosen one."""
    from matplotlib.ticker import NullLocator

    budgets = {row["budget"]: float(row["avg_bits"]) for row in rows}
    chosen = budgets.pop(CHOSEN, None)
    ticks = sorted({round(bits, 2) for bits in budgets.values()})
    for axes in panels:
        if min([*budgets.values(), *([] if chosen is None else [chosen])]) > 0:
            axes.set_xscale("log")
        axes.set_xticks(ticks, labels=[f"{bits:g}" for bits in ticks], rotation=90 if len(ticks) > 14 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
        if chosen is not None:
            axes.axvline(chosen, color=OTHER, linewidth=6, alpha=0.15, zorder=0)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if chosen is not None:
        panels[0].annotate(f"chosen: {chosen:.2f} bits", (chosen, 1), (0, 3), xycoords=("data", "axes fraction"),
                           textcoords="offset points", ha="center", fontsize=8, color=OTHER)  # fmt: skip
    panels[-1].set_xlabel("average bits per weight" + (", logarithmic" if panels[-1].get_xscale() == "log" else ""))


def _key(
    figure: Figure, looks: Mapping[str, Look], weights: Mapping[str, float], *, measured: bool, full: bool
) -> None:
    """Put the legend to the right: the groups, then what the kinds of lines mean."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], markersize=5, label=short(group) + (" (binds)" if weights[group] > 0 else ""), **look)
        for group, look in looks.items()
    ]
    kinds: dict[str, Look] = {" ": {"linestyle": ""}}
    kinds["predicted"] = {"linestyle": "--", "marker": "o", "markerfacecolor": "white"}
    kinds |= {"measured": {"marker": "o"}} if measured else {}
    kinds |= {"full precision": {"linestyle": ":", "linewidth": 0.9}} if full else {}
    lines += [Line2D([], [], color=OTHER, markersize=5, label=label, **kind) for label, kind in kinds.items()]
    columns = -(-len(lines) // int(5 * figure.get_figheight()))  # so many lines of text fit beside the axes
    figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=8, ncols=columns)
