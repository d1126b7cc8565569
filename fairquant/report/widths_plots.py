"""Why the layers have their widths, as plots: the budget curve, and which layers matter to which group.

Maps use cividis and purple to orange, which read the same with and without red-green vision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.report.inputs import ReportInputs, Row
from fairquant.report.plots import OTHER, new_figure, save_figures, short
from fairquant.report.shown import MOST
from fairquant.report.widths import importance_shares, reference_accuracy, weights_of
from fairquant.report.widths_curve import MOST_LINES, budget_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAINTEST = 1e-4
"""Shares of importance below this one are drawn like it."""
NARROWEST, WIDEST = math.log2(1.25), math.log2(8)
"""The colours of the second map end between these ratios: noise is not blown up, one outlier does not hide the rest."""


def write_width_plots(inputs: ReportInputs, folder: Path) -> dict[str, str]:
    """Write the plots of section "Why these widths" into ``folder``; return {file name: what it shows}."""
    groups = list(dict.fromkeys(row["group"] for row in inputs.budget_curve))
    curve = budget_curve(inputs.budget_curve, weights_of(inputs, groups), reference_accuracy(inputs, groups))
    by = inputs.params["importance"]["by"]
    few, many = (f"; {shown}" if len(groups) > limit else "" for limit, shown in (
        (MOST_LINES, f"the {MOST_LINES} of largest weight, then loss, of {len(groups)}"),
        (MOST, f"the {MOST} that differ most from the mean, of {len(groups)}"),
    ))  # fmt: skip
    return save_figures(
        {
            "bit_budget_curve.png": (
                curve,
                f"What other budgets would cost each {by} on the validation split, before any fine-tuning{few}",
            ),
            "layer_sensitivity.png": (
                layer_sensitivity(inputs.reasons),
                f"Each layer's share of the importance of all weights to each {by}{many}",
            ),
        },
        folder,
    )


def layer_sensitivity(reasons: Sequence[Row]) -> Figure:
    """Draw layers × groups: the share of a group's importance, and how that differs from the groups' mean.

    The first layer is on top; the mean width assigned stands to the right. One group differs from no other: then the
    second map is left out. Of many groups those of ``most_different``; the mean is over all.
    """
    groups, shares = importance_shares(reasons)
    ratios, columns = share_ratios(shares), most_different(shares)
    groups = [groups[g] for g in columns]
    shares = [[row[g] for g in columns] for row in shares]
    ratios = [[row[g] for g in columns] for row in ratios]
    both = len(groups) > 1
    side = max(1.6, 0.3 * len(groups))
    figure = new_figure(3.9 + side * (2 if both else 1) + (0.9 if both else 0), 2.3 + 0.19 * len(reasons))
    panels: list[Axes] = list(figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False).flat)
    _share_map(figure, panels[0], shares)
    if both:
        _difference_map(figure, panels[1], ratios)
    for axes in panels:
        axes.set_xticks(range(len(groups)), labels=[short(group, 26) for group in groups], rotation=90, fontsize=7)
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(reasons)), labels=[short(row["layer"], 38) for row in reasons], fontsize=7)
    right = panels[-1]
    for height, row in enumerate(reasons):
        right.annotate(f"{float(row['bits']):.1f}", (1, height), (4, 0), xycoords=("axes fraction", "data"),
                       textcoords="offset points", va="center", fontsize=7, color=OTHER)  # fmt: skip
    right.annotate("mean bits", (1, 1), (4, 4), xycoords="axes fraction", textcoords="offset points", fontsize=7,
                   color=OTHER)  # fmt: skip
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


def _difference_map(figure: Figure, axes: Axes, ratios: Sequence[Sequence[float]]) -> None:
    """Draw each share against the mean over groups of the layer's shares, as log2 of their ratio."""
    ends = max([abs(ratio) for row in ratios for ratio in row if math.isfinite(ratio)], default=0.0)
    ends = min(max(ends, NARROWEST), WIDEST)
    image = axes.imshow(ratios, aspect="auto", cmap="PuOr_r", vmin=-ends, vmax=ends)
    axes.set_facecolor("#cccccc")
    bar = figure.colorbar(
        image, ax=axes, location="bottom", label="share ÷ mean\nover the groups", shrink=0.9, pad=0.02
    )
    bar.set_ticks([-ends, 0, ends], labels=[f"{2**-ends:.2g}×", "1×", f"{2**ends:.2g}×"])
    bar.ax.tick_params(labelsize=7)


def most_different(shares: Sequence[Sequence[float | None]]) -> list[int]:
    """Return the groups to draw: all, or of more than ``MOST`` those whose shares differ most from the groups' mean.

    The difference is summed over the layers; groups stay in their order.
    """
    count = len(shares[0])
    if count <= MOST:
        return list(range(count))
    distance = [0.0] * count
    for row in shares:
        mean = sum(share or 0.0 for share in row) / count
        distance = [total + abs((share or 0.0) - mean) for total, share in zip(distance, row, strict=True)]
    return sorted(sorted(range(count), key=lambda group: -distance[group])[:MOST])


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
