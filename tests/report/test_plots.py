"""Plots: what they say, read back from the drawn objects, and that their bytes depend on the inputs alone."""

from __future__ import annotations

import pytest

from fairquant.report import plots


def texts(figure):
    return [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]


def test_accuracy_marks_the_worst_group_and_draws_every_value(inputs):
    figure = plots.accuracy_by_group(inputs.metrics["evaluate"])
    assert texts(figure) == [r"male|\$x_1\$ (n=60)", "female × ≥60 (n=20) ◀ worst", "female × <60 (n=40)"]
    axes = figure.axes[0]
    drawn = [sorted(round(float(x), 6) for x, _ in points.get_offsets()) for points in axes.collections]
    assert drawn == [[80.0, 85.0, 90.0], [70.0, 80.0, 87.5]]
    assert axes.get_xlabel() == "test accuracy (%)"


def test_a_group_without_samples_has_no_mark():
    evaluate = {
        "overall": {"before": 1.0, "after": 1.0},
        "group": {"a": {"n": 0, "before": None, "after": None}, "b": {"n": 2, "before": 1.0, "after": 1.0}},
    }
    figure = plots.accuracy_by_group(evaluate)
    assert [len(points.get_offsets()) for points in figure.axes[0].collections] == [1, 1]


def test_gaps_in_percentage_points(inputs):
    figure = plots.gaps(inputs.gaps)
    widths = sorted(round(bar.get_width(), 6) for bar in figure.axes[0].patches)
    assert widths == [10.0, 20.0, 30.0]
    assert texts(figure) == ["eodd", "accuracy gap, max − min"]
    assert "percentage points" in figure.axes[0].get_xlabel()


def test_no_gaps_no_plot():
    assert plots.gaps(()) is None


def test_bits_of_each_layer_add_up(inputs):
    figure = plots.bits_per_layer(inputs.layers)
    bars = figure.axes[0].patches
    assert len(bars) == 3 * len(inputs.layers)
    assert sum(bar.get_width() for bar in bars) == pytest.approx(100 * len(inputs.layers))
    assert texts(figure) == ["conv1", "layer1.0.conv1", "fc"]


def test_stages_that_trained_have_curves(inputs):
    figure = plots.training(inputs.curves)
    assert [axes.get_title() for axes in figure.axes] == ["pretrain: loss", "pretrain: validation accuracy"]
    assert list(figure.axes[1].lines[0].get_ydata()) == [50.0, 75.0]


def test_nothing_trained_no_plot():
    assert plots.training({"pretrain": (), "quantize": ()}) is None


def test_undefined_values_leave_a_gap_in_a_curve():
    row = dict.fromkeys(("epoch", *plots.CURVE_NAMES), "1")
    figure = plots.training({"pretrain": (row | {"val_worst_group_accuracy": ""},)})
    assert len(figure.axes[1].lines) == 1


def test_bytes_are_equal(inputs, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.write_plots(inputs, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 4
    assert all(b"matplotlib" not in data.lower() for data in written[0].values())
