"""Plots of budget curves: what is drawn where, what is left out, equal bytes."""

from __future__ import annotations

import pytest
from PIL import Image

from fairquant.report.curves_plots import size_curves, write_plots
from fairquant.report.curves_scatter import front, pareto, predicted_measured
from fairquant.report.curves_style import COLOURS, styles
from fairquant.report.curves_summary import by_task
from fairquant.report.curves_tables import markdown
from tests.report.curve_rows import row

PREDICTED = {"light": 0.01, "dark": 0.1}
ROWS = [
    row(worst=0.70),
    row(seed=1, worst=0.74),
    row(budget=4.0, worst=0.78),
    row("levels_max", worst=0.5),
    row("optimal_max", worst=0.79, predicted=PREDICTED),
    row("optimal_max", tuned=True, worst=0.8, predicted=PREDICTED),
]


def curves():
    [both] = by_task(ROWS, ("uniform", "levels_max")).values()
    return both


def test_families_share_a_colour_and_variants_a_marker():
    made = styles(
        [
            "uniform",
            "uniform_mse",
            "levels_max",
            "levels_cvar",
            "levels_max_mse",
            "optimal_max",
            "optimal_max_mse",
            "optimal_max_corrected",
            "ours",
        ]
    )
    assert made["levels_max"].colour == made["levels_cvar"].colour == COLOURS[1]
    assert made["levels_max"].marker == made["levels_max_mse"].marker == made["optimal_max"].marker
    assert made["levels_max"].marker != made["levels_cvar"].marker
    assert (made["uniform"].dashes, made["uniform_mse"].dashes, made["uniform_mse"].face) == ("-", "--", "white")
    assert made["optimal_max_mse"].face != made["optimal_max_corrected"].face  # scatter plots have no dashes
    looks = [(look.colour, look.marker, look.dashes) for look in made.values()]
    assert len(set(looks)) == len(looks)


def test_curves_stand_at_the_real_size():
    figure = size_curves(curves(), "faces", "worst_group_accuracy")
    axes = figure.axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["uniform"].get_xdata()) == pytest.approx([0.2, 0.4])
    assert list(drawn["uniform"].get_ydata()) == pytest.approx([72.0, 78.0])
    assert drawn["full precision"].get_ydata()[0] == pytest.approx(80.0)
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.2", "0.4"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["without fine-tuning", "fine-tuned equally"]
    assert figure.axes[2].get_ylim() == pytest.approx((74.0, 82.0))  # within 6 points of full precision
    assert [text.get_text() for text in figure.legends[0].texts].count("uniform") == 1


def test_pareto_has_a_panel_per_budget():
    figure = pareto(curves()[False], "faces", "without fine-tuning")
    assert [axes.get_title() for axes in figure.axes] == ["2 bits, 0.2 MB", "4 bits, 0.4 MB"]
    assert front({"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (1.0, 2.0), "d": (2.0, 2.0)}) == ["a", "b", "d"]


def test_predicted_loss_against_measured():
    figure = predicted_measured(curves()[False], "faces")
    [axes] = figure.axes
    assert axes.get_title() == "optimal_max (1 of 2 did not rise)"  # the loss of "light" fell
    assert axes.collections[0].get_offsets().tolist() == [[0.1, 0.25]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    [unpredicted] = by_task([row()]).values()
    assert predicted_measured(unpredicted[False], "faces") is None
    assert predicted_measured(None, "faces") is None


def test_files_are_pictures_with_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        made = write_plots(ROWS, tmp_path / folder, order=("uniform",))
    stem = "1_faces_by_tone_resnet18"
    names = ["worst_group", "overall", "pareto_untuned", "pareto_tuned", "predicted"]
    assert list(made) == [f"{stem}_{name}.png" for name in names]
    assert all(text.startswith("faces by tone, resnet18: ") for text in made.values())
    for name in made:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert min(image.size) > 300


def test_nothing_measured_everywhere_still_draws(tmp_path):
    made = write_plots([row(test_worst_before=None, test_worst_after=None)], tmp_path)
    assert len(made) == 3


def test_a_page_shows_each_plot_with_its_own_task(tmp_path):
    rows = [row(task=task) for task in ("a", "a: b")]
    made = write_plots(rows, tmp_path)
    page = markdown(by_task(rows), made)
    first, second = page.split("\n## a: b\n")
    assert first.count("](1_") == page.count("](1_") == 3 and second.count("](2_") == page.count("](2_") == 3
