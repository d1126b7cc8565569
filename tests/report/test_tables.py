"""The group table, against values worked out by hand."""

from __future__ import annotations

import pytest

from fairquant.report.cells import as_lines, as_markdown, as_text, escape
from fairquant.report.shown import MOST
from fairquant.report.tables import (
    GroupRow,
    gap_table,
    group_rows,
    group_table,
    shown_rows,
    shown_rule,
    table_notes,
    worst,
)

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


FULL = [
    ("group", "n", "before %", "after %", "change", "flips", "p (Holm)", "harm"),
    ("female × <60", "40", "90.0 [86.0, 94.0]", "87.5 [83.5, 91.5]", "-2.5 [-7.5, +2.5]", "1", "1.000", "no"),
    ("female × ≥60 (worst after)", "20", "85.0 [81.0, 89.0]", "70.0 [66.0, 74.0]", "-15.0 [-20.0, -10.0]", "3",
     "0.023", "harmed"),
    ("male|$x_1$ (worst before)", "60", "80.0 [76.0, 84.0]", "80.0 [76.0, 84.0]", "+0.0 [-5.0, +5.0]", "2", "1.000",
     "no"),
    ("overall", "120", "84.0 [80.0, 88.0]", "81.0 [77.0, 85.0]", "-3.0 [-8.0, +2.0]", "6", "", ""),
    ("worst group", "", "80.0 [76.0, 84.0]", "70.0 [66.0, 74.0]", "-10.0 [-15.0, -5.0]", "", "", ""),
    ("accuracy gap, mean − worst", "", "5.0 [1.0, 9.0]", "10.0 [6.0, 14.0]", "+5.0 [+0.0, +10.0]", "", "", ""),
    ("accuracy gap, max − min", "", "10.0 [6.0, 14.0]", "20.0 [16.0, 24.0]", "+10.0 [+5.0, +15.0]", "", "", ""),
]  # fmt: skip


def test_group_table_with_intervals_and_tests_by_hand(full_inputs):
    assert group_table(full_inputs.metrics["evaluate"]) == FULL


def test_notes_say_what_the_numbers_are(inputs, full_inputs):
    settings = {"bootstrap": {"confidence": 0.9, "resamples": 500}, "significance": 0.01}
    notes = table_notes(full_inputs.metrics["evaluate"], settings)
    assert [note.split(":")[0] for note in notes] == ["[low, high]", "p", "flips"]
    assert "90 % percentile bootstrap interval" in notes[0]
    assert "(500 resamples" in notes[0]
    assert "p below 0.01" in notes[1]
    assert table_notes(inputs.metrics["evaluate"], settings) == []


@pytest.mark.parametrize("key", ["interval", "harm", "gap", "excessive_loss", "flips"])
@pytest.mark.parametrize("empty", [True, False])
def test_what_was_not_measured_is_left_out(full_inputs, key, empty):
    evaluate = {name: value for name, value in full_inputs.metrics["evaluate"].items() if name != key}
    if empty and key != "flips":
        evaluate[key] = {}
    table = group_table(evaluate)
    assert len({len(row) for row in table}) == 1
    assert any("[" in cell for row in table for cell in row) == (key != "interval")
    assert ("harm" in table[0]) == (key != "harm")
    assert ("accuracy gap" in str(table)) == (key != "gap")


def test_a_group_too_small_to_count_is_never_worst():
    evaluate = {
        "overall": {"before": 0.5, "after": 0.5},
        "worst_group": {"before": 0.6, "after": 0.6},
        "group": {
            "a": {"n": 1, "before": 0.0, "after": 0.0, "counted": False},
            "b": {"n": 9, "before": 0.6, "after": 0.6},
        },
    }
    assert [row[0] for row in group_table(evaluate)[1:3]] == ["a (too small to count)", "b (worst before and after)"]


