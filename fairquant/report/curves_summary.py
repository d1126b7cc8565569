"""Budget curves by task, method and budget: mean ± sample standard deviation over seeds, as objects and as csv rows.

A value that is undefined in one run is undefined in the mean (``suite.Summary``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fairquant.report.curves import CurveRow, difference
from fairquant.report.suite import Summary

Read = Callable[[CurveRow], float | None]
Tasks = Mapping[str, Mapping[bool, "Curves"]]
"""Task → (not fine-tuned, fine-tuned) → its rows; what has no rows is left out."""

KEPT = 0.01
"""How much accuracy the worst group may lose and still count as kept: one point."""
MEASURES: Mapping[str, Read] = {
    "worst_group_accuracy": lambda row: row.test_worst_after,
    "overall_accuracy": lambda row: row.test_overall_after,
    "worst_group_change": lambda row: row.worst_change,
    "worst_group_change_low": lambda row: row.worst_change_low,
    "worst_group_change_high": lambda row: row.worst_change_high,
    "overall_change": lambda row: row.overall_change,
    "gap_change": lambda row: row.gap_change,
    "gap_max_minus_min": lambda row: row.test_gap_after,
    "eodd": lambda row: row.test_eodd_after,
    "val_worst_group_accuracy": lambda row: row.val_worst_after,
    "packed_mb": lambda row: row.packed_mb,
    "avg_bits": lambda row: row.avg_bits,
    "harmed_groups": lambda row: float(len(row.harmed)),
    "seconds": lambda row: row.seconds,
}
"""Columns of summary.csv, each with mean and sd."""


class Curves:
    """The rows of one task, tuned or not, by method and budget, seeds ascending."""

    def __init__(self, rows: Iterable[CurveRow], order: Sequence[str] = ()) -> None:
        """Sort ``rows``; methods stand in ``order``, others behind them by name."""
        self.rows = sorted(rows, key=lambda row: row.seed)
        known = {row.method for row in self.rows}
        self.methods = [*(name for name in order if name in known), *sorted(known - set(order))]
        self.budgets = sorted({row.budget for row in self.rows})

    def at(self, method: str | None, budget: float) -> list[CurveRow]:
        """Return the rows of ``method`` at ``budget``, one per seed; None: one row of each seed, of any method."""
        found = [row for row in self.rows if row.budget == budget and method in (None, row.method)]
        return list({row.seed: row for row in found}.values())

    def summary(self, method: str, budget: float, read: Read) -> Summary | None:
        """Return mean and sd over seeds; None where there is no row."""
        found = self.at(method, budget)
        return Summary.of([read(row) for row in found]) if found else None

    @property
    def predicting(self) -> list[str]:
        """The methods whose allocation predicted a loss."""
        return [name for name in self.methods if any(row.predicted for row in self.rows if row.method == name)]


def by_task(rows: Sequence[CurveRow], order: Sequence[str] = ()) -> dict[str, dict[bool, Curves]]:
    """Return task → (not fine-tuned, fine-tuned) → its rows, tasks by name, what has no rows left out."""
    found: dict[str, dict[bool, Curves]] = {}
    for task in sorted({row.task for row in rows}):
        for tuned in (False, True):
            chosen = [row for row in rows if row.task == task and row.tuned == tuned]
            if chosen:
                found.setdefault(task, {})[tuned] = Curves(chosen, order)
    return found


def kept(rows: Sequence[CurveRow]) -> bool | None:
    """Return whether the worst group lost at most a point on average and no group is harmed in any run."""
    mean = Summary.of([row.worst_change for row in rows]).mean
    return None if mean is None else mean >= -KEPT - 1e-9 and not any(row.harmed for row in rows)


def harmed_text(rows: Sequence[CurveRow]) -> str:
    """Return which groups are harmed, and in how many of the runs."""
    counts = Counter(name for row in rows for name in row.harmed)
    if not counts:
        return "none"
    return ", ".join(f"{name} ({count} of {len(rows)})" for name, count in sorted(counts.items()))


def summary_rows(tasks: Tasks) -> list[list[object]]:
    """Return every measure's mean and sd with all digits; empty where undefined."""
    rows: list[list[object]] = [
        ["task", "tuned", "method", "budget", "n", *(f"{name}_{part}" for name in MEASURES for part in ("mean", "sd"))]
    ]
    for task, tuned, curves, method, budget, found in _points(tasks):
        values = [curves.summary(method, budget, read) for read in MEASURES.values()]
        flat = [part for item in values if item is not None for part in (item.mean, item.sd)]
        rows.append([task, str(tuned).lower(), method, budget, len(found), *flat])
    return rows


def change_rows(tasks: Tasks) -> list[list[object]]:
    """Return each group's change of accuracy: mean over seeds, in how many runs it is harmed, predicted, measured."""
    head = ["task", "tuned", "method", "budget", "group", "n", "before", "after", "change", "harmed_runs"]
    rows: list[list[object]] = [[*head, "loss_change_predicted", "loss_change_test", "loss_change_val"]]
    for task, tuned, _, method, budget, found in _points(tasks):
        for group in found[0].test_group_before:
            before, after = (
                Summary.of([getattr(row, f"test_group_{when}").get(group) for row in found]).mean
                for when in ("before", "after")
            )
            harmed = sum(group in row.harmed for row in found)
            losses = [
                Summary.of([getattr(row, name).get(group) for row in found]).mean
                for name in ("predicted", "test_loss_change", "val_loss_change")
            ]
            place = [task, str(tuned).lower(), method, budget, group]
            rows.append([*place, len(found), before, after, difference(before, after), harmed, *losses])
    return rows


def _points(tasks: Tasks) -> Iterator[tuple[str, bool, Curves, str, float, list[CurveRow]]]:
    for task, both in tasks.items():
        for tuned, curves in both.items():
            for method in curves.methods:
                for budget in curves.budgets:
                    found = curves.at(method, budget)
                    if found:
                        yield task, tuned, curves, method, budget, found
