"""What post-processing does to the classifier before and after its quantization, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairquant.report.cells import percent
from fairquant.report.details import shown_names
from fairquant.report.tables import gap_label

Cells = list[tuple[str, ...]]

HEADER = ("group", "full precision %", "full precision, mitigated %", "quantized %", "quantized, mitigated %")
SHOWN = ("max_minus_min", "dp_difference", "equalized_odds")
"""The gaps of the table; metrics/evaluate.json holds them all."""

MEANING = (
    "Decisions by group, the weights as they are; fitted on the validation split, measured on the test split. Where "
    "decisions are drawn by lot these are the values to be expected."
)


def mitigation_tables(evaluate: Mapping[str, Any]) -> dict[str, Cells]:
    """Return {method: cells} of metrics/evaluate.json: accuracies and gaps of both classifiers, plain and mitigated.

    Nothing where evaluate.postprocess is empty.
    """
    return {name: _table(evaluate, found) for name, found in evaluate.get("postprocess", {}).items()}


def _table(evaluate: Mapping[str, Any], found: Mapping[str, Any]) -> Cells:
    rows: Cells = [HEADER]
    for group in shown_names(evaluate, evaluate["group"]):
        plain = evaluate["group"][group]
        accuracies = {when: found[when]["group"][group]["accuracy"] for when in ("before", "after")}
        rows.append((group, *_cells(plain, accuracies)))
    for label, key in (("overall", "overall"), ("worst group", "worst_group")):
        rows.append((label, *_cells(evaluate[key], {when: found[when][key] for when in ("before", "after")})))
    plain_gaps = evaluate.get("gap", {}).get("before", {})
    for name in (name for name in SHOWN if name in plain_gaps):
        plain = {when: evaluate["gap"][when][name] for when in ("before", "after")}
        rows.append((gap_label(name), *_cells(plain, {when: found[when]["gap"][name] for when in plain})))
    return rows


def _cells(plain: Mapping[str, float | None], mitigated: Mapping[str, float | None]) -> tuple[str, ...]:
    return tuple(percent(values[when]) for when in ("before", "after") for values in (plain, mitigated))
