"""Why the layers have their widths, as plots: what each budget costs every group, and which layers a group needs.

Groups differ by colour (after Tol's nine muted ones, "Colour Schemes", SRON technical note EPS/TN/09-002, 2021) and by
marker, so that they can be told apart without colour; maps use cividis and purple to orange, which read the same with
and without red-green vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairquant.report.inputs import ReportInputs, Row, number
from fairquant.report.plots import OTHER, new_figure, save_figures, short
from fairquant.report.widths import CHOSEN, importance_shares, reference_accuracy, weights_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID = "#e5e5e5"
LOSSES = ("predicted", "measured")
FAINTEST = 1e-4
"""Shares of importance below this one are drawn like it."""
NARROWEST, WIDEST = math.log2(1.25), math.log2(8)
"""The colours of the second map end between these ratios: noise is not blown up, one outlier does not hide the rest."""
Look = Mapping[str, Any]
"""Settings of a matplotlib line."""


def write_width_plots(inputs: ReportInputs, folder: Path) -> dict[str, str]:
    """Write the plots of section "Why these widths" into ``folder``; return {file name: what it shows}."""
    groups = list(dict.fromkeys(row["group"] for row in inputs.budget_curve))
    curve = budget_curve(inputs.budget_curve, weights_of(inputs, groups), reference_accuracy(inputs, groups))
    by = inputs.params["importance"]["by"]
    return save_figures(
        {
            "bit_budget_curve.png": (
                curve,
                f"What other budgets would cost each {by} on the validation split, before any fine-tuning",
            ),
            "layer_sensitivity.png": (
                layer_sensitivity(inputs.reasons),
                f"Each layer's share of the importance of all weights to each {by}",
            ),
        },
        folder,
    )


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
    looks = _looks(list(dict.fromkeys(row["group"] for row in rows)), weights)
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
            _line(
                panels["accuracy"], [(row, 100 * v) for row in own if (v := number(row["accuracy"])) is not None], look
            )
            if (full := reference[group]) is not None:
                panels["accuracy"].axhline(100 * full, color=look["color"], linestyle=":", linewidth=0.9, zorder=1)
    _axes_of_values(panels, len(looks))
    _bits_axis([*panels.values()], rows)
    _key(figure, looks, weights, measured=measured, full=measured and any(v is not None for v in reference.values()))
    return figure


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
        axes.set_xticks(ticks, labels=[f"{bits:g}" for bits in ticks])
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
    figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=8)


def layer_sensitivity(reasons: Sequence[Row]) -> Figure:
    """Draw layers × groups: the share of a group's importance, and how that differs from the groups' mean.

    The first layer is on top; the mean width assigned stands to the right. One group differs from no other: then the
    second map is left out.
    """
    groups, shares = importance_shares(reasons)
    both = len(groups) > 1
    side = max(1.6, 0.3 * min(len(groups), 60))
    figure = new_figure(3.9 + side * (2 if both else 1) + (0.9 if both else 0), 2.3 + 0.19 * len(reasons))
    panels: list[Axes] = list(figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False).flat)
    _share_map(figure, panels[0], shares)
    if both:
        _difference_map(figure, panels[1], shares)
    step = -(-len(groups) // 60)
    for axes in panels:
        places = range(0, len(groups), step)
        axes.set_xticks(places, labels=[short(groups[g], 26) for g in places], rotation=90, fontsize=7)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(reasons)), labels=[short(row["layer"], 38) for row in reasons], fontsize=7)
    for height, text in enumerate(["mean bits", *(f"{float(row['bits']):.1f}" for row in reasons)], -1):
        panels[-1].annotate(text, (1, height), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                            va="center", fontsize=7, color=OTHER)  # fmt: skip
    return figure


def _share_map(figure: Figure, axes: Axes, shares: Sequence[Sequence[float | None]]) -> None:
    """Draw shares logarithmically: most layers hold a hundredth of what the first one does."""
    from matplotlib.colors import LogNorm

    values = [[max(share or 0.0, FAINTEST) for share in row] for row in shares]
    least, most = min(map(min, values)), max(map(max, values))
    norm = LogNorm(least, max(most, 10 * least))
    image = axes.imshow(values, aspect="auto", cmap="cividis", norm=norm)
    powers = [10.0**power for power in range(-4, 1) if least <= 10.0**power <= max(most, 10 * least)]
    bar = figure.colorbar(
        image, ax=axes, location="bottom", label="share of the\ngroup's importance (%)", shrink=0.9, pad=0.02
    )
    bar.set_ticks(powers, labels=[f"{100 * power:g}" for power in powers])
    bar.ax.tick_params(labelsize=7)


def _difference_map(figure: Figure, axes: Axes, shares: Sequence[Sequence[float | None]]) -> None:
    """Draw each share against the mean over groups of the layer's shares, as log2 of their ratio."""
    ratios = share_ratios(shares)
    ends = max([abs(ratio) for row in ratios for ratio in row if math.isfinite(ratio)], default=0.0)
    ends = min(max(ends, NARROWEST), WIDEST)
    image = axes.imshow(ratios, aspect="auto", cmap="PuOr_r", vmin=-ends, vmax=ends)
    axes.set_facecolor("#cccccc")
    bar = figure.colorbar(
        image, ax=axes, location="bottom", label="share ÷ mean\nover the groups", shrink=0.9, pad=0.02
    )
    bar.set_ticks([-ends, 0, ends], labels=[f"{2**-ends:.2g}×", "1×", f"{2**ends:.2g}×"])
    bar.ax.tick_params(labelsize=7)


def share_ratios(shares: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """Return log2 of each share over the mean of its row; NaN where there is no share to compare.

    >>> share_ratios([[0.25, 0.5, 0.75], [0.0, None, 0.5]])
    [[-1.0, 0.0, 0.5849625007211562], [nan, nan, 1.0]]
    """
    rows = []
    for row in shares:
        known = [share for share in row if share is not None]
        mean = sum(known) / max(len(known), 1)
        rows.append([math.log2(share / mean) if share else math.nan for share in row])
    return rows
