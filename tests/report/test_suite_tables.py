"""A suite's files: rows, digits, marks, reasons, equal bytes for equal inputs."""

from __future__ import annotations

import csv

import pytest

from fairquant.report.suite import compare
from fairquant.report.suite_tables import comparison_table, group_table, main_table, markdown, write_tables
from tests.report.suites import suite

RUNS = {
    "fp32": [(0, 0.90, 0.80), (1, 0.91, 0.79), (2, 0.89, 0.81)],
    "uniform4_ft": [(0, 0.80, 0.70), (1, 0.80, 0.60), (2, 0.80, 0.65)],
    "fq_qat": [(0, 0.85, 0.771), (1, 0.85, 0.672), (2, 0.85, 0.720)],
    "one": [(0, 0.85, 0.7)],
}
REASON = "reducer: got 'subtractive' with 3 groups; allowed: exactly two groups"


@pytest.fixture
def made():
    return suite(RUNS, reference="uniform4_ft", reasons={"fairquantize": REASON})


def test_main_table(made):
    cells = main_table(made, [])
    assert cells[0][:4] == ("method", "n", "overall %", "worst group %")
    assert cells[1][:4] == ("fp32", "3", "90.0 ± 1.0", "80.0 ± 1.0")
    assert cells[4][:4] == ("one", "1", "85.0", "70.0")
    assert cells[5] == ("fairquantize", "0", *["–"] * 8)
    change = cells[0].index("worst group, change")
    assert cells[2][change] == "-5.0 ± 0.0"


def test_significant_cells_are_marked(made):
    cells = main_table(made, compare(made))
    worst = cells[0].index("worst group %")
    assert cells[3][worst] == "72.1 ± 5.0*"  # differences 7.1, 7.2, 7.0 points: t = 123
    assert cells[2][worst] == "65.0 ± 5.0"
    assert cells[4][worst] == "70.0"


def test_group_table(made):
    assert group_table(made)[:2] == [("method", "female × <60", "50 % & more"), ("fp32", "100.0 ± 3.0", "80.0 ± 1.0")]


def test_comparison_table(made):
    header, fp32, ours, one = comparison_table(made, compare(made))
    assert header[:4] == ("method", "pairs", "overall %", "worst group %")
    assert ours[:2] == ("fq_qat", "3")
    assert ours[3] == "+7.1 (p <0.001)"
    assert one[1:4] == ("1", "+5.0 (p –)", "+0.0 (p –)")
    assert fp32[0] == "fp32"


def test_files_hold_all_digits(made, tmp_path):
    write_tables(made, tmp_path, {"radar.png": "Radar"})
    rows = {path.name: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")}
    worst = next(r for r in rows["summary.csv"] if (r["method"], r["measure"]) == ("fq_qat", "worst_group_accuracy"))
    assert float(worst["mean"]) == pytest.approx((0.771 + 0.672 + 0.72) / 3, rel=1e-15)
    assert len(worst["sd"]) > 10
    assert [r["seed"] for r in rows["runs.csv"] if r["method"] == "fq_qat"] == ["0", "1", "2"]
    assert {r["method"] for r in rows["groups.csv"]} == set(RUNS)
    assert {r["reason"] for r in rows["summary.csv"] if r["method"] == "fairquantize"} == {REASON}
    tested = next(
        r for r in rows["tests.csv"] if (r["method"], r["measure"]) == ("fq_qat", "worst_group_accuracy")
    )  # fmt: skip
    assert float(tested["p"]) <= float(tested["p_holm"]) < 0.001
    assert (tested["n"], tested["reference"]) == ("3", "uniform4_ft")


def test_page_says_what_the_numbers_are(made):
    text = markdown(made, compare(made), {"radar.png": "Radar"})
    assert "- fairquantize: reducer: got 'subtractive' with 3 groups; allowed: exactly two groups" in text
    assert "\\* differs" not in text
    assert "* differs from uniform4_ft (Holm-corrected p < 0.05)." in text
    assert "![Radar](radar.png)" in text
    assert "two-sided paired t-test" in text


def test_page_says_why_nothing_is_tested():
    few = suite({"ref": [(0, 0.8, 0.7)], "a": [(0, 0.8, 0.7)]})
    assert "Nothing is tested: at least 3 seeds needed." in markdown(few, compare(few), {})
    alone = suite({"a": [(0, 0.8, 0.7)]}, reference=None)
    assert "Nothing is tested: the reference method has no runs." in markdown(alone, compare(alone), {})


def test_latex_file(made, tmp_path):
    write_tables(made, tmp_path, {})
    text = (tmp_path / "suite.tex").read_text()
    assert text.count(r"\begin{table}") == 3
    assert r"fq\_qat & 3 & 85.0 $\pm$ 0.0" in text
    assert r"female $\times$ \textless{}60" in text
    assert f"% fairquantize: {REASON}" in text


def test_equal_inputs_give_equal_bytes(made, tmp_path):
    for folder in ("a", "b"):
        write_tables(made, tmp_path / folder, {})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["groups.csv", "runs.csv", "suite.md", "suite.tex", "summary.csv", "tests.csv"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
