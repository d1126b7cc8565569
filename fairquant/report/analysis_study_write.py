"""The per-class study: a figure of accuracy and φ by bits, PTQ and QAT, heat maps of classes and groups, and a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.artifacts import write_text
from fairquant.report.analysis_heat import draw_cells
from fairquant.report.analysis_study import PointSummary, StudyRow, by_point
from fairquant.report.cells import as_markdown, percent
from fairquant.report.curves_style import FULL_COLOUR, GRID, legend_outside
from fairquant.report.plots import AFTER, BEFORE, new_figure, save_figures, short
from fairquant.report.suite import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cells = list[tuple[str, ...]]
Place = tuple[str, str, int]
"""Training set, method, bits."""
LOOKS = {"ptq": (BEFORE, "o"), "qat": (AFTER, "D")}
TITLES = {"ptq": "PTQ", "qat": "QAT"}
NAMES = {"as_is": "training set as it is", "fair": "balanced training set", "unfair": "long-tailed training set"}
KINDS = {"class": "classes", "group": "groups"}
FULL_BITS = 32
LINEAR = 0.01
"""Below it φ is drawn on a linear scale."""
CAPTION = (
    "On the test split, mean ± sample standard deviation over seeds. WbAb: b bits for weights and activations. φ: the "
    "largest difference between two classes (or groups) in what quantization adds to their mean cross-entropy, in "
    "nats; 0 is fair. The balanced and the long-tailed training set have the same size."
)


class Study:
    """The rows of one task by training set, method and bits."""

    def __init__(self, rows: Sequence[StudyRow]) -> None:
        """Summarise every point."""
        self.rows = rows
        self.points = {key: PointSummary.of(found) for key, found in by_point(rows).items()}
        keys = list(self.points)
        self.data = [name for name in NAMES if any(key[1] == name for key in keys)]
        self.methods = [name for name in LOOKS if any(key[3] == name for key in keys)]
        self.bits = sorted({key[4] for key in keys}, reverse=True)

    def summary(self, place: Place, value: str) -> Summary | None:
        """Return mean and sd over seeds of ``value``, a field of ``PointSummary``; None without points."""
        found = [getattr(point, value) for key, point in self.points.items() if (key[1], key[3], key[4]) == place]
        return Summary.of(found) if found else None

    def before(self, data: str, value: str) -> Summary:
        """Return mean and sd of ``value``, …_before, of one classifier per seed."""
        found = {key[2]: getattr(point, value) for key, point in self.points.items() if key[1] == data}
        return Summary.of(list(found.values()))

    def names(self, kind: str) -> list[str]:
        """Return the names of kind ``class`` or ``group``; no groups where the classes are the groups."""
        found = list(dict.fromkeys(row.name for row in self.rows if row.kind == kind))
        return [] if kind == "group" and set(found) == set(self.names("class")) else found

    def accuracy(self, data: str, method: str | None, bits: int, kind: str, name: str) -> float | None:
        """Return the mean accuracy over seeds of a class or group; ``method`` None: in full precision."""
        rows = [row for row in self.rows if (row.data, row.kind, row.name) == (data, kind, name)]
        if method is None:
            return Summary.of(list({row.seed: row.accuracy_before for row in rows}.values())).mean
        return Summary.of([row.accuracy_after for row in rows if (row.method, row.bits) == (method, bits)]).mean


def write_study(rows: Sequence[StudyRow], folder: Path) -> None:
    """Write study.md and its figures into ``folder``; equal rows give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Per-class study", CAPTION]
    tasks = list(dict.fromkeys(row.task for row in rows))
    for number, task in enumerate(tasks, start=1):
        study = Study([row for row in rows if row.task == task])
        stem = f"{number}_{re.sub('[^A-Za-z0-9]+', '_', task).strip('_')}"
        figures = {f"{stem}_phi.png": (phi_figure(study, task), f"{task}: accuracy and φ by bits, PTQ and QAT")}
        for kind, plural in KINDS.items():
            if study.names(kind):
                figures[f"{stem}_{plural}.png"] = accuracy_map(study, task, kind), f"{task}: accuracy of each {kind}"
        plots = save_figures(figures, folder)
        parts += [
            f"## {task}",
            as_markdown(study_table(study)),
            *(f"![{text}]({name})" for name, text in plots.items()),
        ]
    write_text(folder / "study.md", "\n\n".join(parts) + "\n")


def study_table(study: Study) -> Cells:
    """Return training set × method × bits: accuracy, worst class, φ over classes and over groups."""
    cells: Cells = [
        ("training set", "method", "bits", "seeds", "overall %", "worst class %", "φ, classes", "φ, groups")
    ]
    for data in study.data:
        full = [study.before(data, name) for name in ("overall_before", "worst_class_before")]
        shown = [summary.text(percent, percent) for summary in full]
        cells.append((data, "full precision", "32", str(full[0].n), *shown, "", ""))
        for method in study.methods:
            for bits in study.bits:
                cells += _table_row(study, (data, method, bits))
    return cells


def _table_row(study: Study, place: Place) -> Cells:
    found = [study.summary(place, name) for name in ("overall", "worst_class", "phi_class", "phi_group")]
    known = [summary for summary in found if summary is not None]
    if not known:
        return []
    shows = (percent, percent, three_digits, three_digits)
    texts = (summary.text(show, show) for summary, show in zip(known, shows, strict=True))
    data, method, bits = place
    return [(data, TITLES[method], f"W{bits}A{bits}", str(known[0].n), *texts)]


