"""Plots of the widths' reasons: what they say, read back from the drawn objects, and equal bytes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fairquant.report.widths_plots import budget_curve, layer_sensitivity, share_ratios, write_width_plots

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


def test_shares_and_their_ratios_are_drawn(inputs):
    figure = layer_sensitivity(inputs.reasons)
    shares, ratios = figure.axes[:2]
    assert shares.images[0].get_array().tolist() == [[0.5, 0.25], [0.25, 0.75], [0.25, 1e-4]]
    assert np.ma.filled(ratios.images[0].get_array(), -9).round(4).tolist() == [
        [0.415, -0.585], [-1.0, 0.585], [1.0, -9.0],
    ]  # fmt: skip
    assert [label.get_text() for label in shares.get_yticklabels()] == ["conv1", "layer1.0.conv1", "fc"]
    assert [label.get_text() for label in ratios.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ratios.texts] == ["mean bits", "8.0", "4.0", "4.0"]
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == ["0.5×", "1×", "2×"]


def test_ratios_by_hand():
    rows = share_ratios([[0.1, 0.3], [0.0, 0.0], [None, 0.5]])
    assert rows[0] == pytest.approx([-1.0, math.log2(1.5)])
    assert [math.isnan(value) for value in rows[1] + rows[2]] == [True, True, True, False]


def test_one_group_has_no_other_to_differ_from(inputs):
    rows = [{k: v for k, v in row.items() if k != "importance_share:b"} for row in inputs.reasons]
    assert len(layer_sensitivity(rows).axes) == 2  # the map and its colour bar


def test_every_layer_and_many_groups_are_labelled(inputs):
    groups = {f"importance_share:class {k}": "0.0125" for k in range(80)}
    rows = [{"layer": f"layer{i}", "bits": "4.0"} | groups for i in range(80)]
    figure = layer_sensitivity(rows)
    assert len(figure.axes[0].get_yticklabels()) == 80
    assert len(figure.axes[0].get_xticklabels()) == 40


def test_no_importance_at_all_can_be_drawn(inputs, tmp_path):
    nothing = changed(inputs.reasons, **{"importance_share:a": "0.0", "importance_share:b": ""})
    assert list(write_width_plots(dataclasses.replace(inputs, reasons=nothing), tmp_path)) == ["layer_sensitivity.png"]


def test_plots_that_can_be_drawn_are_written_and_equal(spent_inputs, inputs, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        texts = write_width_plots(spent_inputs, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == set(texts) == {"bit_budget_curve.png", "layer_sensitivity.png"}
    assert texts["layer_sensitivity.png"] == "Each layer's share of the importance of all weights to each group"
    assert all(b"matplotlib" not in data.lower() for data in written[0].values())
