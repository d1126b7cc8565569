"""Everything that is written of an analysis: figures, analysis.md, analysis.tex and csv files with all digits.

Equal rows give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairquant.artifacts import CsvWriter, write_text
from fairquant.importance.maps import ImportanceMaps
from fairquant.predictions import Predictions
from fairquant.report.analysis import JOIN, Grid, by_model, widths_of
from fairquant.report.analysis_bars import group_bars
from fairquant.report.analysis_heat import FULL, PANELS, heat_map, heat_values
from fairquant.report.analysis_pareto import front_rows, pareto_2d, pareto_3d
from fairquant.report.analysis_sensitivity import sensitivities, sensitivity_map, sensitivity_rows
from fairquant.report.analysis_tests import (
    COMPRESSION,
    Part,
    Point,
    discordance_rows,
    discordance_table,
    discordances,
    suites,
)
from fairquant.report.cells import as_markdown, percent
from fairquant.report.curves import CurveRow, bits_text
from fairquant.report.latex import as_latex
from fairquant.report.plots import save_figures
from fairquant.report.suite import LEVEL, Comparison, Suite, compare
from fairquant.report.suite_tables import (
    caption,
    comparison_note,
    comparison_rows,
    comparison_table,
    group_table,
    main_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cells = list[tuple[str, ...]]
Found = Mapping[Part, tuple[Suite, list[Comparison]]]
"""Model, width and methods → suite and tests."""

NOTE = (
    "On the test split, mean ± sample standard deviation over seeds. MB are real packed bytes / 10^6. The csv files "
    "beside this page hold all digits."
)
SAMPLES_NOTE = (
    "McNemar's exact test on the same test samples, group by group and seed by seed, between each method and "
    "{reference}, and between what is mitigated and the same without, Holm-corrected over the groups and methods of "
    "one model, width and seed: in how many of these tests the method is significantly worse or better (corrected p < "
    f"{LEVEL}), and the smallest corrected p."
)


def write_analysis(
    rows: Sequence[CurveRow],
    folder: Path,
    *,
    order: Sequence[str],
    reference: str,
    maps: Sequence[tuple[str, ImportanceMaps]] = (),
    predictions: Mapping[Point, Predictions] | None = None,
) -> None:
    """Write all there is to say about ``rows`` into ``folder``.

    Args:
        rows: measured points; at least one.
        folder: made where it is not there.
        order: of the methods.
        reference: the method the others are tested against.
        maps: (model, importance), one per seed; none leaves out the layers' sensitivity.
        predictions: of points; without them samples are not tested.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = by_model(rows, order)
    found = {place: (suite, compare(suite)) for place, suite in suites(grid, reference=reference).items()}
    sensitivity = sensitivities(maps)
    samples = discordances(predictions or {}, reference=reference)
    plots = save_figures(_figures(grid), folder)
    plots |= save_figures(
        {
            f"sensitivity_{slug(model)}.png": (
                sensitivity_map(item, model),
                f"{model}: share of each group's importance in each layer",
            )
            for model, item in sensitivity.items()
        },
        folder,
    )
    write_text(folder / "heat.csv", as_csv(_heat_rows(grid)))
    write_text(folder / "pareto.csv", as_csv(front_rows(grid)))
    write_text(folder / "tests.csv", as_csv(_test_rows(found)))
    if sensitivity:
        write_text(folder / "sensitivity.csv", as_csv(sensitivity_rows(sensitivity)))
    if samples:
        write_text(folder / "mcnemar.csv", as_csv(discordance_rows(samples)))
    table = discordance_table(samples) if samples else []
    note = SAMPLES_NOTE.format(reference=reference)
    write_text(folder / "analysis.md", _markdown(grid, found, plots, table, note))
    write_text(folder / "analysis.tex", _latex(grid, found, table, note))


def slug(text: str) -> str:
    """Return ``text`` as part of a file's name.

    >>> slug("vit/tiny 4.5")
    'vit_tiny_4_5'
    """
    return re.sub("[^A-Za-z0-9]+", "_", text).strip("_")


