"""The report folder as a whole."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fairquant.report.write import group_latex, group_text, report_page, write_report

FILES = {
    "report.md", "group_table.txt", "group_table.md", "group_table.tex", "accuracy_by_group.png", "gap.png",
    "bits_per_layer.png", "bits_per_layer_assigned.png", "training.png", "fairquant_report.txt",
    "bit_distribution.csv", "size_report.txt", "bitwidth_percentages.txt", "training.log", "layer_sensitivity.png",
    "report.html", "model_card.md", "export_table.tex", "groups.csv", "classes.csv",
}  # fmt: skip


def test_every_file_is_written_and_every_link_leads_somewhere(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    page = (tmp_path / "report/report.md").read_text()
    links = re.findall(r"\]\(([\w.]+)\)", page)
    assert len(links) == 16
    assert set(links) <= FILES


def test_group_table_says_what_it_is(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    table = (tmp_path / "report/group_table.txt").read_text()
    assert table.startswith("FairQuant report: test accuracy per group before and after compression\n")
    assert "female × ≥60 (worst after)" in table
    assert "4.80 bits per weight" in table
    assert "[" not in table
    comment = (tmp_path / "report/group_table.md").read_text()
    assert r"| female × \<60 | 40 | 90.0 | 87.5 | -2.5 |" in comment
    assert r"quant\_mode fair\_static\_qat" in comment


def with_evaluate(inputs, **changes):
    evaluate = {**inputs.metrics["evaluate"], **changes}
    return dataclasses.replace(inputs, metrics={**inputs.metrics, "evaluate": evaluate})


def test_group_text_is_the_table_and_what_it_means(full_inputs):
    gate = {"size_mb": {"value": 1.25, "limit": 1.0, "passed": False}}
    text = group_text(with_evaluate(full_inputs, gates={"passed": False, "gate": gate}))
    assert max(len(line) for line in text.splitlines()) <= 120
    title, table, notes, harm, gates, sizes = text.rstrip().split("\n\n")
    assert len(table.splitlines()) == 8
    assert notes == (
        "[low, high]: 95 % percentile bootstrap interval over the test samples (1000 resamples, the same ones before "
        "and after).\n"
        "p: McNemar test of predictions lost against predictions won, Holm-corrected over the groups; harmed: p below "
        "0.05 and\n  accuracy fell.\n"
        "flips: test samples whose predicted class changed."
    )
    assert harm == "Harmed by the compression (1 of 3 groups): female × ≥60."
    assert gates.splitlines()[1].split() == ["size_mb", "1.25", "1", "FAILED"]
    assert sizes.startswith("quantized model: 4.80 bits per weight (4.50 per channel), 1.250 MB packed")


def test_group_latex_has_intervals_and_words(full_inputs):
    latex = group_latex(full_inputs)
    assert latex.count(r"\begin{table}") == 1
    assert r"female $\times$ \textless{}60 & 40 & 90.0 [86.0, 94.0] & 87.5 [83.5, 91.5]" in latex
    assert r"& 0.023 & harmed \\" in latex
    assert r"95 \% percentile bootstrap" in latex


def test_page_has_a_section_for_everything_measured(full_inputs):
    young = {"n": 8, "before": 0.5, "after": 0.25, "change": -0.25, "low": -0.5, "high": 0.0, "counted": True}
    worst = {"before": 0.5, "after": 0.25, "change": -0.25}
    audit = {"age|group": {"worst_group": worst, "gap": {"before": {}, "after": {}}, "group": {"<60": young}}}
    gates = {"passed": True, "gate": {"size_mb": {"value": 1.25, "limit": 5.0, "passed": True}}}
    page = report_page(with_evaluate(full_inputs, audit=audit, gates=gates), {}, {})
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Gates", "## Gaps between groups", "## Excessive loss", r"## Groups by age\|group", "## Why these widths",
        "## Size and bits", "## Exported files", "## How it was made",
    ]  # fmt: skip
    assert r"| \<60 (worst before and after) | 8 | 50.0 | 25.0 | -25.0 \[-50.0, +0.0\] |" in page
    assert r"| size\_mb | 1.25 | 5 | passed |" in page
    assert "12.5 % of the units have another width than assigned" in page


@pytest.mark.parametrize(
    "empty", [{"interval": {}, "harm": {}, "audit": {}, "gates": {"passed": True, "gate": {}}}, {}]
)
def test_page_of_a_run_without_intervals_tests_audit_and_gates(inputs, empty):
    page = report_page(with_evaluate(inputs, **empty), {}, {})
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Gaps between groups", "## Why these widths", "## Size and bits", "## Exported files", "## How it was made",
    ]  # fmt: skip
    assert "harm" not in page.split("## How it was made")[0]


def test_a_report_is_replaced_and_equal(full_inputs, tmp_path):
    contents = []
    for _ in range(2):
        write_report(full_inputs, tmp_path / "report")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()})
    assert contents[0] == contents[1]


def test_a_failing_report_leaves_the_old_one(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    broken = dataclasses.replace(inputs, layers={"assigned": (), "final": ()})
    with pytest.raises(IndexError):
        write_report(broken, tmp_path / "report")
    assert {path.name for path in tmp_path.iterdir()} >= {"report"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES


def test_page_without_parity_says_so(inputs):
    evaluate = {key: value for key, value in inputs.metrics["evaluate"].items() if key != "gap"}
    page = report_page(dataclasses.replace(inputs, metrics={**inputs.metrics, "evaluate": evaluate}), {}, {})
    assert "Not computed (evaluate.parity: false)." in page
    assert "accuracy gap" not in page


def test_page_without_plots_has_the_tables(inputs):
    page = report_page(inputs, {}, {})
    assert "![" not in page
    assert "| parameter | value |" in page
    assert r"| avg\_bits.by\_parameter | 5.2 |" in page


def section(page, heading):
    return page.split(f"## {heading}\n\n")[1].split("\n\n## ")[0].split("\n\n")


def test_page_of_a_spent_budget_says_why(spent_inputs, tmp_path):
    write_report(spent_inputs, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES | {"bit_budget_curve.png"}
    parts = section((tmp_path / "report/report.md").read_text(), "Why these widths")
    assert parts[0].startswith("Allocator optimal minimised the objective of reducer max")
    assert r"| b\|\$x\$ | 0.250 | 0.0005 | -0.01 | 60.0 | 50.0 |" in parts[2].splitlines()
    assert parts[4].splitlines()[2].startswith("| layer1.0.conv1 | 2304 | 1.50 | 0.000625 |")
    assert [part.split("](")[1] for part in parts[5:]] == ["bit_budget_curve.png)", "layer_sensitivity.png)"]


def test_page_without_a_budget_says_what_ranked_the_units(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    ranked, link = section((tmp_path / "report/report.md").read_text(), "Why these widths")
    assert ranked.startswith("Allocator levels: rank units by importance")
    assert "Importance: grape to each group, reducer balanced." in ranked
    assert "predict" not in ranked + link
    assert link.endswith("(layer_sensitivity.png)")
