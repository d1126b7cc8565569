"""The report's tables for programs, with every group and every class, however many the pages show."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fairquant.artifacts import CsvWriter
from fairquant.report.tables import group_rows

GROUP_COLUMNS = (
    "group", "n", "before", "after", "change", "change_low", "change_high", "flips", "p_holm", "harmed", "counted",
    "excessive_loss",
)  # fmt: skip
CLASS_COLUMNS = ("class", "n", "before", "after")


def groups_csv(evaluate: Mapping[str, Any]) -> str:
    """Return a row per group of metrics/evaluate.json; accuracies in [0, 1], cells empty where nothing is known."""
    intervals = evaluate.get("interval", {}).get("group", {})
    losses = evaluate.get("excessive_loss", {}).get("group", {})
    rows = []
    for row in group_rows(evaluate):
        change = intervals.get(row.name, {}).get("change", {})
        ends = (change.get("low"), change.get("high"))
        tested = (row.flips, row.p_holm, row.harmed, row.counted)
        rows.append((row.name, row.n, row.before, row.after, row.change, *ends, *tested, losses.get(row.name)))
    return _csv(GROUP_COLUMNS, rows)


def classes_csv(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row per class: its test images and accuracy in [0, 1] of the full-precision and the quantized model."""
    before = metrics["baseline"].get("test", {}).get("class", {})
    after = metrics["evaluate"].get("quantized", {}).get("class", {})
    known = [name for name in after if name in before]
    return _csv(CLASS_COLUMNS, [(n, after[n]["n"], before[n]["accuracy"], after[n]["accuracy"]) for n in known])


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Write a number short, as metrics files do, and a truth value as they do."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else value
