"""Write the whole report folder: all of it or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairquant.artifacts import atomic_path
from fairquant.report.classic import classic_files, flatten, text
from fairquant.report.inputs import ReportInputs
from fairquant.report.plots import write_plots
from fairquant.report.tables import as_markdown, as_text, escape, gap_table, group_table

HEADLINES = ("seed", "reducer", "importance_metric", "allocator", "granularity", "quant_mode", "precision", "debug")
"""The scalars people sweep; the report names them first."""


def write_report(inputs: ReportInputs, folder: str | Path = "report") -> None:
    """Write report.md, group_table.txt, group_table.md, the plots and the classic files into ``folder``."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        plots = write_plots(inputs, partial)
        files = {
            **classic_files(inputs),
            "report.md": report_page(inputs, plots),
            "group_table.txt": group_text(inputs),
            "group_table.md": group_markdown(inputs),
        }
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8")


def made_by(inputs: ReportInputs) -> str:
    """Return the swept scalars on one line."""
    return ", ".join(f"{name} {text(inputs.params[name])}" for name in HEADLINES)


def group_text(inputs: ReportInputs) -> str:
    """Return the group table as aligned text; accuracies are of the test split."""
    table = as_text(group_table(inputs.metrics["evaluate"]))
    return f"{inputs.title}: test accuracy per group before and after compression\n\n{table}\n\n{sizes(inputs)}\n"


def group_markdown(inputs: ReportInputs) -> str:
    """Return the group table as markdown, for a pull request's comment."""
    table = as_markdown(group_table(inputs.metrics["evaluate"]))
    return f"{table}\n\n{sizes(inputs)}\n\n<sub>{escape(made_by(inputs))}</sub>\n"


def sizes(inputs: ReportInputs) -> str:
    """Return average bits and size of the quantized model on one line."""
    cost = inputs.metrics["evaluate"]["cost"]
    average = cost["avg_bits"]
    return (
        f"quantized model: {average['by_parameter']:.2f} bits per weight ({average['by_channel']:.2f} per channel), "
        f"{cost['packed_mb']:.3f} MB packed, {cost['ratio']:.1f} times smaller than fp32 ({cost['fp32_mb']:.3f} MB)"
    )


def report_page(inputs: ReportInputs, plots: Mapping[str, str]) -> str:
    """Return report.md: the group table, plots by link, sizes, and how it was made."""
    gaps = gap_table(inputs.metrics["evaluate"])
    parts = [
        f"# {escape(inputs.title)}",
        "Test accuracy of each group with the full-precision (before) and the quantized (after) model; change in "
        "percentage points.",
        as_markdown(group_table(inputs.metrics["evaluate"])),
        *(f"![{caption}]({name})" for name, caption in plots.items()),
        "## Gaps between groups",
        "In percentage points, 0 is equal treatment." if len(gaps) > 1 else "Not computed (evaluate.parity: false).",
        as_markdown(gaps) if len(gaps) > 1 else "",
        "## Size and bits",
        f"The {sizes(inputs)}.",
        _value_table("as assigned", {key: inputs.metrics["bits"][key] for key in ("avg_bits", "size", "gbops")}),
        _value_table("quantized model", inputs.metrics["evaluate"]["cost"]),
        "## How it was made",
        escape(made_by(inputs)) + ".",
        _value_table("parameter", inputs.params),
        "Other files: " + ", ".join(f"[{name}]({name})" for name in classic_files(inputs)) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _value_table(head: str, values: Mapping[str, object]) -> str:
    rows = [(key, text(value)) for key, value in flatten(values)]
    return as_markdown([(head, "value"), *rows]) if rows else ""