def test_an_untested_group_among_tested_ones():
    group = {"n": 0, "before": None, "after": None}
    evaluate = {
        "overall": {"before": 0.5, "after": 0.5},
        "worst_group": {"before": 0.5, "after": 0.5},
        "group": {"a": group, "b": {"n": 2, "before": 0.5, "after": 0.5}},
        "harm": {"a": {"p_holm": None, "harmed": False}, "b": {"p_holm": 0.0001, "harmed": False}},
    }
    assert [row[5:] for row in group_table(evaluate)[1:3]] == [("–", "no"), ("<0.001", "no")]


def test_long_names_go_on_in_the_next_line_within_120_columns():
    name = "female × ≥60 × Southeast Asian or Pacific Islander, self-reported at enrolment"
    cells = [FULL[0], (name + " (worst before and after)", *FULL[2][1:])]
    text = as_text(cells)
    assert max(len(line) for line in text.splitlines()) <= 120
    first, *more = (line[: line.find("20 ") if "20 " in line else None].strip() for line in text.splitlines()[1:])
    assert " ".join([first, *more]) == name + " (worst before and after)"
    assert text.splitlines()[1].endswith("harmed")


def test_an_endless_name_is_broken_and_an_empty_one_kept():
    lines = as_text([("group", "n"), ("x" * 300, "1"), ("", "2")]).splitlines()
    assert max(len(line) for line in lines) <= 120
    assert "".join(line.split()[0] for line in lines[1:4]) == "x" * 300
    assert lines[4].split() == ["2"]


def test_sentences_are_wrapped():
    assert as_lines(["aa bb", "c"], width=4) == "aa\n  bb\nc"


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


@pytest.mark.parametrize("sign", list("|*_`<>[]$~&\\"))
def test_signs_of_group_names_are_escaped(sign):
    assert escape(f"a{sign}b") == f"a\\{sign}b"


def test_a_name_stays_on_one_line():
    assert escape("a\n b") == "a b"


def many_groups(count: int = 200, **changed) -> dict:
    """Group g00k has accuracy k / 400 + .5 before; after, every tenth of the first hundred has lost .25."""
    rows = {}
    for place in range(count):
        before = 0.5 + place / 400
        after = before - (0.25 if place % 10 == 5 and place < 100 else 0.0)
        rows[f"g{place:03}"] = {"n": 10, "before": before, "after": after, "counted": True} | changed.get(
            f"g{place:03}", {}
        )
    return {
        "group": rows, "overall": {"before": 0.7, "after": 0.6}, "worst_group": {"before": 0.5, "after": 0.26},
        "flips": {"count": 7, "share": 0.01},
    }  # fmt: skip


def test_of_many_groups_the_lowest_the_highest_and_those_that_fell():
    rows = shown_rows(group_rows(many_groups()))
    names = [row.name for row in rows]
    fell = {f"g{place:03}" for place in range(5, 100, 10)}
    highest = {f"g{place:03}" for place in range(190, 200)}
    lowest = {f"g{place:03}" for place in range(22)}
    assert len(names) == len(set(names)) == MOST
    assert set(names) == fell | highest | lowest
    assert [row.after for row in rows] == sorted(row.after for row in rows)


def test_forty_groups_are_all_shown_in_their_order():
    rows = group_rows(many_groups(MOST))
    assert shown_rows(rows) == rows and shown_rule(MOST) == ""


def test_groups_that_do_not_count_are_not_among_the_extremes():
    small = {"n": 1, "before": 0.0, "after": 0.0, "counted": False}
    unseen = {"n": 0, "before": None, "after": None, "counted": False}
    names = {row.name for row in shown_rows(group_rows(many_groups(g100=small, g101=unseen)))}
    assert len(names) == MOST and not names & {"g100", "g101"}


def test_the_table_of_many_groups_counts_and_marks_all():
    cells = group_table(many_groups())
    assert len(cells) == 1 + MOST + 2 and cells[MOST + 1][:2] == ("overall", "2000")
    assert cells[1][0] == "g005 (worst after)" and "g000 (worst before)" in [row[0] for row in cells]
    assert table_notes(many_groups(), {})[0] == (
        "Of 200 groups these are the 10 that fell most, the 10 of highest accuracy after compression and about 20 of "
        "lowest, lowest first; groups.csv and metrics/evaluate.json hold all."
    )
