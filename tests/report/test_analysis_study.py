"""Rows, φ, csv, table and figures of the per-class study."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fairquant.errors import ArtifactError
from fairquant.evaluate.loss import excessive_loss
from fairquant.predictions import SplitPredictions
from fairquant.report.analysis_study import (
    COLUMNS,
    PointSummary,
    StudyRow,
    header_line,
    point_rows,
    read_rows,
    row_line,
)
from fairquant.report.analysis_study_write import Study, accuracy_map, phi_figure, study_table, write_study

KEY = ("mnist by class, resnet18", "fair", 0, "ptq", 4)


def point(data="fair", seed=0, method="ptq", bits=4, drop=(0.1, 0.3), excess=(0.25, 1.0)):
    """Two classes at 90 % and 80 % in full precision, both at a loss of 0.5, one group of each name."""
    key = (KEY[0], data, seed, method, bits)
    rows = [
        StudyRow(*key, "class", name, 10, before, before - lost, 0.5, 0.5 + more, "reducer=mean")
        for name, before, lost, more in zip(("0", "1, one"), (0.9, 0.8), drop, excess, strict=True)
    ]
    rows.append(
        StudyRow(*key, "group", "a", 20, 0.85, 0.85 - sum(drop) / 2, 0.5, 0.5 + sum(excess) / 2, "reducer=mean")
    )
    return [*rows, replace(rows[-1], kind="all", name="all")]


def test_rows_of_predictions():
    random = np.random.default_rng(0)
    labels, groups = np.array([0, 0, 1, 1, 2, 2, 0]), np.array([0, 1, 0, 1, 0, 1, 1])
    made = [SplitPredictions(random.normal(size=(7, 4)).astype(np.float32), labels, groups, np.arange(7)) for _ in "ab"]
    rows = point_rows(KEY, *made, classes=("x", "y", "z", "none"), groups=("g", "h"), settings="")
    assert [(row.kind, row.name, row.n) for row in rows] == [
        ("class", "x", 3), ("class", "y", 2), ("class", "z", 2), ("class", "none", 0), ("group", "g", 3),
        ("group", "h", 4), ("all", "all", 7),
    ]  # fmt: skip
    assert rows[3].accuracy_after is None and rows[3].excess is None
    summary = PointSummary.of(rows)
    right = made[1].logits.argmax(axis=1) == labels
    assert summary.overall == pytest.approx(right.mean())
    assert summary.worst_class == pytest.approx(min(right[labels == k].mean() for k in range(3)))
    by_class = [replace(part, groups=labels) for part in made]
    assert summary.phi_class == pytest.approx(excessive_loss(*by_class, groups=("x", "y", "z"))["phi"])
    assert summary.phi_group == pytest.approx(excessive_loss(*made, groups=("g", "h"))["phi"])


def test_phi_by_hand():
    summary = PointSummary.of(point())
    assert summary.phi_class == 0.75 and summary.phi_group is None  # one group has no difference
    assert (summary.overall, summary.worst_class) == pytest.approx((0.65, 0.5))
    assert (summary.overall_before, summary.worst_class_before) == (0.85, 0.8)


class TestCsv:
    def write(self, path, rows, more=""):
        path.write_text(header_line() + "".join(map(row_line, rows)) + more, encoding="utf-8")
        return path

    def test_what_is_written_is_read(self, tmp_path):
        rows = [*point(), *point(seed=1, method="qat"), replace(point(bits=2)[0], accuracy_after=None, n=0)]
        path = self.write(tmp_path / "s.csv", [*rows, *point(bits=2)[1:]])
        assert read_rows(path) == [*rows, *point(bits=2)[1:]]

    def test_a_half_written_point_is_no_point(self, tmp_path):
        cut = row_line(point(bits=2)[0]) + row_line(point(bits=2)[1])[:30]
        assert read_rows(self.write(tmp_path / "s.csv", point(), cut)) == point()
        complete_but_for_the_end = "".join(map(row_line, point(bits=2)))[:-1]
        assert read_rows(self.write(tmp_path / "s.csv", point(), complete_but_for_the_end)) == point()

    def test_mistakes(self, tmp_path):
        path = tmp_path / "s.csv"
        with pytest.raises(ArtifactError, match=r"s\.csv: not found; allowed: a file that `python -m scripts\.study`"):
            read_rows(path)
        path.write_text("a,b\n")
        with pytest.raises(ArtifactError, match=r"s\.csv: got other columns; allowed: a file"):
            read_rows(path)
        self.write(path, point(), "a,b\n")
        with pytest.raises(ArtifactError, match=rf"s\.csv, line 6: got 2 cells; allowed: {len(COLUMNS)}"):
            read_rows(path)
        self.write(path, point(), row_line(point()[0]).replace(",10,", ",ten,"))
        with pytest.raises(ArtifactError, match="line 6, n: got 'ten'; allowed: a whole number"):
            read_rows(path)
        self.write(path, [*point(), *point()])
        with pytest.raises(ArtifactError, match=r"s\.csv: got a point twice; allowed: each once"):
            read_rows(path)


ROWS = [
    *point(),
    *point(seed=1, drop=(0.1, 0.5), excess=(0.25, 1.5)),
    *point(method="qat", drop=(0.0, 0.1), excess=(0.0, 0.25)),
    *point(bits=8, drop=(0.0, 0.0), excess=(0.0, 0.125)),
    *point("unfair", excess=(0.5, 3.5)),
]


def test_table():
    assert study_table(Study(ROWS)) == [
        ("training set", "method", "bits", "seeds", "overall %", "worst class %", "φ, classes", "φ, groups"),
        ("fair", "full precision", "32", "2", "85.0 ± 0.0", "80.0 ± 0.0", "", ""),
        ("fair", "PTQ", "W8A8", "1", "85.0", "80.0", "0.125", "–"),
        ("fair", "PTQ", "W4A4", "2", "60.0 ± 7.1", "40.0 ± 14.1", "1.000 ± 0.354", "–"),
        ("fair", "QAT", "W4A4", "1", "80.0", "70.0", "0.250", "–"),
        ("unfair", "full precision", "32", "1", "85.0", "80.0", "", ""),
        ("unfair", "PTQ", "W4A4", "1", "65.0", "50.0", "3.000", "–"),
    ]


def test_figure_of_accuracy_and_phi():
    figure = phi_figure(Study(ROWS), "mnist")
    upper, _, lower, _ = figure.axes
    assert [axes.get_title() for axes in figure.axes[:2]] == ["balanced training set", "long-tailed training set"]
    assert upper.get_ylabel() == "test accuracy (%)"
    assert lower.get_ylabel() == "φ (nats, logarithmic above 0.01;\n0 is fair)"
    assert lower.get_yscale() == "symlog" and lower.get_ylim()[0] == 0
    assert lower.get_ylim()[1] > 3  # that of the other column too
    assert [text.get_text() for text in lower.get_xticklabels()] == ["W8A8", "W4A4"]
    drawn = {container.get_label(): container.lines[0] for container in upper.containers}
    assert list(drawn) == ["PTQ, overall", "PTQ, worst class", "QAT, overall", "QAT, worst class"]
    assert list(drawn["PTQ, overall"].get_ydata()) == pytest.approx([85.0, 60.0])
    assert list(drawn["QAT, worst class"].get_ydata()) == pytest.approx([70.0])
    phi = {container.get_label(): container.lines[0] for container in lower.containers}
    assert list(phi["PTQ, φ of classes"].get_ydata()) == pytest.approx([0.125, 1.0])
    assert "PTQ, φ of groups" not in phi  # one group has none
    assert [line.get_ydata()[0] for line in upper.lines if line.get_label() == "full precision, overall"] == [85.0]


def test_phi_of_groups_is_drawn_where_they_are_not_the_classes():
    second = [replace(row, name="b", loss_after=0.75) for row in ROWS if row.kind == "group"]
    lower = phi_figure(Study([*ROWS, *second]), "mnist").axes[2]
    drawn = {container.get_label(): container.lines[0] for container in lower.containers}
    own = [row for row in ROWS if (row.data, row.method, row.kind) == ("fair", "ptq", "group")]
    of = {bits: [abs(float(row.loss_after or 0) - 0.75) for row in own if row.bits == bits] for bits in (8, 4)}
    assert list(drawn["PTQ, φ of groups"].get_ydata()) == pytest.approx([np.mean(of[8]), np.mean(of[4])])
    same = [replace(row, kind="group") for row in ROWS if row.kind == "class"]
    assert Study([row for row in ROWS if row.kind != "group"] + same).names("group") == []


def test_map_of_groups():
    figure = accuracy_map(Study(ROWS), "mnist", "group")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a"]
    assert figure.axes[0].texts[0].get_text() == "85.0"


def test_map_of_classes():
    figure = accuracy_map(Study(ROWS), "mnist", "class")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["90.0", "90.0", "80.0", "–", "90.0", "80.0", "80.0", "40.0", "–", "70.0"]
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names == ["full precision", "PTQ W8A8", "PTQ W4A4", "QAT W8A8", "QAT W4A4"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "1, one"]


def test_files_with_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_study(ROWS, tmp_path / name)
    stem = "1_mnist_by_class_resnet18"
    for name in ("study.md", f"{stem}_phi.png", f"{stem}_classes.png", f"{stem}_groups.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with Image.open(tmp_path / "a" / f"{stem}_phi.png") as image:
        assert min(image.size) > 300
    page = (tmp_path / "a/study.md").read_text(encoding="utf-8")
    assert f"## {KEY[0]}" in page and "| fair | QAT | W4A4 | 1 | 80.0 | 70.0 | 0.250 | – |" in page
    assert f"({stem}_phi.png)" in page
