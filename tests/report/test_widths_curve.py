"""The budget curve: what it says, read back from the drawn objects."""

from __future__ import annotations

import math

import pytest

from fairquant.report.widths_curve import budget_curve

WEIGHTS = {"a.x": 0.75, "b|$x$": 0.0}
FULL = {"a.x": 0.8125, "b|$x$": 0.6}


def drawn(axes):
    """{(line style, number of points): [(x, y), ...]} of what was drawn in data coordinates, references left out."""
    return [
        (
            line.get_linestyle(),
            [(float(x), None if math.isnan(y) else round(float(y), 6)) for x, y in line.get_xydata()],
        )
        for line in axes.lines
        if line.get_marker() != "None"
    ]


def test_losses_accuracy_and_what_did_not_rise(spent_inputs):
    loss, fall, accuracy = budget_curve(spent_inputs.budget_curve, WEIGHTS, FULL).axes
    assert loss.get_yscale() == loss.get_xscale() == "log"
    assert drawn(loss)[:4] == [
        ("--", [(0.998, 0.004), (4.0, 0.00025)]), ("None", [(2.0, 0.001)]),
        ("-", [(0.998, 0.08), (4.0, None)]), ("None", [(2.0, 0.02)]),
    ]  # fmt: skip
    assert drawn(fall) == [("None", [(4.0, 0.0)]), ("None", [(4.0, 1.0)]), ("None", [(2.0, 1.0)])]
    assert drawn(accuracy) == [
        ("-", [(0.998, 62.5), (4.0, 81.25)]), ("None", [(2.0, 75.0)]),
        ("-", [(0.998, 50.0), (4.0, 56.25)]), ("None", [(2.0, 50.0)]),
    ]  # fmt: skip
    assert [float(line.get_ydata()[0]) for line in accuracy.lines if line.get_linestyle() == ":"] == [81.25, 60.0]
    assert accuracy.get_xlabel() == "average bits per weight, logarithmic"
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["1", "4"]
    assert [text.get_text() for text in loss.texts] == ["chosen: 2.00 bits"]


def test_the_legend_names_groups_and_who_binds(spent_inputs):
    figure = budget_curve(spent_inputs.budget_curve, WEIGHTS, FULL)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a.x (binds)", r"b|\$x\$", " ", "predicted", "measured", "full precision"]
    thick, thin = (line.get_linewidth() for line in figure.legends[0].get_lines()[:2])
    assert thick > 2 * thin


def changed(rows, **cells):
    return tuple({**row, **cells} for row in rows)


def test_unmeasured_budgets_have_one_axes(spent_inputs):
    rows = changed(spent_inputs.budget_curve, measured="", accuracy="")
    figure = budget_curve(rows, WEIGHTS, dict.fromkeys(FULL))
    assert len(figure.axes) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == [" ", "predicted"]


def test_nothing_left_to_lose_is_drawn_below(spent_inputs, tmp_path):
    rows = changed(spent_inputs.budget_curve, predicted="0.0", measured="-0.001")
    figure = budget_curve(rows, WEIGHTS, dict.fromkeys(FULL))
    figure.savefig(tmp_path / "a.png")
    assert len(drawn(figure.axes[1])) == 8


def test_a_pruned_model_has_a_linear_axis(spent_inputs):
    rows = tuple(row | {"avg_bits": "0.0"} if row["budget"] == "1.0" else row for row in spent_inputs.budget_curve)
    axes = budget_curve(rows, WEIGHTS, FULL).axes[-1]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("linear", "average bits per weight")


@pytest.mark.parametrize("budgets", [set(), {"chosen"}, {"chosen", "1.0"}])
def test_fewer_than_two_budgets_are_no_curve(spent_inputs, budgets):
    rows = [row for row in spent_inputs.budget_curve if row["budget"] in budgets]
    assert budget_curve(rows, WEIGHTS, FULL) is None


def test_nine_groups_look_different(spent_inputs):
    rows = [{**row, "group": f"g{i}"} for i in range(9) for row in spent_inputs.budget_curve if row["group"] == "a.x"]
    names = [f"g{i}" for i in range(9)]
    lines = budget_curve(rows, dict.fromkeys(names, 0.0), dict.fromkeys(names)).legends[0].get_lines()[:9]
    assert len({line.get_color() for line in lines}) == 9
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9


def test_a_hundred_classes_have_a_legend_beside_the_axes(spent_inputs, tmp_path):
    names = [f"class {i}" for i in range(100)]
    rows = [{**row, "group": name} for name in names for row in spent_inputs.budget_curve if row["group"] == "a.x"]
    figure = budget_curve(rows, dict.fromkeys(names, 0.01), dict.fromkeys(names))
    figure.savefig(tmp_path / "a.png")
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    assert box.x0 >= max(axes.get_window_extent().x1 for axes in figure.axes)
