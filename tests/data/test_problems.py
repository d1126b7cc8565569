import csv
from pathlib import Path

from fairquant.data.problems import summarise, write_problems
from fairquant.data.raw import Problem

PROBLEMS = [
    *(Problem("missing file", row, f"{row}.jpg", f"no image file '{row}.jpg'") for row in (3, 5, 7, 9)),
    Problem("empty label", 4, "", "the label is empty", table="val.csv"),
]


def test_one_line_counts_kinds_and_names_the_first_rows():
    assert summarise(PROBLEMS, full_list=Path("data/problems.csv")) == (
        "5 problems in the data: 4 missing file (row 3 '3.jpg', row 5 '5.jpg', row 7 '7.jpg', …); "
        "1 empty label (val.csv row 4 the label is empty); full list: data/problems.csv; "
        "mend them, or set data.bad_rows: drop"
    )


def test_what_cannot_be_dropped_is_not_offered_for_dropping():
    fatal = [Problem("missing column", 0, "age", "no column 'age'", fatal=True)]
    assert summarise(fatal, full_list=Path("p.csv")) == (
        "1 problem in the data: 1 missing column (no column 'age'); full list: p.csv; mend them"
    )


def test_problems_of_the_whole_table_show_their_message():
    absent = [Problem("absent", 0, name, f"group {name!r} not in val; allowed: all") for name in "ab"]
    assert "2 absent (group 'a' not in val, group 'b' not in val)" in summarise(absent, full_list=Path("p"))


def test_long_and_undecodable_values_are_shown_short_and_escaped():
    found = [Problem("k", row, "x" * 100 if row == 1 else "\udcff", "m") for row in (1, 2)]
    line = summarise(found, full_list=Path("p"))
    assert "x" * 57 + "..." in line and "x" * 58 not in line
    assert "row 2 '\\\\udcff'" in line


def test_the_full_list_is_csv(tmp_path):
    write_problems(tmp_path / "problems.csv", PROBLEMS)
    with (tmp_path / "problems.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "kind", "value", "message"]
    assert [row["row"] for row in rows] == ["3", "5", "7", "9", "4"]
    assert rows[4]["message"] == "val.csv: the label is empty"
