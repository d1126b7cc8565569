"""The files that the published FairQuant code writes (Wørgaard & Selvan 2026, arXiv 2602.23192), with true numbers.

Widths are those of the finished model; the assigned ones stand beside them, since some modes change them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairquant.report.cells import as_text
from fairquant.report.details import audit_tables, changed_widths, gate_table, loss_table, width_table
from fairquant.report.export_tables import accuracy_cells, agreement_cells, file_bytes, latency_cells
from fairquant.report.inputs import ReportInputs, Row
from fairquant.report.tables import gap_table, group_table


def classic_files(inputs: ReportInputs) -> dict[str, str]:
    """Return {file name: text}."""
    return {
        "fairquant_report.txt": fairquant_report(inputs),
        "bit_distribution.csv": bit_distribution(inputs.distribution),
        "size_report.txt": size_report(inputs),
        "bitwidth_percentages.txt": bitwidth_percentages(inputs),
        "training.log": training_log(inputs),
    }


def fairquant_report(inputs: ReportInputs) -> str:
    """Return every parameter and every result, one ``name = value`` a line, and the tables."""
    parts = [inputs.title, "", "Parameters", *(f"  {key} = {text(value)}" for key, value in flatten(inputs.params))]
    for stage, metrics in inputs.metrics.items():
        parts += ["", f"Results of {stage}", *(f"  {key} = {text(value)}" for key, value in flatten(metrics))]
    evaluate, export = inputs.metrics["evaluate"], inputs.metrics["export"]
    tables = {
        "Groups (test split)": group_table(evaluate),
        "Gaps between groups": gap_table(evaluate),
        "Excessive loss (nats per sample)": loss_table(evaluate),
        **{f"Groups by {name}": cells for name, cells in audit_tables(evaluate).items()},
        "Gates": gate_table(evaluate),
        "Exported files (test accuracy)": accuracy_cells(export),
        "Exported files (against the simulation)": agreement_cells(export),
        "Exported files (one forward pass)": latency_cells(export),
        "Gates of the export": gate_table(export),
    }
    for heading, cells in tables.items():
        parts += ["", heading, as_text(cells)] if len(cells) > 1 else []
    return "\n".join([*parts, "", "Widths", bitwidth_percentages(inputs).rstrip()]) + "\n"


def bit_distribution(distribution: Mapping[str, Sequence[Row]]) -> str:
    """Return per layer how many units of the finished model have which width.

    The columns of plots/quantize/bit_distribution.csv, and ``assigned_avg_bits``: the layer's mean width as assigned.
    """
    assigned = {row["layer"]: row["avg_bits"] for row in distribution["assigned"]}
    rows = [{**row, "assigned_avg_bits": assigned[row["layer"]]} for row in distribution["final"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def size_report(inputs: ReportInputs) -> str:
    """Return sizes and operation counts of the finished model, beside those of the assigned widths; bytes of files."""
    bits = inputs.metrics["bits"]
    assigned = dict(flatten({**bits["size"], "avg_bits": bits["avg_bits"], "gbops": bits["gbops"]}))
    final = dict(flatten(inputs.metrics["evaluate"]["cost"]))
    cells: list[tuple[str, ...]] = [("", "quantized model", "as assigned")]
    for key in [*final, *(key for key in assigned if key not in final)]:
        cells.append((key, *(text(values[key]) if key in values else "–" for values in (final, assigned))))
    notes = (
        changed_widths(inputs.metrics["quantize"]),
        "MB = 10^6 bytes; packed = weights + scales + width map + rest; reference = sum of bits / 8 only; ratio = fp32 "
        "/ packed.",
    )
    files = file_bytes(inputs.metrics["export"])
    exported = ["", as_text(files)] if len(files) > 1 else []
    return "\n".join([as_text(cells), *exported, "", *notes]) + "\n"


def bitwidth_percentages(inputs: ReportInputs) -> str:
    """Return the share of each width weighted by out channels and by parameters, and both averages."""
    metrics = inputs.metrics
    table = as_text(width_table(metrics["bits"], metrics["quantize"], metrics["evaluate"]["cost"]))
    return f"{table}\n\n{changed_widths(metrics['quantize'])}\n"


def training_log(inputs: ReportInputs) -> str:
    """Return the stages' training logs one after the other, each under its name, and the test result per group."""
    parts = [f"== {stage}\n{log.rstrip()}\n" for stage, log in inputs.logs.items()]
    evaluate = inputs.metrics["evaluate"]
    lines = [
        f"test accuracy: {_before_after(evaluate['overall'])}, worst group: {_before_after(evaluate['worst_group'])}"
    ]
    lines += [f"    {name}: {_before_after(values)}" for name, values in evaluate["group"].items()]
    return "\n".join([*parts, "\n".join(["== evaluate (full precision, then quantized)", *lines]) + "\n"])


def _before_after(values: Mapping[str, float | None]) -> str:
    before, after = ("–" if values[when] is None else f"{values[when]:.4f}" for when in ("before", "after"))
    return f"{before} → {after}"


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings; lists and empty mappings are leaves.

    >>> list(flatten({"a": {"b": 1, "c": [2, 3], "d": {}}}))
    [('a.b', 1), ('a.c', [2, 3]), ('a.d', {})]
    """
    if not isinstance(values, Mapping) or (prefix and not values):
        yield prefix, values
        return
    for key, value in values.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def text(value: Any) -> str:
    """Write a value as YAML would: null, true, false, numbers short.

    >>> text(None), text(True), text(0.5), text([2, 4]), text({})
    ('null', 'true', '0.5', '[2, 4]', '{}')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return str(value)
