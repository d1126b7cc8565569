"""The group table, against values worked out by hand."""

from __future__ import annotations

import pytest

from fairquant.report.tables import GroupRow, as_markdown, as_text, escape, gap_table, group_rows, group_table, worst

HAND = [
    ("group", "n", "before %", "after %", "change"),
    ("female × <60", "40", "90.0", "87.5", "-2.5"),
    ("female × ≥60 (worst after)", "20", "85.0", "70.0", "-15.0"),
    ("male|$x_1$ (worst before)", "60", "80.0", "80.0", "+0.0"),
    ("overall", "120", "84.0", "81.0", "-3.0"),
    ("worst group", "", "80.0", "70.0", "-10.0"),
    ("accuracy gap, mean − worst", "", "5.0", "10.0", "+5.0"),
    ("accuracy gap, max − min", "", "10.0", "20.0", "+10.0"),
]


def test_group_table_by_hand(inputs):
    assert group_table(inputs.metrics["evaluate"]) == HAND


def test_all_gaps_by_hand(inputs):
    assert gap_table(inputs.metrics["evaluate"])[1:] == [
        ("accuracy gap, mean − worst", "5.0", "10.0", "+5.0"),
        ("accuracy gap, max − min", "10.0", "20.0", "+10.0"),
        ("eodd", "–", "–", "–"),
    ]


def test_one_group_can_be_worst_twice():
    evaluate = {
        "overall": {"before": 0.5, "after": 0.5},
        "worst_group": {"before": 0.4, "after": 0.4},
        "group": {"a": {"n": 1, "before": 0.4, "after": 0.4}, "b": {"n": 1, "before": 0.6, "after": 0.6}},
    }
    assert [row[0] for row in group_table(evaluate)[1:]] == [
        "a (worst before and after)",
        "b",
        "overall",
        "worst group",
    ]


def test_undefined_is_a_dash_and_never_worst():
    evaluate = {
        "overall": {"before": 1.0, "after": 1.0},
        "worst_group": {"before": 1.0, "after": 1.0},
        "gap": {"before": {"max_minus_min": None}, "after": {"max_minus_min": None}},
        "group": {"a": {"n": 0, "before": None, "after": None}, "b": {"n": 2, "before": 1.0, "after": 1.0}},
    }
    table = group_table(evaluate)
    assert table[1] == ("a", "0", "–", "–", "–")
    assert table[2][0] == "b (worst before and after)"
    assert table[5] == ("accuracy gap, max − min", "", "–", "–", "–")
    assert worst(group_rows(evaluate)[:1], "after") is None


def test_change_is_after_minus_before():
    assert GroupRow("a", 3, 0.5, 0.75).change == pytest.approx(0.25)


def test_columns_line_up():
    lines = as_text(HAND).splitlines()
    assert {len(line) for line in lines} == {max(len(line) for line in lines)}


def test_markdown_has_as_many_cells_in_every_row():
    for line in as_markdown(HAND).splitlines():
        assert line.replace(r"\|", "").count("|") == 6


@pytest.mark.parametrize("sign", list("|*_`<>[]$~\\"))
def test_signs_of_group_names_are_escaped(sign):
    assert escape(f"a{sign}b") == f"a\\{sign}b"


def test_a_name_stays_on_one_line():
    assert escape("a\n b") == "a b"
