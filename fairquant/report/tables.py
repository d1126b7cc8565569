"""The group table (accuracy before and after compression, per group, with intervals) and the gaps between groups.

A cell with an interval reads "84.4 [81.0, 87.6]". What was not measured (no resamples, no parity) has no column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairquant.report.cells import percent, points, probability, with_interval, without_empty_columns
from fairquant.report.shown import MOST

ACCURACY_GAPS = {"avg_minus_worst": "accuracy gap, mean − worst", "max_minus_min": "accuracy gap, max − min"}
"""The gaps that stand in the group table, and how they are called."""

HEADER = ("group", "n", "before %", "after %", "change", "flips", "p (Holm)", "harm")


@dataclass(frozen=True)
class GroupRow:
    """Accuracy of one group in [0, 1] with the full-precision (before) and the quantized (after) model.

    ``n`` is the number of test samples; an accuracy is None where there is none. ``harmed`` is None where the change
    was not tested. ``counted`` is False for a group too small to count in worst group and gaps.
    """

    name: str
    n: int
    before: float | None
    after: float | None
    flips: int | None = None
    p_holm: float | None = None
    harmed: bool | None = None
    counted: bool = True

    @property
    def change(self) -> float | None:
        """After minus before."""
        return None if self.before is None or self.after is None else self.after - self.before


def group_rows(evaluate: Mapping[str, Any]) -> list[GroupRow]:
    """Return the rows of metrics/evaluate.json (or of one grouping of its ``audit``), in its order."""
    harm = evaluate.get("harm", {})
    return [
        GroupRow(
            name,
            int(values["n"]),
            values["before"],
            values["after"],
            flips=values.get("flips"),
            p_holm=harm.get(name, {}).get("p_holm"),
            harmed=harm.get(name, {}).get("harmed"),
            counted=values.get("counted", True),
        )
        for name, values in evaluate["group"].items()
    ]


FALLEN = HIGHEST = 10
"""Of more than ``MOST`` groups so many that fell most, and of highest accuracy; the rest has the lowest."""


def shown_rows(rows: Sequence[GroupRow]) -> list[GroupRow]:
    """Return the groups of tables and plots: all in their order, or of more than ``MOST`` those of ``shown_rule``.

    These stand lowest accuracy first. Groups that do not count, or have no samples, are only shown among few.
    """
    if len(rows) <= MOST:
        return list(rows)
    counted = {row.name: row for row in rows if row.counted and row.after is not None}
    ranked = sorted(counted.values(), key=lambda row: row.after or 0.0)
    chosen = {name for when in ("before", "after") if (name := worst(rows, when)) is not None}
    for order, count in (
        (sorted(ranked, key=lambda row: row.change or 0.0), FALLEN),
        (ranked[::-1], HIGHEST),
        (ranked, MOST),
    ):
        others = [row.name for row in order if row.name not in chosen]
        chosen |= set(others[: min(count, MOST - len(chosen))])
    return [row for row in ranked if row.name in chosen]


def shown_rule(total: int, where: str = "groups.csv and metrics/evaluate.json hold") -> str:
    """Return in one sentence which of ``total`` groups are shown; nothing where all are."""
    if total <= MOST:
        return ""
    lowest = MOST - FALLEN - HIGHEST
    return (
        f"Of {total} groups these are the {FALLEN} that fell most, the {HIGHEST} of highest accuracy after compression "
        f"and about {lowest} of lowest, lowest first; {where} all."
    )


def worst(rows: Sequence[GroupRow], when: str) -> str | None:
    """Return the name of the counted group with the lowest accuracy ``when`` = before | after; the first of equals.

    >>> worst([GroupRow("a", 5, 0.8, 0.6), GroupRow("b", 5, 0.7, 0.7)], "after")
    'a'
    """
    known = [row for row in rows if row.counted and getattr(row, when) is not None]
    return min(known, key=lambda row: getattr(row, when)).name if known else None


def group_table(evaluate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the group table: header, groups (the worst marked), overall, worst group, accuracy gaps.

    Of many groups those of ``shown_rule``. Columns in which nothing stands (flips, p, harm where they were not
    measured) are left out.
    """
    every = group_rows(evaluate)
    rows = shown_rows(every)
    interval = evaluate.get("interval", {})
    cells: list[tuple[str, ...]] = [HEADER]
    for row, label in zip(rows, labels(rows), strict=True):
        values = {"before": row.before, "after": row.after, "change": row.change}
        tested = ("" if row.harmed is None else probability(row.p_holm), harm_mark(row.harmed))
        flips = "" if row.flips is None else str(row.flips)
        cells.append((label, str(row.n), *triple(values, interval.get("group", {}).get(row.name)), flips, *tested))
    if "overall" in evaluate:
        total = str(sum(row.n for row in every))
        flips = str(evaluate["flips"]["count"]) if "flips" in evaluate else ""
        cells.append(("overall", total, *triple(evaluate["overall"], interval.get("overall")), flips))
    cells.append(("worst group", "", *triple(evaluate["worst_group"], interval.get("worst_group"))))
    gaps = gap_table(evaluate)[1:]
    cells += [(name, "", *values) for name, *values in gaps if name in ACCURACY_GAPS.values()]
    return without_empty_columns(cells)


