"""Plots: what they say, read back from the drawn objects, and that their bytes depend on the inputs alone."""

from __future__ import annotations

import dataclasses

import pytest
from matplotlib import colormaps

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


def bars(axes):
    """The ends and heights of the thin interval bars."""
    return sorted(tuple(round(float(x), 6) for x in line.get_xdata()) + (round(float(line.get_ydata()[0]), 2),)
                  for line in axes.lines if line.get_marker() == "|")  # fmt: skip


def test_accuracy_intervals_stand_beside_their_points(full_inputs):
    figure = plots.accuracy_by_group(full_inputs.metrics["evaluate"])
    assert texts(figure)[1] == "female × ≥60 (n=20) ◀ worst, harmed"
    assert bars(figure.axes[0]) == [
        (66.0, 74.0, 0.83), (76.0, 84.0, -0.17), (76.0, 84.0, 0.17), (81.0, 89.0, 1.17), (83.5, 91.5, 1.83),
        (86.0, 94.0, 2.17),
    ]  # fmt: skip
    assert figure.axes[0].get_xlabel() == "test accuracy (%)\nthin bars: bootstrap intervals"


def test_gaps_in_percentage_points(inputs):
    figure = plots.gaps(inputs.metrics["evaluate"])
    widths = [round(bar.get_width(), 6) for bar in figure.axes[0].patches]
    assert widths == [10.0, 5.0, 20.0, 10.0]
    assert texts(figure) == ["accuracy gap, max − min", "accuracy gap, mean − worst"]
    assert bars(figure.axes[0]) == []
    assert "percentage points" in figure.axes[0].get_xlabel()


def test_gap_intervals(full_inputs):
    axes = plots.gaps(full_inputs.metrics["evaluate"]).axes[0]
    assert bars(axes) == [(1.0, 9.0, 1.2), (6.0, 14.0, 0.2), (6.0, 14.0, 0.8), (16.0, 24.0, -0.2)]
    assert [text.get_text() for text in axes.texts] == ["5.0", "10.0", "10.0", "20.0"]


def test_an_interval_may_lie_beside_its_value():
    ends = {"low": 0.2, "high": 0.3}
    evaluate = {"gap": {"before": {"max_minus_min": 0.1}, "after": {"max_minus_min": 0.4}},
                "interval": {"gap": {"max_minus_min": {"before": ends, "after": ends, "change": ends}}}}  # fmt: skip
    axes = plots.gaps(evaluate).axes[0]
    assert bars(axes) == [(20.0, 30.0, -0.2), (20.0, 30.0, 0.2)]
    assert [round(text.xy[0], 6) for text in axes.texts] == [30.0, 40.0]


def test_a_gap_defined_for_one_model_has_one_bar():
    axes = plots.gaps({"gap": {"before": {"eodd": 0.1}, "after": {"eodd": None}}}).axes[0]
    assert [round(bar.get_width(), 6) for bar in axes.patches] == [10.0]


def test_no_gaps_no_plot():
    assert plots.gaps({}) is None
    assert plots.gaps({"gap": {"before": {"eodd": None}, "after": {"eodd": None}}}) is None


@pytest.mark.parametrize("which", ["assigned", "final"])
def test_bits_of_each_layer_add_up(inputs, which):
    columns = plots.width_columns(inputs)
    assert columns == ["share_2bit", "share_3bit", "share_4bit", "share_8bit"]
    figure = plots.bits_per_layer(inputs.layers[which], columns)
    bars = figure.axes[0].patches
    assert len(bars) == 4 * 3
    assert sum(bar.get_width() for bar in bars) == pytest.approx(100 * 3)
    assert texts(figure) == ["conv1", "layer1.0.conv1", "fc"]
    assert bars[9].get_facecolor()[:3] == pytest.approx(colormaps["cividis"](0.0)[:3])


def test_assigned_widths_have_a_plot_only_where_they_changed(inputs, tmp_path):
    assert "bits_per_layer_assigned.png" in plots.write_plots(inputs, tmp_path)
    same = dataclasses.replace(inputs, layers=dict.fromkeys(("assigned", "final"), inputs.layers["final"]))
    assert set(plots.write_plots(same, tmp_path)) == {
        "accuracy_by_group.png", "gap.png", "bits_per_layer.png", "training.png",
    }  # fmt: skip


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


def test_bytes_are_equal(full_inputs, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.write_plots(full_inputs, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 5
    assert all(b"matplotlib" not in data.lower() for data in written[0].values())
