"""The model card's results: accuracy per group of three models, harm in words, gaps, rates and calibration, gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairquant.report.cells import percent, points, probability, with_interval, without_empty_columns
from fairquant.report.details import Cells, shown_names
from fairquant.report.export_tables import runtime_name
from fairquant.report.inputs import ReportInputs
from fairquant.report.shown import extremes, some
from fairquant.report.tables import group_table

RATES = {"selection_rate": "selected", "tpr": "TPR", "fpr": "FPR"}
SCORES = {"auc": "AUC", "ece": "ECE"}


def card_group_table(evaluate: Mapping[str, Any], export: Mapping[str, Any]) -> Cells:
    """Return the cells of the group table with a column for each runtime; the number of flips is left to the report.

    The packed file has no column where it puts out the very logits of the quantized model.
    """
    (*head,), *rows = group_table(evaluate)
    names = {"before %": "full precision %", "after %": "quantized %"}
    kept = [place for place, name in enumerate(head) if name != "flips"]
    tested = [place for place in kept if head[place] in ("p (Holm)", "harm")]
    shown = [place for place in kept if place not in tested]
    parity = {
        name: values
        for name, values in export.get("parity", {}).items()
        if name != "packed" or values["max_logit_difference"] != 0
    }
    header = [names.get(head[place], head[place]) for place in shown] + [f"{runtime_name(name)} %" for name in parity]
    cells: Cells = [(*header, *(head[place] for place in tested))]
    groups = shown_names(evaluate, evaluate["group"])
    for number, row in enumerate(rows):
        group = groups[number] if number < len(groups) else None
        values = [percent(_runtime(found, row[0], group)) for found in parity.values()]
        cells.append((*(row[place] for place in shown), *values, *(row[place] for place in tested)))
    return cells


TOTALS = {"overall": "overall", "worst group": "worst_group", "accuracy gap, max − min": "gap"}
"""Rows behind the groups, and where a runtime's value stands."""


def _runtime(found: Mapping[str, Any], label: str, group: str | None) -> float | None:
    """Return a runtime's value of a row: of ``group``, or of the total called ``label``; None where there is none."""
    values = found.get(TOTALS.get(label, "")) if group is None else found["group"].get(group)
    return None if values is None else values["runtime"]


def harm_sentences(evaluate: Mapping[str, Any], significance: float) -> list[str]:
    """Return in words which groups the compression harmed significantly, and what cannot be ruled out."""
    harm = evaluate.get("harm", {})
    if not harm:
        return ["Whether the compression harmed a group was not tested."]
    harmed = [(name, values) for name, values in harm.items() if values["harmed"]]
    test = f"McNemar's exact test on the same images, Holm-corrected over {len(harm)} groups"
    if harmed:
        which = some(
            [f"{name} ({points(found['change'])} points, p {probability(found['p_holm'])})" for name, found in harmed],
            "; ",
        )
        return [f"Significantly harmed by the compression at α = {significance:g} ({test}): {which}."]
    sentences = [f"No group is significantly harmed by the compression at α = {significance:g} ({test})."]
    return sentences + [line for line in [_not_ruled_out(evaluate)] if line]


def _not_ruled_out(evaluate: Mapping[str, Any]) -> str:
    """Return the largest loss inside a group's interval of the change; nothing where there is none."""
    intervals = evaluate.get("interval", {}).get("group", {})
    lows = {name: ends["change"]["low"] for name, ends in intervals.items() if ends["change"]["low"] is not None}
    if not lows:
        return ""
    lowest = min(lows, key=lambda name: lows[name])
    if lows[lowest] >= 0:
        return ""
    return (
        f"That is no proof that none is: the intervals of the change reach down to {points(lows[lowest])} points "
        f"({lowest})."
    )


def gap_sentences(evaluate: Mapping[str, Any]) -> list[str]:
    """Return in words what happened to the accuracy gap; that gaps were not computed, where it is so."""
    gap = evaluate.get("gap")
    if not gap:
        return ["Gaps between groups were not computed (evaluate.parity: false)."]
    before, after = (gap[when]["max_minus_min"] for when in ("before", "after"))
    if before is None or after is None:
        return ["The accuracy gap is undefined: fewer than two groups count."]
    ends = evaluate.get("interval", {}).get("gap", {}).get("max_minus_min", {}).get("change")
    word = "wider than" if after > before else "narrower than" if after < before else "as wide as"
    change = with_interval(after - before, ends, points)
    return [
        f"The accuracy gap (max − min) of the quantized model is {word} that of the full-precision one: "
        f"{percent(before)} points before, {percent(after)} after, change {change}."
    ]


def rate_table(evaluate: Mapping[str, Any]) -> Cells:
    """Return the cells of the quantized model's rates and scores per group; columns that are nowhere known left out."""
    rows: Cells = [("group", "n", *(f"{name} %" for name in RATES.values()), *SCORES.values())]
    found = evaluate.get("quantized", {}).get("group", {})
    for group in shown_names(evaluate, found):
        values = found[group]
        rates = [percent(values[key]) if key in values else "" for key in RATES]
        scores = [_score(values[key]) if key in values else "" for key in SCORES]
        rows.append((group, str(values["n"]), *rates, *scores))
    return without_empty_columns(rows) if len(rows) > 1 else [("group",)]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def class_table(inputs: ReportInputs) -> Cells:
    """Return the cells of accuracy per true class, of many the extremes; nothing where it was not measured."""
    before = inputs.metrics["baseline"].get("test", {}).get("class", {})
    after = inputs.metrics["evaluate"].get("quantized", {}).get("class", {})
    known = {name: values["accuracy"] for name, values in after.items() if name in before}
    rows = [
        (name, str(after[name]["n"]), percent(before[name]["accuracy"]), percent(known[name]))
        for name in extremes(known)
    ]
    return [("class", "n", "full precision %", "quantized %"), *rows] if rows else []
