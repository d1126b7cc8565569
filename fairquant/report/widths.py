"""Why the layers have the widths they were assigned: how they were chosen, what that costs each group, and where.

An allocator that spends a budget predicts each group's loss T_g = Σ_u L_g(u, b_u) (``fairquant.assign``) and minimises
an objective of them; its optimum gives each group a weight λ_g, the objective's increase per unit of that group's loss,
and each budget a price, the decrease per unit of the budget. A layer's part in the objective is Σ_g λ_g L_g(layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairquant import plugins
from fairquant.evaluate.summary import metric_keys
from fairquant.report.cells import percent, without_empty_columns
from fairquant.report.classic import text
from fairquant.report.details import Cells, plain
from fairquant.report.inputs import ReportInputs, Row, number
from fairquant.report.shown import MOST

CHOSEN = "chosen"
"""The budget in plots/bits/pareto.csv under which the allocation itself stands."""

SHARE, LOSS, AT = "importance_share:", "loss:", "loss_at_"
"""How the columns of plots/bits/bits.csv begin; a group's name or ``<width>bit`` follows."""

UNITS = {"avg_bits": "bit per weight", "size_mb": "megabyte", "gbops": "billion bit operations"}
NAMED = 5
"""So many binding groups are named in the sentence; all stand in the table."""


def choice(inputs: ReportInputs) -> str:
    """Return how the widths were chosen, in one or two sentences."""
    predicted = inputs.metrics["bits"].get("predicted")
    sentence = _spent(inputs.params, predicted) if predicted else _ranked(inputs.params)
    held = inputs.params["assign"]["protect"]
    if held["layers"]:
        sentence += f" Protected at {held['bits']} bits: {', '.join(held['layers'])}."
    if inputs.metrics["quantize"]["bits"]["changed"]:
        sentence += " This is about the widths as assigned; the finished model has others, see below."
    return sentence


def _spent(params: Mapping[str, Any], predicted: Mapping[str, Any]) -> str:
    limits = [f"{key} {plain(value)}" for key, value in params["budget"].items() if value is not None]
    return (
        f"Allocator {params['allocator']} minimised the objective of reducer {params['reducer']} over the losses that "
        f"{params['importance_metric']} predicts for each {params['importance']['by']}, within "
        f"{' and '.join(limits)}. It reached {plain(predicted['objective'], 3)}, certified to lie at "
        f"most {100 * predicted['gap']:.2g} % above the smallest possible. "
        f"{_binding(predicted['weight'])} {_savings(predicted['price'])}"
    )


def _binding(weights: Mapping[str, float]) -> str:
    """Return which groups bind, the heaviest first.

    >>> _binding({"a": 0.2, "b": 0.0, "c": 0.8})
    'Groups that bind, with their weights: c (0.8), a (0.2).'
    """
    heaviest = sorted((name for name in weights if weights[name] > 0), key=lambda name: -weights[name])
    if not heaviest:
        return "No group binds."
    named = [f"{name} ({plain(weights[name], 3)})" for name in heaviest[:NAMED]]
    rest = [f"and {len(heaviest) - NAMED} more"] if len(heaviest) > NAMED else []
    return f"Groups that bind, with their weights: {', '.join([*named, *rest])}."


def _savings(prices: Mapping[str, float]) -> str:
    """Return what more of each budget would take off the objective.

    >>> _savings({"avg_bits": 0.0001, "gbops": 0.0})
    'At the margin, the objective falls by 0.0001 per further bit per weight (avg_bits) and not at all with more gbops.'
    """
    parts = [
        f"by {plain(price, 3)} per further {UNITS.get(key, 'unit')} ({key})"
        if price > 0
        else f"not at all with more {key}"
        for key, price in prices.items()
    ]
    return f"At the margin, the objective falls {' and '.join(parts)}."


def _ranked(params: Mapping[str, Any]) -> str:
    """Return what an allocator that predicts no loss does, in its own words, and by which settings."""
    name, assign = params["allocator"], params["assign"]
    words, _, _ = (plugins.load("allocator", name).__doc__ or name).strip().partition("\n")
    settings = ", ".join(f"{key} {text(assign[key])}" for key in ("bits", "levels", "level_unit", "uniform_bits"))
    return (
        f"Allocator {words.replace('``', '').rstrip('.')}. Importance: {params['importance_metric']} to each "
        f"{params['importance']['by']}, reducer {params['reducer']}. Settings: {settings}."
    )


