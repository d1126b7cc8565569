"""Write the whole report folder: all of it or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairquant.artifacts import atomic_path
from fairquant.report.cells import as_lines, as_markdown, as_text, escape
from fairquant.report.classic import classic_files, flatten, text
from fairquant.report.complete import classes_csv, groups_csv
from fairquant.report.details import audit_tables, changed_widths, gate_table, harmed_line, loss_table, width_table
from fairquant.report.export_section import export_latex, exported
from fairquant.report.inputs import ReportInputs
from fairquant.report.latex import as_latex
from fairquant.report.mitigation import MEANING, mitigation_tables
from fairquant.report.model_card import model_card
from fairquant.report.page import as_page
from fairquant.report.plots import write_plots
from fairquant.report.shown import MOST
from fairquant.report.tables import gap_table, group_table, shown_rule, table_notes
from fairquant.report.widths import choice, costly_layers, group_losses
from fairquant.report.widths_plots import write_width_plots

HEADLINES = ("seed", "reducer", "importance_metric", "allocator", "granularity", "quant_mode", "precision", "debug")
"""The scalars people sweep; the report names them first."""
OTHER_FILES = ("groups.csv", "classes.csv", "group_table.tex", "export_table.tex", "model_card.md")


def write_report(inputs: ReportInputs, folder: str | Path = "report") -> None:
    """Write report.md and .html, model_card.md, the tables, the plots and the classic files into ``folder``."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        plots, width_plots = write_plots(inputs, partial), write_width_plots(inputs, partial)
        files = {
            **classic_files(inputs),
            "report.md": report_page(inputs, plots, width_plots),
            "model_card.md": model_card(inputs),
            "groups.csv": groups_csv(inputs.metrics["evaluate"]),
            "classes.csv": classes_csv(inputs.metrics),
            "group_table.txt": group_text(inputs),
            "group_table.md": group_markdown(inputs),
            "group_table.tex": group_latex(inputs),
            "export_table.tex": export_latex(inputs.metrics["export"]),
        }
        articles = {name: files[name] for name in ("report.md", "model_card.md")}
        files["report.html"] = as_page(articles, title=inputs.title, folder=partial)
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8")


def made_by(inputs: ReportInputs) -> str:
    """Return the swept scalars on one line."""
    return ", ".join(f"{name} {text(inputs.params[name])}" for name in HEADLINES)


def notes(inputs: ReportInputs) -> list[str]:
    """Return what the group table's numbers mean, a sentence each."""
    return table_notes(inputs.metrics["evaluate"], inputs.params["evaluate"])


