"""What the report tells beyond the group table: excessive loss, further groupings, gates, and bit-widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairquant.report.cells import percent
from fairquant.report.shown import MOST, some
from fairquant.report.tables import group_rows, group_table, shown_rows

Cells = list[tuple[str, ...]]


def loss_table(evaluate: Mapping[str, Any]) -> Cells:
    """Return the cells of the excessive loss: mean cross-entropy after minus before, per group shown, and φ.

    φ is the largest difference between two groups. Nothing where it was not measured.
    """
    excessive = evaluate.get("excessive_loss")
    if not excessive:
        return []
    losses = excessive["group"]
    rows = [(name, signed(losses[name])) for name in shown_names(evaluate, losses)]
    return [("group", "excessive loss"), *rows, ("φ, largest difference", signed(excessive["phi"]).lstrip("+"))]


def shown_names(evaluate: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Return those of the groups ``known`` that a table shows: all, of many those of the group table in its order."""
    if len(known) <= MOST:
        return list(known)
    return [row.name for row in shown_rows(group_rows(evaluate)) if row.name in known]


def audit_tables(evaluate: Mapping[str, Any]) -> dict[str, Cells]:
    """Return {grouping: cells of its group table} for the groupings of evaluate.audit, changes with intervals."""
    return {name: group_table(_with_intervals(grouping)) for name, grouping in evaluate.get("audit", {}).items()}


def _with_intervals(grouping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a grouping of ``audit`` in the shape of metrics/evaluate.json: overall left out, intervals by group."""
    intervals = {
        name: {"change": {"low": values["low"], "high": values["high"]}}
        for name, values in grouping["group"].items()
        if "low" in values
    }
    return {**grouping, "interval": {"group": intervals}}


def harmed_line(evaluate: Mapping[str, Any]) -> str:
    """Return one sentence naming the harmed groups; nothing where the change was not tested.

    >>> harmed_line({"harm": {"a": {"harmed": True}, "b": {"harmed": False}}})
    'Harmed by the compression (1 of 2 groups): a.'
    """
    harm = evaluate.get("harm", {})
    harmed = [name for name, values in harm.items() if values["harmed"]]
    if not harm:
        return ""
    if not harmed:
        return f"No group is shown to be harmed by the compression ({len(harm)} tested)."
    return f"Harmed by the compression ({len(harmed)} of {len(harm)} groups): {some(harmed)}."


def gate_table(evaluate: Mapping[str, Any]) -> Cells:
    """Return the cells of the gates that are set, in the units of params.yaml; nothing where none is."""
    gates = evaluate.get("gates", {}).get("gate", {})
    if not gates:
        return []
    rows = [
        (name, plain(gate["value"]), plain(gate["limit"]), "passed" if gate["passed"] else "FAILED")
        for name, gate in gates.items()
    ]
    return [("gate", "value", "at most", "result"), *rows]


def width_table(bits: Mapping[str, Any], quantize: Mapping[str, Any], cost: Mapping[str, Any]) -> Cells:
    """Return the cells of the share of each width in percent, of the finished model and as assigned, and the averages.

    Args:
        bits: metrics/bits.json.
        quantize: metrics/quantize.json.
        cost: the part ``cost`` of metrics/evaluate.json.
    """
    final, assigned = quantize["share"], bits["share"]
    cells: Cells = [("bit-width", "channels %", "parameters %", "assigned channels %", "assigned parameters %")]
    weights = ("channel", "parameter")
    for width in sorted({*final, *assigned}, key=lambda name: int(name.removesuffix("bit"))):
        shares = [share.get(width, {}).get(f"{weight}s", 0.0) for share in (final, assigned) for weight in weights]
        cells.append((width, *(f"{100 * share:.2f}" for share in shares)))
    averages = [average[f"by_{weight}"] for average in (cost["avg_bits"], bits["avg_bits"]) for weight in weights]
    return [*cells, ("average bits", *(f"{average:.3f}" for average in averages))]


def changed_widths(quantize: Mapping[str, Any]) -> str:
    """Return one sentence on assigned and final widths.

    >>> changed_widths({"bits": {"assigned": 5.2, "final": 4.9, "changed": 0.125}})
    'Bits per weight: 5.20 assigned, 4.90 in the finished model; 12.5 % of the units have another width than assigned.'
    """
    bits = quantize["bits"]
    start = f"Bits per weight: {bits['assigned']:.2f} assigned, {bits['final']:.2f} in the finished model; "
    if bits["changed"] == 0:
        return start + "every unit has the width assigned."
    return start + f"{percent(bits['changed'])} % of the units have another width than assigned."


def plain(value: float | None, digits: int = 6) -> str:
    """Write a number short; None is "–".

    >>> plain(0.0125), plain(2), plain(None)
    ('0.0125', '2', '–')
    """
    return "–" if value is None else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """Write a number with its sign and four decimals; None is "–".

    >>> signed(-0.01234), signed(None)
    ('-0.0123', '–')
    """
    return "–" if value is None else f"{round(value, 4) + 0.0:+.4f}"
