"""The report's plots as PNG files: equal inputs give equal bytes (no date, no software name).

Colours are Okabe and Ito's colour-blind safe ones ("Color Universal Design", 2008) and cividis, which reads the same
with and without red-green vision; every plot can also be read without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairquant.report.inputs import ReportInputs, Row
from fairquant.report.tables import GroupRow, gap_label, group_rows, shown_rows, worst

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER, OTHER = "#0072B2", "#D55E00", "#444444"
BEFORE_LABEL, AFTER_LABEL = "full precision", "quantized"
CURVE_NAMES = {
    "train_loss": "training objective",
    "val_loss": "validation cross-entropy",
    "val_accuracy": "overall",
    "val_worst_group_accuracy": "worst group",
}


def write_plots(inputs: ReportInputs, folder: Path) -> dict[str, str]:
    """Write every plot into ``folder``; return {file name: what it shows}."""
    evaluate = inputs.metrics["evaluate"]
    columns = width_columns(inputs)
    changed = inputs.layers["final"] != inputs.layers["assigned"]
    plots = {
        "accuracy_by_group.png": (accuracy_by_group(evaluate), "Test accuracy of each group before and after"),
        "gap.png": (gaps(evaluate), "Gaps between groups before and after"),
        "bits_per_layer.png": (
            bits_per_layer(inputs.layers["final"], columns),
            "Share of units at each bit-width in the finished model",
        ),
        "bits_per_layer_assigned.png": (
            bits_per_layer(inputs.layers["assigned"], columns) if changed else None,
            "Share of units at each bit-width as assigned, before the widths changed",
        ),
        "training.png": (training(inputs.curves), "Training curves on the training and validation splits"),
    }
    return save_figures(plots, folder)


def save_figures(plots: Mapping[str, tuple[Figure | None, str]], folder: Path) -> dict[str, str]:
    """Write {file name: (figure or None, what it shows)} into ``folder``; return {file name: what it shows}."""
    for name, (figure, _) in plots.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=120, metadata={"Software": None})
    return {name: text for name, (figure, text) in plots.items() if figure is not None}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches that draws without a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def accuracy_by_group(evaluate: Mapping[str, Any]) -> Figure:
    """Draw a dumbbell per group, accuracy in percent before and after, and their intervals as thin bars.

    The worst group after and groups harmed by the compression are named as such. Of many groups those of the table
    (``tables.shown_rule``), and a line says so.
    """
    every = group_rows(evaluate)
    rows, lowest = shown_rows(every), worst(every, "after")
    intervals = evaluate.get("interval", {}).get("group", {})
    figure = new_figure(7.5, 1.7 + (0.46 if intervals else 0.36) * len(rows))
    axes = figure.add_subplot()
    for height, row in enumerate(reversed(rows)):
        if row.before is not None and row.after is not None:
            axes.plot([100 * row.before, 100 * row.after], [height, height], color="#bbbbbb", linewidth=3, zorder=1)
    models = (("before", BEFORE_LABEL, BEFORE, "o", "--", 0.17), ("after", AFTER_LABEL, AFTER, "D", ":", -0.17))
    for key, label, colour, marker, style, shift in models:
        known = [(100 * getattr(row, key), height) for height, row in enumerate(reversed(rows)) if row.n]
        face = "none" if marker == "o" else colour  # a ring stays visible around a diamond at the same place
        axes.scatter([x for x, _ in known], [y for _, y in known], color=colour, facecolors=face, marker=marker,
                     s=80 if marker == "o" else 36, linewidths=1.8, zorder=3, label=label)  # fmt: skip
        ends = {height: intervals.get(row.name, {}).get(key) for height, row in enumerate(reversed(rows))}
        _interval_bars(axes, {height + shift: end for height, end in ends.items()}, colour)
        axes.axvline(100 * evaluate["overall"][key], color=colour, linestyle=style, linewidth=1.2, zorder=0,
                     label=f"overall, {label}")  # fmt: skip
    axes.set_yticks(range(len(rows)), labels=[_group_label(row, lowest) for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    less = f"\n{len(rows)} of {len(every)} groups: lowest, highest, most fallen" if len(rows) < len(every) else ""
    axes.set_xlabel("test accuracy (%)" + ("\nthin bars: bootstrap intervals" if intervals else "") + less)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    _legend_above(figure, axes)
    return figure


def _group_label(row: GroupRow, lowest: str | None) -> str:
    marks = [mark for mark, holds in (("worst", row.name == lowest), ("harmed", row.harmed)) if holds]
    return f"{short(row.name)} (n={row.n})" + (f" ◀ {', '.join(marks)}" if marks else "")


def _interval_bars(axes: Axes, ends: Mapping[float, Mapping[str, float | None] | None], colour: str) -> None:
    """Draw {height: {low, high} as shares} as thin capped bars; an interval need not hold the value it belongs to."""
    for height, interval in ends.items():
        low, high = (None, None) if interval is None else (interval["low"], interval["high"])
        if low is not None and high is not None:
            axes.plot([100 * low, 100 * high], [height, height], "|-", color=colour, linewidth=1.1, markersize=5,
                      zorder=2)  # fmt: skip


def gaps(evaluate: Mapping[str, Any]) -> Figure | None:
    """Draw each gap between groups before and after as bars in percentage points, with intervals.

    None where no gap was computed.
    """
    values = evaluate.get("gap", {})
    names = [name for name in values.get("before", {}) if any(values[when][name] is not None for when in values)]
    if not names:
        return None
    intervals = evaluate.get("interval", {}).get("gap", {})
    figure = new_figure(7.5, 1.4 + 0.6 * len(names))
    axes = figure.add_subplot()
    models = (("before", 0.2, BEFORE_LABEL, BEFORE, ""), ("after", -0.2, AFTER_LABEL, AFTER, "///"))
    for when, offset, label, colour, hatch in models:
        widths = {name: 100 * values[when][name] for name in names if values[when][name] is not None}
        heights = {name: height + offset for height, name in enumerate(reversed(names)) if name in widths}
        axes.barh(list(heights.values()), [widths[name] for name in heights], 0.36, color=colour, hatch=hatch,
                  edgecolor="white", label=label)  # fmt: skip
        ends = {name: intervals.get(name, {}).get(when) for name in names}
        _interval_bars(axes, {height: ends[name] for name, height in heights.items()}, OTHER)
        for name, width in widths.items():
            right = max([width, *(100 * high for high in [(ends[name] or {}).get("high")] if high is not None)])
            axes.annotate(f"{width:.1f}", (right, heights[name]), (4, 0), textcoords="offset points", va="center",
                          fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), labels=[gap_label(name) for name in reversed(names)])
    note = "\nthin bars: bootstrap intervals" if intervals else ""
    axes.set_xlabel(f"gap between groups (percentage points; smaller is fairer){note}")
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    _legend_above(figure, axes)
    return figure


def width_columns(inputs: ReportInputs) -> list[str]:
    """Return the columns ``share_<width>bit`` of both tables of layers, narrowest first."""
    names = {name for rows in inputs.layers.values() for name in rows[0] if name.startswith("share_")}
    return sorted(names, key=lambda name: int(name.removeprefix("share_").removesuffix("bit")))


def bits_per_layer(layers: Sequence[Row], columns: Sequence[str]) -> Figure:
    """Draw one stacked bar per layer, first layer on top: the share of its units at each bit-width, in percent.

    ``columns`` are the widths that may occur: they have the same colours in every plot made with them.
    """
    from matplotlib import colormaps

    figure = new_figure(8.5, 1.7 + 0.19 * len(layers))
    axes = figure.add_subplot()
    heights = list(range(len(layers) - 1, -1, -1))
    left = [0.0] * len(layers)
    for place, column in enumerate(columns):
        shares = [100 * float(row.get(column, 0)) for row in layers]
        colour = colormaps["cividis"](1 - place / max(len(columns) - 1, 1))
        label = column.removeprefix("share_").removesuffix("bit") + " bits"
        axes.barh(heights, shares, 0.85, left=left, color=colour, edgecolor="white", linewidth=0.4, label=label)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    for height, row in zip(heights, layers, strict=True):
        axes.text(101, height, f"{float(row['bits']):.1f}", va="center", fontsize=7, color=OTHER)
    axes.text(101, len(layers) - 0.2, "mean", fontsize=7, color=OTHER)
    axes.set_yticks(heights, labels=[short(row["layer"], 38) for row in layers], fontsize=7)
    axes.set_ylim(-0.6, len(layers) + 0.2)
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("units of the layer at each bit-width (%); right: mean bits")
    _legend_above(figure, axes)
    return figure


def training(curves: Mapping[str, Sequence[Row]]) -> Figure | None:
    """Draw loss and validation accuracy by epoch, a row of axes per stage that trained; None where none did."""
    trained = {stage: rows for stage, rows in curves.items() if rows}
    if not trained:
        return None
    figure = new_figure(9, 0.4 + 2.8 * len(trained))
    grid = figure.subplots(len(trained), 2, squeeze=False)
    for (stage, rows), (loss, accuracy) in zip(trained.items(), grid, strict=True):
        _curves(loss, rows, ("train_loss", "val_loss"), factor=1)
        loss.set(title=f"{stage}: loss", xlabel="epoch", ylabel="loss (nats per sample)")
        _curves(accuracy, rows, ("val_accuracy", "val_worst_group_accuracy"), factor=100)
        accuracy.set(title=f"{stage}: validation accuracy", xlabel="epoch", ylabel="accuracy (%)")
    return figure


def _curves(axes: Axes, rows: Sequence[Row], columns: Sequence[str], *, factor: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for column, colour, style in zip(columns, (BEFORE, AFTER), ("o-", "D--"), strict=True):
        drawn = [(float(row["epoch"]), factor * float(row[column])) for row in rows if row[column]]
        if drawn:
            axes.plot(*zip(*drawn, strict=True), style, color=colour, markersize=4, label=CURVE_NAMES[column])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e5e5e5")
    axes.legend(fontsize=8)


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend outside, above ``axes``, and remove the frame there."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 8), frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def short(text: str, width: int = 32) -> str:
    """Return ``text`` cut in the middle to at most ``width`` signs, with "$" shown as it is.

    >>> short("layer4.1.conv2.parametrizations", 15)
    'layer4.…zations'
    """
    if len(text) > width:
        half = (width - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")