def _figures(grid: Grid) -> dict[str, tuple[Figure | None, str]]:
    made: dict[str, tuple[Figure | None, str]] = {}
    for bits in widths_of(grid):
        made[f"heat_{slug(f'{bits:g}')}bit.png"] = (heat_map(grid, bits), f"Models and methods at {bits_text(bits)}")
    made["pareto_2d.png"] = (pareto_2d(grid), "Size and accuracy; colour is the worst group")
    made["pareto_3d.png"] = (pareto_3d(grid), "Size, accuracy and gap between groups")
    for model, curves in grid.items():
        for bits in widths_of({model: curves}):
            made[f"groups_{slug(model)}_{slug(f'{bits:g}')}bit.png"] = (
                group_bars(curves, model, bits),
                f"{model}, {bits_text(bits)}: accuracy of each group before and after",
            )
    return made


def heat_table(grid: Grid, bits: float) -> Cells:
    """Return the cells behind the heat map: method × (measure, model), in percent."""
    head = [f"{title.partition(' (')[0]}, {model}" for _, _, title, _ in PANELS for model in grid]
    parts = [heat_values(grid, bits, measure, before) for measure, before, _, _ in PANELS]
    names = parts[0][0]
    rows = [[value for _, cells in parts for value in cells[line]] for line in range(len(names))]
    return [("method", *head), *((name, *map(percent, row)) for name, row in zip(names, rows, strict=True))]


def _heat_rows(grid: Grid) -> list[list[object]]:
    rows: list[list[object]] = [["bits", "measure", "model", "method", "mean"]]
    for bits in widths_of(grid):
        for measure, before, _, _ in PANELS:
            names, cells = heat_values(grid, bits, measure, before)
            for name, values in zip(names, cells, strict=True):
                rows += [[bits, measure, model, name, value] for model, value in zip(grid, values, strict=True)]
    return rows


def _test_rows(found: Found) -> list[list[object]]:
    rows: list[list[object]] = []
    for (model, bits, _), (suite, comparisons) in found.items():
        head, *own = comparison_rows(suite, comparisons)
        rows = rows or [["model", "bits", *head]]
        rows += [[model, bits, *row] for row in own]
    return rows


def _markdown(grid: Grid, found: Found, plots: Mapping[str, str], samples: Cells, note: str) -> str:
    parts = ["# Analysis", NOTE]
    for bits in widths_of(grid):
        parts += [f"## {bits_text(bits)}", f"First row: {FULL}. In percent; the gap in points."]
        parts.append(as_markdown(heat_table(grid, bits)))
        for place, (suite, comparisons) in found.items():
            if place[1] == bits:
                parts += [f"### {_title(place)}", as_markdown(main_table(suite, comparisons))]
                parts += [caption(suite, comparisons), as_markdown(group_table(suite))]
                parts.append(comparison_note(suite, comparisons))
                parts += [as_markdown(comparison_table(suite, comparisons))] if comparisons else []
    if samples:
        parts += ["## Tests over samples", note, as_markdown(samples)]
    return "\n\n".join([*parts, *(f"![{text}]({name})" for name, text in plots.items())]) + "\n"


def _title(place: Part) -> str:
    model, bits, part = place
    return f"{model}, {bits_text(bits)}" + ("" if part == COMPRESSION else f", mitigated: {part.removesuffix(JOIN)}")


def _latex(grid: Grid, found: Found, samples: Cells, note: str) -> str:
    tables = []
    for bits in widths_of(grid):
        text = f"Models and methods at {bits_text(bits)}: test accuracy and gap in percent, mean over seeds."
        tables.append(as_latex(heat_table(grid, bits), caption=text, label=f"tab:grid-{slug(f'{bits:g}')}"))
    for place, (suite, comparisons) in found.items():
        label, text = "-".join(slug(f"{part}") for part in place), f"{_title(place)}. "
        about = text + caption(suite, comparisons)
        tables.append(as_latex(main_table(suite, comparisons), caption=about, label=f"tab:methods-{label}"))
        if comparisons:
            about = text + comparison_note(suite, comparisons)
            tables.append(as_latex(comparison_table(suite, comparisons), caption=about, label=f"tab:tests-{label}"))
    if samples:
        tables.append(as_latex(samples, caption=note, label="tab:samples"))
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables]) + "\n"


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Return csv; None is an empty field, numbers have all their digits."""
    out = io.StringIO()
    CsvWriter(out).writerows(rows)
    return out.getvalue()
