"""A suite's tables as csv with all digits, as markdown and as LaTeX."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from fairquant.artifacts import CsvWriter, write_text
from fairquant.report.cells import as_markdown, escape, percent, points, probability
from fairquant.report.latex import as_latex
from fairquant.report.suite import (
    LEVEL,
    MIN_PAIRS,
    Comparison,
    Suite,
    compare,
    group_accuracy,
    measures,
    summarise,
)

Cells = list[tuple[str, ...]]


def write_tables(suite: Suite, folder: Path, plots: dict[str, str]) -> None:
    """Write runs.csv, summary.csv, groups.csv, tests.csv, suite.md and suite.tex into ``folder``."""
    comparisons = compare(suite)
    for name, rows in (
        ("runs.csv", run_rows(suite)),
        ("summary.csv", summary_rows(suite)),
        ("groups.csv", group_rows(suite)),
        ("tests.csv", comparison_rows(suite, comparisons)),
    ):
        write_text(folder / name, _csv(rows))
    write_text(folder / "suite.md", markdown(suite, comparisons, plots))
    write_text(folder / "suite.tex", latex(suite, comparisons))


def main_table(suite: Suite, comparisons: Sequence[Comparison]) -> Cells:
    """Return the cells of the table of methods: mean ± sd per measure, "*" where the test is significant."""
    columns = measures(suite)
    marked = {(c.measure, c.method) for c in comparisons if c.p_holm is not None and c.p_holm < LEVEL}
    cells: Cells = [("method", "n", *(measure.label for measure in columns))]
    for method in suite.methods:
        count = len(suite.of(method))
        summaries = [summarise(suite, method, m) for m in columns]
        texts = (
            (summary if m.tested else summary.visible()).text(m.show, m.spread) + "*" * ((m.key, method) in marked)
            for m, summary in zip(columns, summaries, strict=True)
        )
        cells.append((method, str(count), *texts) if count else (method, "0", *("–" for _ in columns)))
    return cells


def group_table(suite: Suite) -> Cells:
    """Return the cells of accuracy after compression, method × group, in percent."""
    cells: Cells = [("method", *suite.groups)]
    for method in suite.methods:
        if suite.of(method):
            summaries = (group_accuracy(suite, method, group) for group in suite.groups)
            cells.append((method, *(summary.text(percent, percent) for summary in summaries)))
    return cells


def comparison_table(suite: Suite, comparisons: Sequence[Comparison]) -> Cells:
    """Return the cells of the paired tests: mean difference in points and Holm-corrected p, method × measure."""
    found = {(c.method, c.measure): c for c in comparisons}
    columns = [measure for measure in measures(suite) if measure.tested]
    cells: Cells = [("method", "pairs", *(measure.label for measure in columns))]
    for method in dict.fromkeys(c.method for c in comparisons):
        row = [found[method, measure.key] for measure in columns]
        cells.append((method, str(row[0].n), *(f"{points(c.difference)} (p {probability(c.p_holm)})" for c in row)))
    return cells


def markdown(suite: Suite, comparisons: Sequence[Comparison], plots: dict[str, str]) -> str:
    """Return the page with all tables; every plot is shown with its caption."""
    parts = [
        "# Methods compared",
        "\n".join(f"- {label}: {escape(text)}" for label, text in suite.about.items()),
        as_markdown(main_table(suite, comparisons)),
        caption(suite, comparisons),
        _reasons(suite),
        "## Accuracy of each group",
        "Test accuracy after compression in percent, mean ± sd over seeds.",
        as_markdown(group_table(suite)),
        "## Tests",
        comparison_note(suite, comparisons),
        as_markdown(comparison_table(suite, comparisons)) if comparisons else "",
        *(f"![{text}]({name})" for name, text in plots.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def caption(suite: Suite, comparisons: Sequence[Comparison]) -> str:
    """Return what the numbers of the table of methods are."""
    text = (
        "Mean ± sample standard deviation over n seeds, on the test split, after compression. Accuracies and gaps in "
        "percent (0 gap is equal treatment); change of the worst group against the same seed's full-precision "
        "classifier in points; MB are real packed bytes / 10^6."
    )
    tested = any(c.p_holm is not None for c in comparisons)
    return text + (f" * differs from {suite.reference} (Holm-corrected p < {LEVEL})." if tested else "")


def comparison_note(suite: Suite, comparisons: Sequence[Comparison]) -> str:
    """Return what was tested, or why nothing was."""
    if not comparisons:
        return "Nothing is tested: the reference method has no runs."
    if all(c.p_holm is None for c in comparisons):
        return f"Mean difference to {suite.reference} in points. Nothing is tested: at least {MIN_PAIRS} seeds needed."
    return (
        f"Mean difference to {suite.reference} in points over the seeds both have, two-sided paired t-test, p "
        "Holm-corrected across methods within each column."
    )


def _reasons(suite: Suite) -> str:
    lines = [f"- {name}: {escape(suite.reasons[name])}" for name in suite.methods if name in suite.reasons]
    return "Without numbers:\n\n" + "\n".join(lines) if lines else ""


def latex(suite: Suite, comparisons: Sequence[Comparison]) -> str:
    """Return the three tables for a paper; methods without numbers are named in a comment below."""
    tables = [
        as_latex(main_table(suite, comparisons), caption=caption(suite, comparisons), label="tab:methods"),
        as_latex(group_table(suite), caption="Test accuracy of each group after compression, in percent.",
                 label="tab:groups"),
    ]  # fmt: skip
    if comparisons:
        cells = comparison_table(suite, comparisons)
        tables.append(as_latex(cells, caption=comparison_note(suite, comparisons), label="tab:tests"))
    notes = [f"% {name}: {' '.join(suite.reasons[name].split())}" for name in suite.methods if name in suite.reasons]
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables, *notes]) + "\n"


def run_rows(suite: Suite) -> list[list[object]]:
    """Return one row per run with every measure."""
    columns = measures(suite)
    rows: list[list[object]] = [["method", "seed", *(measure.key for measure in columns)]]
    for method in suite.methods:
        rows += [[method, run.seed, *(m.read(run.evaluate) for m in columns)] for run in suite.of(method)]
    return rows


def summary_rows(suite: Suite) -> list[list[object]]:
    """Return one row per method and measure: n, mean, sd, and the reason where there are no runs."""
    rows: list[list[object]] = [["method", "measure", "n", "mean", "sd", "reason"]]
    for method in suite.methods:
        for measure in measures(suite):
            summary = summarise(suite, method, measure)
            rows.append(
                [method, measure.key, summary.n, summary.mean, summary.sd, suite.reasons.get(method)],
            )
    return rows


def group_rows(suite: Suite) -> list[list[object]]:
    """Return one row per method and group: n, mean and sd of the accuracy after compression."""
    rows: list[list[object]] = [["method", "group", "n", "accuracy_mean", "accuracy_sd"]]
    for method in suite.methods:
        for group in suite.groups if suite.of(method) else ():
            summary = group_accuracy(suite, method, group)
            rows.append([method, group, summary.n, summary.mean, summary.sd])
    return rows


def comparison_rows(suite: Suite, comparisons: Sequence[Comparison]) -> list[list[object]]:
    """Return one row per comparison."""
    rows: list[list[object]] = [["measure", "method", "reference", "n", "mean_difference", "t", "p", "p_holm"]]
    for c in comparisons:
        rows.append([c.measure, c.method, suite.reference, c.n, c.difference, c.t, c.p, c.p_holm])
    return rows


def _csv(rows: Sequence[Sequence[object]]) -> str:
    """Return csv; None is an empty field, numbers have all their digits."""
    text = io.StringIO()
    CsvWriter(text).writerows(rows)
    return text.getvalue()
