"""The report's section on the exported files, as markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairquant.report.cells import as_markdown, escape
from fairquant.report.details import gate_table
from fairquant.report.export_tables import (
    accuracy_cells,
    agreement_cells,
    agreement_line,
    form_line,
    integer_line,
    latency_cells,
    latency_line,
    size_cells,
)
from fairquant.report.latex import as_latex
from fairquant.report.shown import rule

SIZES = "Sizes on disk in MB, 10^6 bytes. Weights are unpacked when a file is loaded: in memory they are not as small."
PARITY = (
    "Test accuracy of the exported files beside the simulation, the model that was evaluated. What is deployed is the "
    "file: its groups are those of the columns to the right."
)
AGREEMENT = (
    "How far the files are from the simulation, on the same images: share of images with the same class, "
    "rounded down, and the largest difference of a logit."
)
GATES = "In the units of params.yaml (export.gates); the worst of all files and runtimes counts."


def exported(export: Mapping[str, Any]) -> list[str]:
    """Return the section's parts in markdown: sizes, form, parity, times, gates."""
    return [
        "## Exported files",
        escape(SIZES),
        as_markdown(size_cells(export)),
        *_sentences(form_line(export)),
        *parity(export),
        *times(export),
        *_table("### Gates of the export", GATES, gate_table(export)),
    ]


def parity(export: Mapping[str, Any]) -> list[str]:
    """Return what the files answer beside what the simulation answers; one sentence where nothing was tried."""
    if not export.get("parity"):
        return _sentences(agreement_line(export))
    total = len(next(iter(export["parity"].values()))["group"])
    return [
        *_table("### Simulation and runtimes", PARITY, accuracy_cells(export)),
        *_sentences(rule(total, "groups", "accuracy", "metrics/export.json")),
        *_table("", AGREEMENT, agreement_cells(export)),
        *_sentences(rule(total, "groups", "agreement", "metrics/export.json")),
        *_sentences(integer_line(export)),
    ]


def times(export: Mapping[str, Any]) -> list[str]:
    """Return how long a forward pass takes, or how to measure it."""
    cells = latency_cells(export)
    return _table("### Latency", latency_line(export), cells) if cells else [latency_line(export)]


def export_latex(export: Mapping[str, Any]) -> str:
    """Return the tables of the section for a paper, those that have rows."""
    tables = (
        (size_cells(export), "Sizes of the exported files.", "tab:export-sizes"),
        (accuracy_cells(export), f"{PARITY} {agreement_line(export)}", "tab:export-accuracy"),
        (agreement_cells(export), f"{AGREEMENT} {integer_line(export)}", "tab:export-agreement"),
        (latency_cells(export), latency_line(export), "tab:export-latency"),
    )
    parts = [as_latex(cells, caption=caption, label=label) for cells, caption, label in tables if cells]
    return "\n\n".join(parts) + "\n"


def _sentences(text: str) -> list[str]:
    return [escape(text)] if text else []


def _table(heading: str, meaning: str, cells: list[tuple[str, ...]]) -> list[str]:
    """Return heading, meaning and table; nothing without cells."""
    return [part for part in (heading, escape(meaning), as_markdown(cells)) if part] if cells else []
