"""The group table (accuracy before and after compression, per group) and how tables look as text and markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCURACY_GAPS = {"avg_minus_worst": "accuracy gap, mean − worst", "max_minus_min": "accuracy gap, max − min"}
"""The gaps that stand in the group table, and how they are called."""

HEADER = ("group", "n", "before %", "after %", "change")


@dataclass(frozen=True)
class GroupRow:
    """Accuracy of one group in [0, 1] with the full-precision (before) and the quantized (after) model.

    ``n`` is the number of test samples; an accuracy is None where there is none.
    """

    name: str
    n: int
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        """After minus before."""
        return None if self.before is None or self.after is None else self.after - self.before


def group_rows(evaluate: Mapping[str, Any]) -> list[GroupRow]:
    """Return the rows of metrics/evaluate.json, in its order."""
    return [
        GroupRow(name, int(values["n"]), values["before"], values["after"])
        for name, values in evaluate["group"].items()
    ]


def worst(rows: Sequence[GroupRow], when: str) -> str | None:
    """Return the name of the group with the lowest accuracy ``when`` = before | after; the first of equals.

    >>> worst([GroupRow("a", 5, 0.8, 0.6), GroupRow("b", 5, 0.7, 0.7)], "after")
    'a'
    """
    known = [row for row in rows if getattr(row, when) is not None]
    return min(known, key=lambda row: getattr(row, when)).name if known else None


def group_table(evaluate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the group table: header, groups (the worst marked), overall, worst group, accuracy gaps."""
    rows = group_rows(evaluate)
    marks = {"before": worst(rows, "before"), "after": worst(rows, "after")}
    cells: list[tuple[str, ...]] = [HEADER]
    for row in rows:
        when = [name for name, group in marks.items() if group == row.name]
        label = row.name + (f" (worst {' and '.join(when)})" if when else "")
        cells.append((label, str(row.n), percent(row.before), percent(row.after), points(row.change)))
    total = str(sum(row.n for row in rows))
    cells.append(("overall", total, *_pair(evaluate["overall"])))
    cells.append(("worst group", "", *_pair(evaluate["worst_group"])))
    gaps = gap_table(evaluate)[1:]
    return cells + [(name, "", *values) for name, *values in gaps[: len(ACCURACY_GAPS)]]


def gap_table(evaluate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of all gaps between groups, accuracy first; the header alone where none was computed."""
    before, after = (evaluate.get("gap", {}).get(when, {}) for when in ("before", "after"))
    names = [name for name in ACCURACY_GAPS if name in before] + [name for name in before if name not in ACCURACY_GAPS]
    values = [(gap_label(name), *_pair({"before": before[name], "after": after[name]})) for name in names]
    return [("gap between groups", "before %", "after %", "change"), *values]


def gap_label(name: str) -> str:
    """Return how a gap is called in tables and plots.

    >>> gap_label("max_minus_min"), gap_label("equalized_odds")
    ('accuracy gap, max − min', 'equalized odds')
    """
    return ACCURACY_GAPS.get(name, name.replace("_", " "))


def _pair(values: Mapping[str, float | None]) -> tuple[str, str, str]:
    before, after = values["before"], values["after"]
    change = None if before is None or after is None else after - before
    return percent(before), percent(after), points(change)


def percent(value: float | None) -> str:
    """Write a share in [0, 1] as percent; None is "–".

    >>> percent(0.8125), percent(None)
    ('81.2', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Write a difference of shares as percentage points with its sign.

    >>> points(-0.0132), points(-0.0001)
    ('-1.3', '+0.0')
    """
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def as_text(cells: Sequence[Sequence[str]]) -> str:
    """Return aligned plain text: the first column to the left, the others to the right.

    >>> print(as_text([("group", "n"), ("female × <60", "7")]))
    group          n
    female × <60   7
    """
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        lines.append("   ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    return "\n".join(lines)


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    r"""Return a markdown table whose first row is the header; cells may hold any sign.

    >>> print(as_markdown([("group", "n"), ("a|b", "7")]))
    | group | n |
    |:--|--:|
    | a\|b | 7 |
    """
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in cells]
    rule = "|:--|" + "--:|" * (len(cells[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def escape(text: str) -> str:
    """Return ``text`` so that markdown shows it as it is (group names may hold any sign)."""
    for sign in "\\|*_`<>[]$~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
