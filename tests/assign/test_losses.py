"""Predicted losses against plain float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.assign import losses
from fairquant.assign.losses import (
    Rounding,
    deltas,
    grids,
    increase_of,
    layer_losses,
    sensitivity,
    step_sizes,
    total_by_layer,
)
from fairquant.config import Config
from fairquant.errors import UserError
from fairquant.quantize.quantizer import WeightQuantizer
from tests.assign.small import importance_maps, loss_table, one_loss, weights

METRICS = plugins.names("importance")
SCALES = plugins.names("scale")
WIDTHS = (0, 1, 2, 4, 8, 32)
SHAPES = {"conv": (5, 3, 3, 3), "fc": (4, 7)}


def rounding(granularity="per_channel", scale="mse", widths=WIDTHS):
    return Rounding(scale, 99.0, granularity, widths)


def predicted(name, metric, how):
    weight, maps = weights(SHAPES)[name], importance_maps(SHAPES, metric=metric).layers[name]
    return layer_losses(weight, maps, how, increase_of(metric), step_sizes(weight, how))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_equal_to_a_plain_loop(metric, scale, granularity):
    config = Config(granularity=granularity, quantize={"scale": scale, "percentile": 99.0})
    for name in SHAPES:
        found = predicted(name, metric, rounding(granularity, scale))
        weight, maps = weights(SHAPES)[name], importance_maps(SHAPES, metric=metric).layers[name]
        expected = loss_table(weight, maps, config, WIDTHS, metric)
        assert found.losses.shape == expected.shape == (3, 1 if granularity == "per_tensor" else len(weight), 6)
        np.testing.assert_allclose(found.losses, expected, rtol=2e-5, atol=1e-9)
        assert (found.losses[:, :, -1] == 0).all()  # 32 bits are the weight itself


@pytest.mark.parametrize("block", [1, 5, 40, 1000])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_the_size_of_a_block_does_not_matter(block, granularity, monkeypatch):
    whole = predicted("conv", "fisher", rounding(granularity))
    monkeypatch.setattr(losses, "BLOCK", block)
    parts = predicted("conv", "fisher", rounding(granularity))
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    np.testing.assert_array_equal(parts.steps, whole.steps)


@pytest.mark.parametrize("block", [1, 7, 24, 1 << 20])
def test_blocks_cover_every_weight_once(block, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", block)
    for units, length, widths in ((5, 9, 3), (1, 40, 6), (12, 1, 1)):
        seen = np.zeros((units, length), dtype=int)
        for part in losses._blocks(units, length, widths):
            seen[part] += 1
            assert seen[part].size * widths <= max(block, widths)
        assert (seen == 1).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_what_is_predicted_is_what_a_quantizer_does(scale, granularity):
    """The step sizes and perturbations are those of the layer once it is quantized at that width."""
    weight, how = weights(SHAPES)["conv"], rounding(granularity, scale)
    steps = step_sizes(weight, how)
    assert steps.dtype == np.float32 and steps.shape == (1 if granularity == "per_tensor" else 5, 6)
    for index, (width, delta) in enumerate(zip(WIDTHS, deltas(how.rows(weight), WIDTHS, steps), strict=True)):
        bits = torch.full((5,) if granularity == "per_channel" else (), width, dtype=torch.uint8)
        quantizer = WeightQuantizer(torch.from_numpy(weight), bits, method=scale, percentile=99.0)
        np.testing.assert_array_equal(quantizer.table(torch.from_numpy(weight)).numpy(), steps[:, [index]])
        rounded = quantizer(torch.from_numpy(weight)).detach().numpy()
        np.testing.assert_array_equal(delta.reshape(weight.shape), rounded - weight)


@pytest.mark.parametrize("scale", ["absmax", "mse", "percentile"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_what_is_predicted_is_what_a_quantizer_with_zero_points_does(scale, granularity):
    weight = weights(SHAPES)["conv"] + np.float32(0.5)
    how = Rounding(scale, 99.0, granularity, WIDTHS, "asymmetric")
    steps, zeros = grids(weight, how)
    assert steps.shape == zeros.shape == (1 if granularity == "per_tensor" else 5, 6)
    maps = importance_maps(SHAPES).layers["conv"]
    found = layer_losses(weight, maps, how, increase_of("fisher"), steps, zeros)
    plain = layer_losses(weight, maps, rounding(granularity, scale), increase_of("fisher"),
                         step_sizes(weight, rounding(granularity, scale)))  # fmt: skip
    for index, width in enumerate(WIDTHS):
        bits = torch.full((5,) if granularity == "per_channel" else (), width, dtype=torch.uint8)
        quantizer = WeightQuantizer(torch.from_numpy(weight), bits, method=scale, percentile=99.0, scheme="asymmetric")
        delta = quantizer(torch.from_numpy(weight)).detach().double().numpy() - weight
        expected = (0.5 * maps.astype(np.float64) * delta**2).reshape(3, len(steps), -1).sum(2)
        np.testing.assert_allclose(found.losses[:, :, index], expected, rtol=2e-5, atol=1e-9)
        assert (found.losses[:, :, index] == plain.losses[:, :, index]).all() == (width in (0, 1, 32))


def test_per_param_rows_are_channels():
    weight = weights(SHAPES)["conv"]
    assert rounding("per_param").rows(weight).shape == (5, 27)
    np.testing.assert_array_equal(
        step_sizes(weight, rounding("per_param")), step_sizes(weight, rounding("per_channel"))
    )


class TestIncrease:
    @pytest.mark.parametrize("metric", METRICS)
    def test_by_hand(self, metric):
        delta, weight = np.float32([0.5, -1.5, 0, 0.25]), np.float32([2, -3, 0, -0.5])
        found = increase_of(metric)(delta, weight)
        assert found.dtype == np.float32
        np.testing.assert_allclose(
            found, [one_loss(metric, 1, *pair) for pair in zip(delta.tolist(), weight.tolist(), strict=True)], rtol=1e-6
        )

    @pytest.mark.parametrize("metric", METRICS)
    def test_is_what_the_map_is_multiplied_by(self, metric):
        rng = np.random.default_rng(0)
        importance, delta, weight = (rng.random(20, dtype=np.float32) + 0.1 for _ in range(3))
        np.testing.assert_allclose(
            importance * increase_of(metric)(delta, weight),
            plugins.load("importance", metric).predicted_increase(importance, delta, weight),
            rtol=1e-6,
        )

    @pytest.mark.parametrize("metric, effect", [("fisher", 0.125), ("gradient", 0.5), ("grape", 0), ("hawq", 0)])
    def test_one_bit_moves_a_weight_of_zero(self, metric, effect):
        """Maps with w² in them know nothing about it, the others do."""
        assert increase_of(metric)(np.float32([0.5]), np.float32([0.0])).tolist() == [effect]

    @pytest.mark.parametrize("metric", METRICS)
    def test_a_weight_next_to_zero_costs_something_finite(self, metric):
        assert np.isfinite(increase_of(metric)(np.float32([0.5]), np.float32([1e-35]))).all()

    @pytest.mark.parametrize("metric", METRICS)
    @pytest.mark.parametrize("value", [0.0, 1e-35, -1e-42])
    def test_layers_with_such_weights_are_predicted(self, metric, value):
        weight = weights(SHAPES)["fc"]
        weight[1, 2:5] = value
        maps = importance_maps(SHAPES, metric=metric).layers["fc"]
        if metric in {"grape", "hawq"}:
            maps[:, 1, 2:5] = 0  # the map holds w²
        found = layer_losses(weight, maps, rounding(), increase_of(metric), step_sizes(weight, rounding()))
        expected = loss_table(weight, maps, Config(quantize={"scale": "mse"}), WIDTHS, metric)
        np.testing.assert_allclose(found.losses, expected, rtol=2e-5, atol=1e-9)


class TestSensitivity:
    def test_by_hand(self):
        """fisher ½I; gradient I/|w|; grape I/w²; hawq ½I/w²."""
        importance, weight = np.float32([4, 6, 8]), np.float32([2, -0.5, 0])
        expected = {"fisher": [2, 3, 0], "gradient": [2, 12, 0], "grape": [1, 24, 0], "hawq": [0.5, 12, 0]}
        for metric in METRICS:
            found = sensitivity(increase_of(metric), importance, weight)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[metric], rtol=1e-6)

    @pytest.mark.parametrize("metric", METRICS)
    def test_weighs_squared_errors_as_the_metric_does(self, metric):
        """f·δ² is the predicted loss, for gradient where δ = w (it is not a quadratic)."""
        rng = np.random.default_rng(1)
        importance, delta, weight = (rng.random(30, dtype=np.float32) + 0.1 for _ in range(3))
        delta = weight if metric == "gradient" else delta
        np.testing.assert_allclose(
            sensitivity(increase_of(metric), importance, weight) * delta**2,
            [one_loss(metric, *row) for row in zip(importance, delta, weight, strict=True)],
            rtol=1e-5,
        )

    @pytest.mark.parametrize("metric", METRICS)
    def test_finite_and_not_negative_for_any_weight(self, metric):
        weight = np.float32([0.0, -0.0, 1e-42, -1e-30, 1e-22, 1e-19, 1e-3, 1e18])
        for importance in (np.zeros(8, np.float32), np.full(8, 1e30, np.float32)):
            found = sensitivity(increase_of(metric), importance, weight)
            assert np.isfinite(found).all() and (found >= 0).all()

    def test_a_weighted_step_size_loses_less(self):
        weight, maps = weights(SHAPES)["conv"], importance_maps(SHAPES).layers["conv"]
        how = rounding(scale="weighted", widths=(1, 2, 3))
        f = sensitivity(increase_of("fisher"), maps.mean(axis=0), weight)
        plain, weighed = (
            layer_losses(weight, maps, how, increase_of("fisher"), step_sizes(weight, how, which)).losses.mean(axis=0)
            for which in (None, f)
        )
        assert (weighed < plain).mean() > 0.8 and weighed.sum() < plain.sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_one_line(bad):
    weight, maps = weights(SHAPES)["fc"], importance_maps(SHAPES).layers["fc"].copy()
    maps[1, 2, 3] = bad
    line = "^predicted loss: got NaN or infinity; allowed: finite importance and weights$"
    with pytest.raises(UserError, match=line), np.errstate(invalid="ignore"):
        layer_losses(weight, maps, rounding(), increase_of("fisher"), step_sizes(weight, rounding()))


def test_totals_are_exact_sums():
    table = np.random.default_rng(2).random((2, 5, 3)) * 10.0 ** np.arange(5)[:, None]
    layer = losses.LayerLosses(table, np.ones((5, 3), np.float32))
    chosen = np.array([2, 0, 1, 1, 2])
    expected = [sum(table[group, unit, chosen[unit]] for unit in range(5)) for group in range(2)]
    np.testing.assert_allclose(total_by_layer({"fc": layer}, {"fc": chosen})["fc"], expected, rtol=1e-14)
