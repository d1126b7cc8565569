"""Plots of the widths' reasons: what they say, read back from the drawn objects, and equal bytes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fairquant.report.widths_plots import layer_sensitivity, share_ratios, write_width_plots


def test_shares_and_their_ratios_are_drawn(inputs):
    figure = layer_sensitivity(inputs.reasons)
    shares, ratios = figure.axes[:2]
    assert shares.images[0].get_array().tolist() == [[0.5, 0.25], [0.25, 0.75], [0.25, 1e-4]]
    assert np.ma.filled(ratios.images[0].get_array(), -9).round(4).tolist() == [
        [0.415, -0.585], [-1.0, 0.585], [1.0, -9.0],
    ]  # fmt: skip
    assert [label.get_text() for label in shares.get_yticklabels()] == ["conv1", "layer1.0.conv1", "fc"]
    assert [label.get_text() for label in ratios.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ratios.texts] == ["8.0", "4.0", "4.0", "mean bits"]
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
    empty = {"importance_share:a": "0.0", "importance_share:b": ""}
    nothing = tuple({**row, **empty} for row in inputs.reasons)
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