def three_digits(value: float | None) -> str:
    """Write a loss with three digits behind the point.

    >>> three_digits(0.0123), three_digits(None)
    ('0.012', '–')
    """
    return "–" if value is None else f"{value:.3f}"


def phi_figure(study: Study, task: str) -> Figure:
    """Draw accuracy (overall, and worst class dashed) above φ, by bits; a column per training set.

    φ is over classes, and dashed over groups where these are not the classes.
    """
    figure = new_figure(2.3 + 3.4 * len(study.data), 6.0)
    panels = figure.subplots(2, len(study.data), squeeze=False, sharex=True, sharey="row")
    for column, data in zip(panels.T, study.data, strict=True):
        upper, lower = column
        for method in study.methods:
            _curve(upper, study, data, method, "overall", label=f"{TITLES[method]}, overall")
            _curve(upper, study, data, method, "worst_class", label=f"{TITLES[method]}, worst class", hollow=True)
            _curve(lower, study, data, method, "phi_class", label=f"{TITLES[method]}, φ of classes", factor=1.0)
            if study.names("group"):
                label = f"{TITLES[method]}, φ of groups"
                _curve(lower, study, data, method, "phi_group", label=label, factor=1.0, hollow=True)
        for name, style in (("overall", ":"), ("worst_class", "-.")):
            full = study.before(data, f"{name}_before").mean
            if full is not None:
                label = f"full precision, {name.replace('_', ' ')}"
                upper.axhline(100 * full, color=FULL_COLOUR, linestyle=style, linewidth=1.2, label=label, zorder=1)
        upper.set_title(NAMES[data], fontsize=10)
        lower.set_xticks(range(len(study.bits)), labels=[f"W{b}A{b}" for b in study.bits], fontsize=8)
        for axes in column:
            axes.grid(color=GRID)
            axes.set_axisbelow(True)
            axes.margins(x=0.08)
            axes.tick_params(axis="y", labelsize=8)
    panels[0][0].set_ylabel("test accuracy (%)", fontsize=9)
    panels[1][0].set_yscale("symlog", linthresh=LINEAR)  # φ runs from 0 over several powers of ten
    panels[1][0].set_ylim(0, 1.5 * panels[1][0].get_ylim()[1])
    panels[1][0].set_ylabel(f"φ (nats, logarithmic above {LINEAR:g};\n0 is fair)", fontsize=9)
    figure.suptitle(short(task, 80), fontsize=11)
    legend_outside(figure, list(panels.flat))
    return figure


def _curve(
    axes: Axes,
    study: Study,
    data: str,
    method: str,
    value: str,
    *,
    label: str,
    factor: float = 100.0,
    hollow: bool = False,
) -> None:
    colour, marker = LOOKS[method]
    found: Mapping[int, Summary | None] = {
        place: study.summary((data, method, bits), value) for place, bits in enumerate(study.bits)
    }
    known = {place: item for place, item in found.items() if item is not None and item.mean is not None}
    if known:
        y = [factor * float(item.mean or 0.0) for item in known.values()]
        sd = [factor * (item.sd or 0.0) for item in known.values()]
        axes.errorbar(list(known), y, yerr=sd if any(sd) else None, color=colour, marker=marker, markersize=5,
                      linestyle="--" if hollow else "-", markerfacecolor="white" if hollow else colour, linewidth=1.4,
                      elinewidth=0.8, label=label, zorder=3)  # fmt: skip


def accuracy_map(study: Study, task: str, kind: str) -> Figure:
    """Draw accuracies in percent, class or group × (full precision, method at bits), a panel per training set."""
    members = study.names(kind)
    columns = [(None, FULL_BITS), *((method, bits) for method in study.methods for bits in study.bits)]
    figure = new_figure(1.6 + (0.5 + 0.52 * len(columns)) * len(study.data), 1.9 + 0.3 * len(members))
    panels = figure.subplots(1, len(study.data), squeeze=False, sharey=True)[0]
    grids = {
        data: [[study.accuracy(data, method, bits, kind, name) for method, bits in columns] for name in members]
        for data in study.data
    }
    known = [value for grid in grids.values() for row in grid for value in row if value is not None]
    bounds = (min(known), max(known)) if known else (0.0, 1.0)
    for axes, (data, grid) in zip(panels, grids.items(), strict=True):
        draw_cells(axes, grid, colours="cividis", bounds=bounds)
        names = ["full precision" if method is None else f"{TITLES[method]} W{bits}A{bits}" for method, bits in columns]
        axes.set_xticks(range(len(names)), labels=names, rotation=50, ha="right", fontsize=8)
        axes.set_title(NAMES[data], fontsize=10)
        axes.tick_params(length=0)
        for place in range(len(study.methods)):
            axes.axvline(0.5 + place * len(study.bits), color="white", linewidth=2.5)
    panels[0].set_yticks(range(len(members)), labels=[short(name, 24) for name in members], fontsize=8)
    figure.suptitle(f"{short(task, 70)}: accuracy of each {kind} (%)", fontsize=11)
    return figure
