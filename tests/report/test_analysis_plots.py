"""Figures of an analysis: what is drawn where, axes and labels; layers × groups."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.errors import UserError
from fairquant.importance.maps import ImportanceMaps
from fairquant.report.analysis import by_model, places, widths_of
from fairquant.report.analysis_bars import group_bars
from fairquant.report.analysis_heat import heat_map, heat_values
from fairquant.report.analysis_pareto import front_rows, pareto_2d, pareto_3d
from fairquant.report.analysis_sensitivity import (
    layer_sensitivity,
    mean_sensitivity,
    sensitivities,
    sensitivity_map,
    sensitivity_rows,
)
from tests.report.curve_rows import row

ROWS = [
    row("ptq_static", 4.0, task="resnet18", worst=0.70),
    row("ptq_static", 4.0, 1, task="resnet18", worst=0.74),
    row("ptq_static", 8.0, task="resnet18", worst=0.79),
    row("qat", 4.0, task="resnet18", worst=0.78, tuned=True),
    row("qat+gap", 4.0, task="resnet18", worst=0.79, tuned=True, packed_mb=0.5),
    row("qat", 4.0, task="vit", worst=0.6, tuned=True),
]
ORDER = ("ptq_static", "qat")


def grid():
    return by_model(ROWS, ORDER)


def cell_texts(axes):
    return [text.get_text() for text in axes.texts]


def test_rows_by_model():
    made = grid()
    assert list(made) == ["resnet18", "vit"]
    assert made["resnet18"].methods == ["ptq_static", "qat", "qat+gap"]
    assert widths_of(made) == [8.0, 4.0]
    first = places(made)[1]
    assert (first.model, first.method, first.bits) == ("resnet18", "ptq_static", 4.0)
    assert (first.packed_mb, first.overall) == pytest.approx((0.4, 0.82))
    assert (first.worst, first.gap) == pytest.approx((0.72, 0.23))
    undefined = by_model([row(task="a", test_gap_after=None)], ())
    assert places(undefined) == [] and pareto_2d(undefined) is None and pareto_3d(undefined) is None


def test_heat_map_has_a_row_per_method_and_a_column_per_model():
    names, cells = heat_values(grid(), 4.0, "worst_group_accuracy", "test_worst_before")
    assert names == ["full precision", "ptq_static", "qat", "qat+gap"]
    assert cells[0] == [0.8, 0.8]
    assert cells[1][0] == pytest.approx(0.72) and cells[1][1] is None
    figure = heat_map(grid(), 4.0)
    assert [axes.get_title() for axes in figure.axes] == [
        "overall accuracy (%)",
        "worst group’s accuracy (%)",
        "gap max − min (points)",
    ]
    assert cell_texts(figure.axes[1]) == ["80.0", "80.0", "72.0", "–", "78.0", "60.0", "79.0", "–"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == names
    assert [text.get_text() for text in figure.axes[2].get_xticklabels()] == ["resnet18", "vit"]
    assert figure.axes[0].images[0].get_cmap().name == "cividis"
    assert figure.axes[2].images[0].get_cmap().name == "cividis_r"  # a small gap is bright
    assert figure.get_suptitle() == "4 bits (test, mean over seeds; bright is good)"


def test_colours_mean_the_same_at_every_width():
    limits = [heat_map(grid(), bits).axes[0].images[0].get_clim() for bits in (4.0, 8.0)]
    assert limits[0] == limits[1] == pytest.approx((0.7, 0.9))


def test_pareto_in_two_dimensions():
    figure = pareto_2d(grid())
    first = figure.axes[0]
    assert (first.get_title(), first.get_xscale()) == ("resnet18", "log")
    lines = {line.get_label(): line for line in first.lines}
    # at 4 bits qat has the bytes of ptq_static and more accuracy; ptq_static at 8 bits is no better than qat+gap at 4
    assert list(lines["not surpassed"].get_xdata()) == pytest.approx([0.4, 0.5])
    assert list(lines["not surpassed"].get_ydata()) == pytest.approx([88.0, 89.0])
    assert lines["full precision"].get_ydata()[0] == pytest.approx(90.0)
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "ptq_static", "qat", "with mitigation", "not surpassed", "full precision",
    ]  # fmt: skip
    assert figure.axes[-1].get_ylabel() == "worst group’s test accuracy (%)"
    assert figure.get_supxlabel() == "real packed size (MB, logarithmic)"


def test_pareto_in_three_dimensions():
    figure = pareto_3d(grid())
    assert [axes.get_title() for axes in figure.axes] == ["resnet18", "vit"]
    first = figure.axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("size (MB)", "overall accuracy (%)")
    assert first.get_zlabel() == "gap between groups (points)"
    low, high = first.get_zlim()
    assert low > high  # small gaps on top
    assert "not surpassed in all three" in [text.get_text() for text in figure.legends[0].texts]


def test_rows_of_the_fronts():
    head, *rows = front_rows(grid())
    assert head[-2:] == ["front_size_accuracy", "front_size_accuracy_gap"]
    found = {(line[0], line[1], line[2]): line[-2:] for line in rows}
    assert found["resnet18", "ptq_static", 4.0] == ["false", "false"]
    assert found["resnet18", "qat", 4.0] == ["true", "true"]
    assert found["vit", "qat", 4.0] == ["true", "true"]  # another model is no rival


def test_bars_before_and_after():
    figure = group_bars(grid()["resnet18"], "resnet18", 4.0)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["ptq_static", "qat", "qat+gap"]
    before, after = figure.axes[0].containers[:2]
    assert [bar.get_height() for bar in before] == pytest.approx([95.0, 80.0])
    assert [bar.get_height() for bar in after] == pytest.approx([95.0, 72.0])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["light", "dark"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["full precision", "quantized"]
    assert group_bars(grid()["vit"], "vit", 8.0) is None


MAPS = ImportanceMaps(
    ("light", "dark"),
    (5, 5),
    {
        "conv": np.array([[[1.0, -1.0]], [[1.0, 0.0]]], np.float32),
        "fc": np.array([[[4.0, -2.0]], [[0.5, 0.5]]], np.float32),
    },
)


def test_layers_by_hand():
    found = layer_sensitivity(MAPS)
    assert found.shares == pytest.approx(np.array([[0.25, 0.5], [0.75, 0.5]]))
    assert found.relative == pytest.approx(np.array([[2 / 3, 4 / 3], [1.2, 0.8]]))
    assert sensitivity_rows({"resnet18": found})[1] == ["resnet18", "conv", "light", 0.25, pytest.approx(2 / 3)]


def test_layers_over_seeds():
    other = ImportanceMaps(
        MAPS.groups, MAPS.counts, {name: values[::-1].copy() for name, values in MAPS.layers.items()}
    )
    mean = sensitivities([("a", MAPS), ("a", other)])["a"]
    assert mean.shares == pytest.approx(np.array([[0.375, 0.375], [0.625, 0.625]]))
    swapped = ImportanceMaps(("dark", "light"), MAPS.counts, MAPS.layers)
    with pytest.raises(UserError, match="^importance: got other layers or groups in another seed; allowed: the same$"):
        mean_sensitivity([layer_sensitivity(MAPS), layer_sensitivity(swapped)])


def test_a_group_without_importance():
    dead = ImportanceMaps(("light", "dark"), (1, 1), {"fc": np.array([[[1.0]], [[0.0]]], np.float32)})
    with pytest.raises(
        UserError, match="^importance: group 'dark': got 0 for every weight; allowed: importance above 0$"
    ):
        layer_sensitivity(dead)


def test_layers_as_a_figure():
    figure = sensitivity_map(layer_sensitivity(MAPS), "resnet18")
    share, ratio = figure.axes[:2]
    assert cell_texts(share) == ["25.0", "50.0", "75.0", "50.0"]
    assert cell_texts(ratio) == ["0.67", "1.33", "1.20", "0.80"]
    assert [text.get_text() for text in share.get_yticklabels()] == ["conv", "fc"]
    assert [text.get_text() for text in ratio.get_xticklabels()] == ["light", "dark"]
    assert figure.axes[3].get_ylabel() == "relative to the mean over groups"
