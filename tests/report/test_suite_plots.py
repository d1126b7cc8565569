"""Radar and heat map: the values drawn, what is left out, equal bytes."""

from __future__ import annotations

import pytest
from PIL import Image

from fairquant.report.suite import Run, Suite
from fairquant.report.suite_plots import INNER, heat_map, radar, radar_values, write_plots
from tests.report.suites import evaluate, suite

RUNS = {"fp32": [(0, 0.9, 0.8), (1, 0.8, 0.8)], "a": [(0, 0.7, 0.5)], "b_$x$": [(0, 0.8, 0.6)]}


def test_radar_values_are_means_where_more_is_better():
    values = radar_values(suite(RUNS))["fp32"]
    assert values == pytest.approx(
        {"overall_accuracy": 0.85, "worst_group_accuracy": 0.8, "gap_max_minus_min": 0.95, "eodd": 0.8,
         "ratio": 1 - 1 / 6}
    )  # fmt: skip


def test_radar_has_a_panel_per_method_with_its_polygon_scaled_to_the_methods():
    figure = radar(suite(RUNS))
    assert [axes.get_title() for axes in figure.axes] == ["fp32", "a", r"b_\$x\$"]
    own = [axes.lines[-1].get_ydata() for axes in figure.axes]
    assert list(own[0][:2]) == pytest.approx([1.0, 1.0])  # fp32 is the best of the three in both accuracies
    assert list(own[1][:2]) == pytest.approx([INNER, INNER])
    assert own[2][1] == pytest.approx(INNER + (1 - INNER) * (0.6 - 0.5) / (0.8 - 0.5))
    assert all(line[0] == line[-1] for line in own)
    assert figure.axes[0].get_xticklabels()[1].get_text() == "worst\ngroup\n50.0–80.0 %"


def test_axes_that_a_method_lacks_are_left_out():
    values = evaluate(0.8, 0.7)
    values["gap"] = {}
    made = Suite(("a",), (Run("a", 0, values),), {}, None, {})
    assert list(radar_values(made)["a"]) == ["overall_accuracy", "worst_group_accuracy", "ratio"]
    del values["cost"]
    assert radar(made) is None


def test_heat_map_shows_methods_by_groups():
    figure = heat_map(suite(RUNS, reasons={"fairquantize": "two groups"}))
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (3, 2)
    assert axes.images[0].get_array()[1].tolist() == pytest.approx([90.0, 50.0])
    assert [text.get_text() for text in axes.texts][2:4] == ["90.0", "50.0"]
    assert heat_map(suite({}, reasons={"a": "x"})) is None


def test_group_without_a_value_is_a_dash():
    values = evaluate(0.8, 0.7)
    values["group"]["50 % & more"]["after"] = None
    figure = heat_map(Suite(("a",), (Run("a", 0, values),), {}, None, {}))
    assert figure.axes[0].texts[1].get_text() == "–"


def test_files_are_pictures_with_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert list(write_plots(suite(RUNS), tmp_path / folder)) == ["radar.png", "heat_map.png"]
    for name in ("radar.png", "heat_map.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert min(image.size) > 200


def test_nothing_to_draw_writes_nothing(tmp_path):
    assert write_plots(suite({}, reasons={"a": "x"}), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
