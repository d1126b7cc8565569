"""The report folder as a whole."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fairquant.report.write import report_page, write_report

FILES = {
    "report.md", "group_table.txt", "group_table.md", "accuracy_by_group.png", "gap.png", "bits_per_layer.png",
    "training.png", "fairquant_report.txt", "bit_distribution.csv", "size_report.txt", "bitwidth_percentages.txt",
    "training.log",
}  # fmt: skip


def test_every_file_is_written_and_every_link_leads_somewhere(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    page = (tmp_path / "report/report.md").read_text()
    links = re.findall(r"\]\(([\w.]+)\)", page)
    assert len(links) == 9
    assert set(links) <= FILES


def test_group_table_says_what_it_is(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    table = (tmp_path / "report/group_table.txt").read_text()
    assert table.startswith("FairQuant report: test accuracy per group before and after compression\n")
    assert "female × ≥60 (worst after)" in table
    assert "5.20 bits per weight" in table
    comment = (tmp_path / "report/group_table.md").read_text()
    assert r"| female × \<60 | 40 | 90.0 | 87.5 | -2.5 |" in comment
    assert r"quant\_mode fair\_static\_qat" in comment


def test_a_report_is_replaced_and_equal(inputs, tmp_path):
    contents = []
    for _ in range(2):
        write_report(inputs, tmp_path / "report")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()})
    assert contents[0] == contents[1]


def test_a_failing_report_leaves_the_old_one(inputs, tmp_path):
    write_report(inputs, tmp_path / "report")
    broken = dataclasses.replace(inputs, layers=())
    with pytest.raises(IndexError):
        write_report(broken, tmp_path / "report")
    assert {path.name for path in tmp_path.iterdir()} >= {"report"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES


def test_page_without_parity_says_so(inputs):
    evaluate = {key: value for key, value in inputs.metrics["evaluate"].items() if key != "gap"}
    page = report_page(dataclasses.replace(inputs, metrics={**inputs.metrics, "evaluate": evaluate}), {})
    assert "Not computed (evaluate.parity: false)." in page
    assert "accuracy gap" not in page


def test_page_without_plots_has_the_tables(inputs):
    page = report_page(inputs, {})
    assert "![" not in page
    assert "| parameter | value |" in page
    assert r"| avg\_bits.by\_parameter | 5.2 |" in page
