"""The files that the published FairQuant code writes (Wørgaard & Selvan 2026, arXiv 2602.23192), with true numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairquant.report.inputs import ReportInputs
from fairquant.report.tables import as_text, group_table


def classic_files(inputs: ReportInputs) -> dict[str, str]:
    """Return {file name: text}."""
    return {
        "fairquant_report.txt": fairquant_report(inputs),
        "bit_distribution.csv": bit_distribution(inputs),
        "size_report.txt": size_report(inputs),
        "bitwidth_percentages.txt": bitwidth_percentages(inputs.metrics["bits"]),
        "training.log": training_log(inputs.logs),
    }


def fairquant_report(inputs: ReportInputs) -> str:
    """Return every parameter and every result, one ``name = value`` a line, and the group table."""
    parts = [inputs.title, "", "Parameters", *(f"  {key} = {text(value)}" for key, value in flatten(inputs.params))]
    for stage, metrics in inputs.metrics.items():
        parts += ["", f"Results of {stage}", *(f"  {key} = {text(value)}" for key, value in flatten(metrics))]
    parts += ["", "Groups", as_text(group_table(inputs.metrics["evaluate"]))]
    return "\n".join(parts) + "\n"


def bit_distribution(inputs: ReportInputs) -> str:
    """Return plots/bits/bit_distribution.csv's rows: per layer, how many units have which width."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(inputs.distribution[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(inputs.distribution)
    return out.getvalue()


def size_report(inputs: ReportInputs) -> str:
    """Return sizes and operation counts: as assigned, and of the quantized model where that was measured."""
    parts = []
    assigned = {key: inputs.metrics["bits"][key] for key in ("avg_bits", "size", "gbops")}
    quantized = inputs.metrics["evaluate"].get("cost", {})
    for heading, values in (("As assigned", assigned), ("Quantized model", quantized)):
        cells = [(heading, "value"), *((key, text(value)) for key, value in flatten(values))]
        parts += [as_text(cells), ""] if values else []
    parts.append("MB = 10^6 bytes; packed = weights + scales + width map + rest; reference = sum of bits / 8 only.")
    return "\n".join(parts) + "\n"


def bitwidth_percentages(bits: Mapping[str, Any]) -> str:
    """Return the share of each width, weighted by out channels and by parameters, and both averages."""
    cells: list[tuple[str, ...]] = [("bit-width", "channels %", "parameters %")]
    for width, share in bits["share"].items():
        cells.append((width, f"{100 * share['channels']:.2f}", f"{100 * share['parameters']:.2f}"))
    average = bits["avg_bits"]
    cells.append(("average bits", f"{average['by_channel']:.3f}", f"{average['by_parameter']:.3f}"))
    return as_text(cells) + "\n"


def training_log(logs: Mapping[str, str]) -> str:
    """Return the stages' training logs one after the other, each under its name."""
    return "\n".join(f"== {stage}\n{log.rstrip()}\n" for stage, log in logs.items())


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings; lists are leaves.

    >>> list(flatten({"a": {"b": 1, "c": [2, 3]}}))
    [('a.b', 1), ('a.c', [2, 3])]
    """
    if not isinstance(values, Mapping):
        yield prefix, values
        return
    for key, value in values.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))


def text(value: Any) -> str:
    """Write a value as YAML would: null, true, false, numbers short.

    >>> text(None), text(True), text(0.5), text([2, 4])
    ('null', 'true', '0.5', '[2, 4]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return str(value)