def gap_table(evaluate: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of all gaps between groups, accuracy first; the header alone where none was computed."""
    before, after = (evaluate.get("gap", {}).get(when, {}) for when in ("before", "after"))
    interval = evaluate.get("interval", {}).get("gap", {})
    names = [name for name in ACCURACY_GAPS if name in before] + [name for name in before if name not in ACCURACY_GAPS]
    values = [
        (gap_label(name), *triple({"before": before[name], "after": after[name]}, interval.get(name))) for name in names
    ]
    return [("gap between groups", "before %", "after %", "change"), *values]


def gap_label(name: str) -> str:
    """Return how a gap is called in tables and plots.

    >>> gap_label("max_minus_min"), gap_label("equalized_odds")
    ('accuracy gap, max − min', 'equalized odds')
    """
    return ACCURACY_GAPS.get(name, name.replace("_", " "))


def labels(rows: Sequence[GroupRow]) -> list[str]:
    """Return each group's name, with what is special about it in words.

    >>> labels([GroupRow("a", 5, 0.8, 0.6), GroupRow("b", 1, 0.7, 0.5, counted=False)])
    ['a (worst before and after)', 'b (too small to count)']
    """
    marks = {"before": worst(rows, "before"), "after": worst(rows, "after")}
    names = []
    for row in rows:
        when = [name for name, group in marks.items() if group == row.name]
        note = f"worst {' and '.join(when)}" if when else "" if row.counted else "too small to count"
        names.append(f"{row.name} ({note})" if note else row.name)
    return names


def table_notes(evaluate: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kind of number in the group table; ``settings`` is the section evaluate."""
    notes = [line for line in [shown_rule(len(evaluate["group"]))] if line]
    if evaluate.get("interval"):
        bootstrap = settings["bootstrap"]
        notes.append(
            f"[low, high]: {100 * bootstrap['confidence']:g} % percentile bootstrap interval over the test samples "
            f"({bootstrap['resamples']} resamples, the same ones before and after)."
        )
    if evaluate.get("harm"):
        notes.append(
            "p: McNemar test of predictions lost against predictions won, Holm-corrected over the groups; harmed: p "
            f"below {settings['significance']:g} and accuracy fell."
        )
    if any("flips" in values for values in evaluate["group"].values()):
        notes.append("flips: test samples whose predicted class changed.")
    return notes


def triple(values: Mapping[str, float | None], interval: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Return before, after and change as cells, each with its interval where there is one."""
    known = interval or {}
    before, after = values["before"], values["after"]
    change = None if before is None or after is None else after - before
    return (
        with_interval(before, known.get("before"), percent),
        with_interval(after, known.get("after"), percent),
        with_interval(change, known.get("change"), points),
    )


def harm_mark(harmed: bool | None) -> str:
    """Return the word in column "harm"; nothing where it was not tested."""
    return {True: "harmed", False: "no", None: ""}[harmed]