def group_text(inputs: ReportInputs) -> str:
    """Return the group table as aligned text, at most 120 columns wide; accuracies are of the test split."""
    evaluate = inputs.metrics["evaluate"]
    gates = gate_table(evaluate)
    parts = [
        as_lines([f"{inputs.title}: test accuracy per group before and after compression"]),
        as_text(group_table(evaluate)),
        as_lines(notes(inputs)),
        as_lines([harmed_line(evaluate)]),
        as_text(gates) if gates else "",
        as_lines([sizes(inputs)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_markdown(inputs: ReportInputs) -> str:
    """Return the group table as markdown, for a pull request's comment."""
    evaluate = inputs.metrics["evaluate"]
    gates = gate_table(evaluate)
    parts = [
        as_markdown(group_table(evaluate)),
        escape(harmed_line(evaluate)),
        as_markdown(gates) if gates else "",
        sizes(inputs),
        f"<sub>{escape(' '.join([*notes(inputs), made_by(inputs)]))}</sub>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def group_latex(inputs: ReportInputs) -> str:
    """Return the group table as a LaTeX table for a paper."""
    caption = " ".join(["Test accuracy per group before and after compression.", *notes(inputs)])
    return as_latex(group_table(inputs.metrics["evaluate"]), caption=caption, label="tab:groups") + "\n"


def sizes(inputs: ReportInputs) -> str:
    """Return average bits and size of the quantized model on one line."""
    cost = inputs.metrics["evaluate"]["cost"]
    average = cost["avg_bits"]
    return (
        f"quantized model: {average['by_parameter']:.2f} bits per weight ({average['by_channel']:.2f} per channel), "
        f"{cost['packed_mb']:.3f} MB packed, {cost['ratio']:.1f} times smaller than fp32 ({cost['fp32_mb']:.3f} MB)"
    )


def report_page(inputs: ReportInputs, plots: Mapping[str, str], width_plots: Mapping[str, str]) -> str:
    """Return report.md: group table, plots by link, gaps, further groups, post-processing, widths, files, settings.

    ``plots`` and ``width_plots`` are {file name: what it shows}; the latter stand beside the reasons for the widths.
    """
    parts = [
        f"# {escape(inputs.title)}",
        "Test accuracy of each group with the full-precision (before) and the quantized (after) model; change in "
        "percentage points.",
        *_groups(inputs),
        *_links(plots),
        *_gaps(inputs),
        *_mitigation(inputs),
        *_widths(inputs, width_plots),
        *_size(inputs),
        *exported(inputs.metrics["export"]),
        "## How it was made",
        escape(made_by(inputs)) + ".",
        _value_table("parameter", inputs.params),
        "Other files: " + ", ".join(f"[{name}]({name})" for name in [*classic_files(inputs), *OTHER_FILES]) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(inputs: ReportInputs) -> list[str]:
    evaluate = inputs.metrics["evaluate"]
    gates = gate_table(evaluate)
    return [
        as_markdown(group_table(evaluate)),
        escape(harmed_line(evaluate)),
        "\n".join(f"- {escape(note)}" for note in notes(inputs)),
        *(["## Gates", "In the units of params.yaml.", as_markdown(gates)] if gates else []),
    ]


def _gaps(inputs: ReportInputs) -> list[str]:
    evaluate = inputs.metrics["evaluate"]
    gaps, losses = gap_table(evaluate), loss_table(evaluate)
    parts = ["## Gaps between groups"]
    if len(gaps) > 1:
        parts += ["In percentage points, 0 is equal treatment.", as_markdown(gaps)]
    else:
        parts.append("Not computed (evaluate.parity: false).")
    if losses:
        meaning = "Mean cross-entropy after minus before, nats per sample; φ is the largest difference between groups."
        parts += ["## Excessive loss", meaning, as_markdown(losses)]
    for name, cells in audit_tables(evaluate).items():
        parts += [f"## Groups by {escape(name)}", as_markdown(cells)]
        parts.append(shown_rule(len(evaluate["audit"][name]["group"]), "metrics/evaluate.json holds"))
    return parts


def _mitigation(inputs: ReportInputs) -> list[str]:
    tables = mitigation_tables(inputs.metrics["evaluate"])
    parts = [part for name, cells in tables.items() for part in (f"### {escape(name)}", as_markdown(cells))]
    return ["## Post-processing", MEANING, *parts] if parts else []


def _links(plots: Mapping[str, str]) -> list[str]:
    return [f"![{caption}]({name})" for name, caption in plots.items()]


def _widths(inputs: ReportInputs, plots: Mapping[str, str]) -> list[str]:
    """Return the section on the assigned widths: how they were chosen, and what was predicted of them, if anything."""
    by, groups, layers = inputs.params["importance"]["by"], group_losses(inputs), costly_layers(inputs)
    parts = ["## Why these widths", escape(choice(inputs))]
    if groups:
        parts.append(
            f"What the choice costs each {by}, in nats per sample. Weight: by how much the objective rises with the "
            f"{by}'s loss, 0 where it does not bind. Measured on the validation split, before any fine-tuning."
        )
        parts.append(as_markdown(groups))
        total = len(inputs.metrics["bits"]["predicted"]["weight"])
        if total > MOST:
            parts.append(f"The {MOST} of the largest weight; plots/bits/pareto.csv holds all {total}.")
    if layers:
        parts.append(
            "The layers with the largest predicted losses of the choice, each the sum of the losses by weight; share: "
            "part of that of all layers."
        )
        parts.append(as_markdown(layers))
    return [*parts, *_links(plots)]


def _size(inputs: ReportInputs) -> list[str]:
    bits, quantize, evaluate = (inputs.metrics[name] for name in ("bits", "quantize", "evaluate"))
    return [
        "## Size and bits",
        f"The {sizes(inputs)}.",
        escape(changed_widths(quantize)),
        as_markdown(width_table(bits, quantize, evaluate["cost"])),
        _value_table("quantized model", evaluate["cost"]),
        _value_table("as assigned", {key: bits[key] for key in ("avg_bits", "size", "gbops")}),
    ]


def _value_table(head: str, values: Mapping[str, object]) -> str:
    rows = [(key, text(value)) for key, value in flatten(values)]
    return as_markdown([(head, "value"), *rows]) if rows else ""
