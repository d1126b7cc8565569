"""Budget curves as tables: method × budget, and the change against full precision at each budget.

Every task has its own tables. The interval of the worst group's change is a bootstrap over test samples for one
classifier; its ends are averaged over the seeds, so it says how far one test set decides the number, while ± says how
far the seed does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fairquant.artifacts import CsvWriter, write_text
from fairquant.report.cells import as_markdown, percent, points, with_interval
from fairquant.report.curves import CurveRow
from fairquant.report.curves_duel import duel_table
from fairquant.report.curves_summary import (
    KEPT,
    MEASURES,
    Curves,
    Read,
    Tasks,
    by_task,
    change_rows,
    harmed_text,
    kept,
    summary_rows,
)
from fairquant.report.suite import Summary, two_digits

Cells = list[tuple[str, ...]]

FULL = "full precision"
WORST: tuple[Read, Read] = (MEASURES["worst_group_accuracy"], lambda row: row.test_worst_before)
OVERALL: tuple[Read, Read] = (MEASURES["overall_accuracy"], lambda row: row.test_overall_before)
"""How ``accuracy_table`` reads the accuracy after and before."""
CAPTION = (
    "Mean ± sample standard deviation over seeds, on the test split; (n=…) where a cell has fewer seeds than others. "
    "Columns are budgets in bits per weight, at equal real packed bytes. Worst group, change: from the worst group in "
    "full precision to the worst group after, with the bootstrap interval over test samples (its ends averaged over "
    "seeds) and ± over seeds. Harmed: a significant loss of accuracy (paired test, Holm-corrected), and in how many of "
    f"the runs. Kept: the worst group loses at most {100 * KEPT:g} point on average and no group is harmed in any run. "
    "Against the best: the worst group's accuracy less that of the best rival at that budget, in points; above or "
    "below where it is larger than the intervals of both allow (half-widths in quadrature), else within."
)


def write_tables(
    rows: Sequence[CurveRow],
    folder: Path,
    plots: Mapping[str, str],
    *,
    order: Sequence[str],
    rivals: Sequence[str] = (),
) -> None:
    """Write summary.csv, change.csv and curves.md into ``folder``; ``plots`` (file → caption) are shown in the last.

    Methods that predict losses are held against the best of ``rivals`` at each budget.
    """
    tasks = by_task(rows, order)
    write_text(folder / "summary.csv", _csv(summary_rows(tasks)))
    write_text(folder / "change.csv", _csv(change_rows(tasks)))
    write_text(folder / "curves.md", markdown(tasks, plots, rivals))


def accuracy_table(curves: Curves, after: Read, before: Read) -> Cells:
    """Return method × budget in percent; the first row is full precision, of the same seeds."""
    cells: Cells = [("method", *(f"{budget:g}" for budget in curves.budgets))]
    full = (Summary.of([before(row) for row in curves.at(None, budget)]) for budget in curves.budgets)
    cells.append((FULL, *(summary.text(percent, percent) for summary in full)))
    most = max(len(curves.at(None, budget)) for budget in curves.budgets)
    for method in curves.methods:
        summaries = [curves.summary(method, budget, after) for budget in curves.budgets]
        cells.append((method, *(_cell(summary, percent, most) for summary in summaries)))
    return cells


def size_table(curves: Curves) -> Cells:
    """Return method × budget: real packed megabytes, mean over seeds."""
    cells: Cells = [("method", *(f"{budget:g}" for budget in curves.budgets))]
    for method in curves.methods:
        found = [curves.summary(method, budget, MEASURES["packed_mb"]) for budget in curves.budgets]
        cells.append((method, *("" if item is None else _megabytes(item.mean) for item in found)))
    return cells


def change_table(curves: Curves) -> Cells:
    """Return, for methods that predict losses, the change against full precision at each budget."""
    cells: Cells = [
        ("method", "bits", "MB", "bits got", "overall", "worst group", "gap", "harmed groups", "kept"),
    ]
    for method in curves.predicting:
        for budget in curves.budgets:
            found = curves.at(method, budget)
            if found:
                cells.append((method, f"{budget:g}", *_change_cells(found)))
    return cells


def _change_cells(found: Sequence[CurveRow]) -> tuple[str, ...]:
    mean = {name: Summary.of([read(row) for row in found]) for name, read in MEASURES.items()}
    worst = mean["worst_group_change"]
    ends = {end: mean[f"worst_group_change_{end}"].mean for end in ("low", "high")}
    return (
        _megabytes(mean["packed_mb"].mean),
        two_digits(mean["avg_bits"].mean),
        mean["overall_change"].text(points, percent),
        with_interval(worst.mean, ends, points) + ("" if worst.sd is None else f" ± {percent(worst.sd)}"),
        points(mean["gap_change"].mean),
        harmed_text(found),
        {True: "yes", False: "no", None: "–"}[kept(found)],
    )


def markdown(tasks: Tasks, plots: Mapping[str, str], rivals: Sequence[str] = ()) -> str:
    """Return the page: per task its tables and the plots whose caption begins with the task's name."""
    parts = ["# Budget curves", CAPTION]
    for task, curves in tasks.items():
        parts.append(f"## {task}")
        for tuned, part in curves.items():
            state = "Fine-tuned equally" if tuned else "Without fine-tuning"
            parts += [f"### {state}: worst group's test accuracy (%)", as_markdown(accuracy_table(part, *WORST))]
            parts += [f"### {state}: overall test accuracy (%)", as_markdown(accuracy_table(part, *OVERALL))]
            if part.predicting:
                parts += [f"### {state}: change against full precision (points)", as_markdown(change_table(part))]
            duels = duel_table(part, part.predicting, rivals)
            if len(duels) > 1:
                parts += [f"### {state}: worst group against the best of {', '.join(rivals)}", as_markdown(duels)]
            parts += [f"### {state}: real packed MB", _full_size(part), as_markdown(size_table(part))]
        parts += [f"![{text}]({name})" for name, text in plots.items() if _task_of(text, tasks) == task]
    return "\n\n".join(parts) + "\n"


def _task_of(caption: str, tasks: Iterable[str]) -> str | None:
    """Return the task a caption begins with; of "a" and "a: b" the longer."""
    return max((task for task in tasks if caption.startswith(f"{task}: ")), key=len, default=None)


def _full_size(curves: Curves) -> str:
    return f"Full precision: {_megabytes(Summary.of([row.fp32_mb for row in curves.rows]).mean)} MB."


def _megabytes(value: float | None) -> str:
    """Write megabytes with at least three digits that say something."""
    return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:.2f}"


def _cell(summary: Summary | None, show: Callable[[float | None], str], most: int) -> str:
    if summary is None:
        return ""
    return summary.text(show, show) + (f" (n={summary.n})" if summary.n < most else "")


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    CsvWriter(out).writerows(
        [f"{item:.8g}" if isinstance(item, float) else "" if item is None else item for item in row] for row in rows
    )
    return out.getvalue()
