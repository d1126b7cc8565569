"""Tables for LaTeX: every sign that means something to it is escaped."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fairquant.report.latex import as_latex, escape_latex

CELLS = [("method", "worst %"), ("fq_qat", "81.2 ± 0.6*"), ("a & b\\{x}", "-1.5 ± 0.2"), ("−", "–")]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("fq_qat", r"fq\_qat"),
        ("50 % & more", r"50 \% \& more"),
        ("$x^2$ #1 ~", r"\$x\textasciicircum{}2\$ \#1 \textasciitilde{}"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        ("female × <60", r"female $\times$ \textless{}60"),
        ("81.2 ± 0.6", r"81.2 $\pm$ 0.6"),
        ("two\nlines", "two lines"),
        ("Größe 肤色", "Größe 肤色"),
    ],
)
def test_escaping(text, written):
    assert escape_latex(text) == written


def test_no_sign_of_latex_is_left_bare():
    """What stands after escaping are known commands, maths signs of ours and plain text."""
    text = "".join(map(chr, range(32, 127)))
    rest = re.sub(r"\\(?:text[a-z]+\{\}|[{}$&#%_])", "", escape_latex(text))
    assert not re.search(r"[\\{}$&#%_~^]", rest)


def test_a_sign_before_a_number_is_a_minus():
    lines = as_latex(CELLS, caption="", label="x").splitlines()
    assert r"    a \& b\textbackslash{}\{x\} & $-$1.5 $\pm$ 0.2 \\" in lines
    assert r"    $-$ & -- \\" in lines


@pytest.mark.parametrize("name", ["[0, 18)", "*unknown"])
def test_a_name_is_not_read_as_an_argument_of_the_line_end(name):
    table = as_latex([("group", "n"), ("a", "1"), (name, "2")], caption="c", label="l")
    assert f"    {{}}{name} & 2" in table.splitlines()[9]


def test_table_has_booktabs_rules_and_as_many_columns_as_the_header():
    text = as_latex(CELLS, caption="50 % of it", label="tab:x")
    assert r"\begin{tabular}{lr}" in text
    assert r"\caption{50 \% of it}" in text
    assert r"\label{tab:x}" in text
    assert [line.strip() for line in text.splitlines() if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1] * len(CELLS)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_accepts_it(tmp_path):
    table = as_latex(CELLS, caption="50 % _", label="tab:x")
    (tmp_path / "x.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + table + "\n\\end{document}\n"
    )
    subprocess.run(["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
