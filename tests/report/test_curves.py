"""Rows of budget curves: written and read back, summed up over seeds, shown as tables."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest

from fairquant.errors import ArtifactError
from fairquant.report.curves import COLUMNS, header_line, parse_rows, read_rows, row_line
from fairquant.report.curves_summary import by_task, change_rows, harmed_text, kept, summary_rows
from fairquant.report.curves_tables import OVERALL, WORST, accuracy_table, change_table, size_table, write_tables
from tests.report.curve_rows import row

SPECIAL = 'female × <60, "quoted"; 50 % | more'


def curves(*rows, order=("uniform", "levels_max")):
    [both] = by_task(rows, order).values()
    return both[False]


class TestCsv:
    def test_a_row_is_read_back_as_it_was(self, tmp_path):
        rows = [
            row(predicted={"light": 1e-9, "dark": 0.1 + 0.2}, harmed=("dark", SPECIAL), tuned=True),
            row(seed=1, task=SPECIAL, test_group_after={SPECIAL: None}, worst_change_low=None, avg_bits=1 / 3),
        ]
        path = tmp_path / "curves.csv"
        path.write_text(header_line() + "".join(map(row_line, rows)), encoding="utf-8")
        assert read_rows(path) == rows
        with path.open(encoding="utf-8", newline="") as file:
            assert [len(cells) for cells in csv.reader(file)] == [len(COLUMNS)] * 3

    def test_changes_are_after_less_before(self):
        point = row(worst=0.7)
        assert (point.worst_change, point.overall_change) == (pytest.approx(-0.1), pytest.approx(-0.1))
        assert point.gap_change == pytest.approx(0.1)
        assert row(test_worst_after=None).worst_change is None

    @pytest.mark.parametrize(
        ("column", "text", "allowed"),
        [
            ("seed", "x", "a whole number"),
            ("tuned", "yes", r"true \| false"),
            ("budget", "", "a number"),
            ("test_worst_after", "?", "a number, or nothing"),
            ("predicted", "[1]", "a JSON object of numbers"),
            ("harmed", "dark", "a JSON list of names"),
        ],
    )
    def test_a_cell_that_cannot_be_read(self, column, text, allowed):
        cells = next(csv.reader([row_line(row())]))
        cells[COLUMNS.index(column)] = text
        line = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
        with pytest.raises(ArtifactError, match=rf"^a\.csv, line 2, {column}: got '.*'; allowed: {allowed}$"):
            parse_rows(header_line() + line + "\n", source="a.csv")

    def test_files_that_are_none_of_ours(self, tmp_path):
        with pytest.raises(ArtifactError, match="^a.csv: got the columns x,y; allowed: a file that `python -m scripts"):
            parse_rows("x,y\n1,2\n", source="a.csv")
        with pytest.raises(ArtifactError, match="^a.csv: got an empty file; allowed"):
            parse_rows("", source="a.csv")
        with pytest.raises(ArtifactError, match=f"^a.csv, line 2: got 1 cells; allowed: {len(COLUMNS)}$"):
            parse_rows(header_line() + "1\n", source="a.csv")
        with pytest.raises(ArtifactError, match="missing.csv: not found; allowed"):
            read_rows(tmp_path / "missing.csv")

    def test_a_point_is_there_once(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text(header_line() + row_line(row()) + row_line(row(worst=0.6)))
        with pytest.raises(ArtifactError, match="got faces by tone, resnet18 seed 0 uniform 2 bits untuned twice"):
            read_rows(path)


class TestTables:
    def test_means_and_deviations_by_hand(self):
        part = curves(row(worst=0.70), row(seed=1, worst=0.74), row("levels_max", worst=0.5), row(budget=4.0))
        assert accuracy_table(part, *WORST) == [
            ("method", "2", "4"),
            ("full precision", "80.0 ± 0.0", "80.0"),
            ("uniform", "72.0 ± 2.8", "70.0 (n=1)"),  # √((2² + 2²) / 1) = 2.83
            ("levels_max", "50.0 (n=1)", ""),
        ]
        assert accuracy_table(part, *OVERALL)[2] == ("uniform", "82.0 ± 2.8", "80.0 (n=1)")
        assert size_table(part) == [
            ("method", "2", "4"), ("uniform", "0.200", "0.400"), ("levels_max", "0.200", "")
        ]  # fmt: skip

    def test_methods_stand_in_the_given_order_and_others_behind(self):
        part = curves(row("b"), row("levels_max"), row("a"), row("uniform"))
        assert part.methods == ["uniform", "levels_max", "a", "b"]

    def test_change_against_full_precision(self):
        predicted = {"light": 0.001, "dark": 0.1}
        part = curves(
            row("ours", worst=0.79, predicted=predicted),
            row("ours", seed=1, worst=0.80, predicted=predicted),
            row("ours", 1.0, worst=0.70, predicted=predicted, harmed=("dark",)),
            row("uniform"),
        )
        head, one, two = change_table(part)
        assert head[:3] == ("method", "bits", "MB")
        assert one == ("ours", "1", "0.100", "1.00", "-10.0", "-10.0 [-12.0, -8.0]", "+10.0", "dark (1 of 1)", "no")
        assert two[3:] == ("2.00", "-0.5 ± 0.7", "-0.5 [-2.5, +1.5] ± 0.7", "+0.5", "none", "yes")

    def test_kept_is_a_point_at_most_and_nobody_harmed(self):
        assert kept([row(worst=0.79)]) is True
        assert kept([row(worst=0.789)]) is False
        assert kept([row(worst=0.78), row(seed=1, worst=0.80)]) is True
        assert kept([row(worst=0.80, harmed=("light",))]) is False
        assert kept([row(test_worst_after=None)]) is None
        runs = [row(harmed=("b", "a")), row(seed=1, harmed=("a",)), row(seed=2)]
        assert harmed_text(runs) == "a (2 of 3), b (1 of 3)"

    def test_csv_rows_hold_all_digits(self):
        tasks = by_task([row(worst=0.7), row(seed=1, worst=0.8, predicted={"dark": 0.5, "light": 0.0})])
        head, values = summary_rows(tasks)
        found = dict(zip(head, values, strict=True))
        assert (found["method"], found["budget"], found["n"], found["tuned"]) == ("uniform", 2.0, 2, "false")
        assert found["worst_group_accuracy_mean"] == pytest.approx(0.75)
        assert found["worst_group_accuracy_sd"] == pytest.approx(math.sqrt(0.005))
        assert found["eodd_mean"] is None
        head, light, dark = change_rows(tasks)
        found = dict(zip(head, dark, strict=True))
        assert (found["group"], found["before"], found["change"]) == ("dark", pytest.approx(0.8), pytest.approx(-0.05))
        assert found["loss_change_test"] == 0.25 and found["loss_change_predicted"] is None  # one seed has none
        assert light[head.index("change")] == 0

    def test_files(self, tmp_path):
        rows = [row(), row("ours", predicted={"dark": 0.1}), row(tuned=True, task="a | b"), row(tuned=True)]
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            write_tables(rows, tmp_path / folder, {"x.png": "faces by tone, resnet18: drawn"}, order=("uniform",))
        text = (tmp_path / "one/curves.md").read_text(encoding="utf-8")
        assert text.index("## a | b") < text.index("## faces by tone, resnet18")
        assert text.count("### Without fine-tuning: change against full precision") == 1
        assert text.count("### Fine-tuned equally: worst group's test accuracy (%)") == 2
        assert text.count("![faces by tone, resnet18: drawn](x.png)") == 1
        assert "Full precision: 3.200 MB." in text
        for name in ("curves.md", "summary.csv", "change.csv"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        with (tmp_path / "one/summary.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == 4

    def test_undefined_accuracy_is_a_dash(self):
        part = curves(dataclasses.replace(row(), test_worst_after=None))
        assert accuracy_table(part, *WORST)[2] == ("uniform", "–")