def reference_accuracy(inputs: ReportInputs, groups: Sequence[str]) -> dict[str, float | None]:
    """Return full precision's validation accuracy of each of ``groups``, which may be classes; None where unknown."""
    known = inputs.metrics["baseline"].get("val", {}).get(inputs.params["importance"]["by"], {})
    keys = metric_keys(groups)
    return {group: known.get(key, {}).get("accuracy") for group, key in zip(groups, keys, strict=True)}


def weights_of(inputs: ReportInputs, groups: Sequence[str]) -> dict[str, float]:
    """Return each group's weight in the objective; 0 where nothing was predicted."""
    weights = inputs.metrics["bits"].get("predicted", {}).get("weight", {})
    by_key = dict(zip(metric_keys([*weights]), weights.values(), strict=True))
    return {group: by_key.get(key, 0.0) for group, key in zip(groups, metric_keys(groups), strict=True)}


def group_losses(inputs: ReportInputs) -> Cells:
    """Return the cells of what the choice costs each group: predicted, its weight, and measured; nothing without.

    Measured is on the validation split, columns are left out where nothing was. Of many groups the heaviest.
    """
    rows = [row for row in inputs.budget_curve if row["budget"] == CHOSEN]
    if not rows:
        return []
    names = [row["group"] for row in rows]
    weights, before = weights_of(inputs, names), reference_accuracy(inputs, names)
    rows = sorted(rows, key=lambda row: -weights[row["group"]])[:MOST] if len(rows) > MOST else rows
    cells: Cells = [
        ("group", "weight", "predicted loss", "measured increase", "full precision, accuracy %", "accuracy %")
    ]
    for row in rows:
        name, accuracy = row["group"], number(row["accuracy"])
        measured = (percent(before[name]), percent(accuracy)) if row["accuracy"] else ("", "")
        increase = signed_short(number(row["measured"])) if row["measured"] else ""
        cells.append((name, f"{weights[name]:.3f}", plain(number(row["predicted"]), 3), increase, *measured))
    return without_empty_columns(cells)


def signed_short(value: float | None) -> str:
    """Write a number with its sign and three digits; None is "–".

    >>> signed_short(0.01234), signed_short(-0.000048281), signed_short(None)
    ('+0.0123', '-4.83e-05', '–')
    """
    return "–" if value is None else f"{value:+.3g}"


def costly_layers(inputs: ReportInputs, count: int = 10) -> Cells:
    """Return the cells of the ``count`` layers with the largest part in the objective; nothing where none is known.

    Beside each: its average width, its part and share, the group that loses most in it, and its part if all of it had
    the candidate width nearest the model's average.
    """
    groups = _after(inputs.reasons[0], LOSS)
    priced = [row for row in inputs.reasons if groups and row[LOSS + groups[0]]]
    weights = weights_of(inputs, groups)
    parts = {row["layer"]: sum(weights[g] * float(row[LOSS + g]) for g in groups) for row in priced}
    whole = sum(parts.values())
    if whole <= 0:
        return []
    average = inputs.metrics["bits"]["avg_bits"]["by_parameter"]
    widths = sorted(int(name.removesuffix("bit")) for name in _after(priced[0], AT))
    near = min(widths, key=lambda width: abs(width - average))
    cells: Cells = [
        ("layer", "parameters", "bits", "predicted loss", "share %", f"if all at {near} bits", "group losing most")
    ]
    for row in sorted(priced, key=lambda row: -parts[row["layer"]])[:count]:
        part, most = parts[row["layer"]], max(groups, key=lambda group: float(row[LOSS + group]))
        numbers = (plain(part, 3), percent(part / whole), plain(float(row[f"{AT}{near}bit"]), 3))
        cells.append((row["layer"], row["parameters"], f"{float(row['bits']):.2f}", *numbers, most))
    return cells


def _after(row: Row, prefix: str) -> list[str]:
    """Return what follows ``prefix`` in the names of the columns that begin with it, in their order.

    >>> _after({"loss:a": "1", "loss_at_2bit": "3", "loss:b": "2"}, "loss:")
    ['a', 'b']
    """
    return [name.removeprefix(prefix) for name in row if name.startswith(prefix)]


def importance_shares(reasons: Sequence[Row]) -> tuple[list[str], list[list[float | None]]]:
    """Return the groups, and per layer its share of each group's importance, in [0, 1]."""
    groups = _after(reasons[0], SHARE)
    return groups, [[number(row[SHARE + group]) for group in groups] for row in reasons]
