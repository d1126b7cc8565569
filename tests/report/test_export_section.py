"""The report's section on the exported files."""

from __future__ import annotations

from fairquant.report.export_section import export_latex, exported
from tests.report.conftest import SMALLEST_EXPORT, export_metrics


def headings(parts):
    return [part for part in parts if part.startswith("#")]


def test_everything_measured_has_its_part():
    parts = exported(export_metrics())
    assert headings(parts) == [
        "## Exported files",
        "### Simulation and runtimes",
        "### Latency",
        "### Gates of the export",
    ]
    text = "\n\n".join(parts)
    assert "2 of 3 layers hold integer weights, 1 holds floats. Activations are on fixed 8-bit grids" in text
    assert r"| male\|\$x\_1\$ | 60 | 80.0 | 80.0 | 78.8 | 76.0 |" in text
    assert r"| female × \<60 | 40 | 100.00 | 0 | 99.16 | 0.0312 | 97.50 | 0.25 |" in text
    assert "64 test images: same class on 100.00 %, all logits equal on 98.43 %" in text
    assert "| onnxruntime, quantized | 16 | 50.00 | 100.00 | 6.00 | 4.00 |" in text
    assert "| disagreement | 0.025 | 0.01 | FAILED |" in text


def test_a_run_that_tried_nothing_says_so():
    parts = exported(SMALLEST_EXPORT)
    assert headings(parts) == ["## Exported files"]
    assert parts[-2] == "No exported file was run on the test split (params.yaml: export.formats, export.runtimes)."
    assert parts[-1].startswith(
        "How long a forward pass takes was not measured; `dvc exp run -S export.latency.runs=50`"
    )


def test_latex_has_a_table_for_everything_measured():
    text = export_latex(export_metrics())
    labels = ("sizes", "accuracy", "agreement", "latency")
    assert [text.count(f"\\label{{tab:export-{label}}}") for label in labels] == [1] * 4
    assert r"male\textbar{}\$x\_1\$ & 60 & 80.0" in text
    assert r"max \textbar{}$\Delta$logit\textbar{}" in text
    assert r"$\times$ torch fp32" in text
    assert export_latex(SMALLEST_EXPORT).count(r"\begin{table}") == 1
