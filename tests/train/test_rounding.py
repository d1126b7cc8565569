"""Rounding a model: quantizers, the step sizes that came with the widths, and the correction behind them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import QuantizeSection
from fairquant.errors import ArtifactError, UserError
from fairquant.quantize.attach import bitmap_of, latent_weights, quantize_model, scale_tables, zero_point_tables
from fairquant.quantize.state import plain_state
from fairquant.train.correction import correct
from fairquant.train.rounding import round_model

CPU = torch.device("cpu")
WIDTHS = {"0": np.array([0, 1, 2, 4, 8, 32], np.uint8), "5": np.array([2, 3], np.uint8)}
STEPS = {"0": np.float32([[1], [0.2], [0.3], [0.05], [0.01], [1]]), "5": np.float32([[0.1], [0.2]])}


def rounded(network, store, bits, **section):
    model = network()
    round_model(model, bits, store=store, section=QuantizeSection(**section), device=CPU, precision="fp32", seed=3)
    return model


def test_widths_are_attached_and_weights_kept(network, store):
    before = network().state_dict()
    model = rounded(network, store, BitMap("per_channel", WIDTHS), scale="mse")
    assert not any(module.training for module in model.modules())
    for name, widths in WIDTHS.items():
        np.testing.assert_array_equal(bitmap_of(model).layers[name], widths)
        assert torch.equal(latent_weights(model)[name], before[f"{name}.weight"])
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    plain = network()
    quantize_model(plain, BitMap("per_channel", WIDTHS), scale="mse")
    for name, table in scale_tables(plain).items():
        torch.testing.assert_close(scale_tables(model)[name], table, rtol=1e-6, atol=0)


@pytest.mark.parametrize("of_bits", ["symmetric", "asymmetric"])
def test_the_scheme_is_that_of_the_settings(network, store, of_bits):
    bits = BitMap("per_channel", WIDTHS, scheme=of_bits)
    model = rounded(network, store, bits, weight_scheme="asymmetric")
    plain = network()
    quantize_model(plain, BitMap("per_channel", WIDTHS, scheme="asymmetric"))
    assert bitmap_of(model).scheme == "asymmetric"
    for name, zero in zero_point_tables(plain).items():
        assert torch.equal(zero_point_tables(model)[name], zero)
    assert bitmap_of(rounded(network, store, bits)).scheme == "symmetric"


def test_step_sizes_that_came_along_are_used(network, store):
    model = rounded(network, store, BitMap("per_channel", WIDTHS, STEPS), scale="weighted")
    for name, table in scale_tables(model).items():
        np.testing.assert_array_equal(table.detach().numpy(), STEPS[name])
    assert torch.equal(model[0].weight[1].detach().abs(), torch.full((3, 3, 3), 0.2))
    with torch.no_grad():  # learned from there, without touching the bit map
        scale_tables(model)["0"].add_(1)
    assert STEPS["0"][1, 0] == np.float32(0.2)


def test_step_sizes_of_another_model_are_refused(network, store):
    steps = STEPS | {"0": STEPS["0"][:3]}
    line = r"^layer 0: step sizes: got shape \(3, 1\); allowed: \(6, 1\) \(channels, widths\)$"
    with pytest.raises(ArtifactError, match=line):
        rounded(network, store, BitMap("per_channel", WIDTHS, steps), scale="weighted")


CORRECTED = ("0.bias", "1.running_mean", "1.running_var", "5.bias")


@pytest.mark.parametrize("samples", [0, 20])
def test_batch_norm_and_biases_are_corrected_if_asked_for(network, store, samples):
    model = rounded(network, store, BitMap("per_channel", WIDTHS), scale="mse", correction_images=samples)
    before, expected = network().state_dict(), network()
    quantize_model(expected, BitMap("per_channel", WIDTHS), scale="mse")
    if samples:
        assert correct(expected.eval(), network().eval(), store, samples=20, device=CPU, seed=3) == 3
    for name in CORRECTED:
        value, other = model.state_dict()[name], expected.state_dict()[name]
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        assert torch.allclose(value, before[name], rtol=0.001) == (samples == 0), name
    for name, value in model.state_dict().items():
        if name in before and name not in CORRECTED:
            assert torch.equal(value, before[name]), name


def test_step_sizes_that_came_along_are_corrected_for(network, store):
    bits = BitMap("per_channel", WIDTHS, STEPS)
    model, plain = (rounded(network, store, bits, scale="weighted", correction_images=n) for n in (20, 0))
    expected = copy.deepcopy(plain)
    correct(expected, network().eval(), store, samples=20, device=CPU, seed=3)
    for name in CORRECTED:
        torch.testing.assert_close(model.state_dict()[name], expected.state_dict()[name], rtol=1e-5, atol=1e-6)
    for name, table in scale_tables(model).items():
        np.testing.assert_array_equal(table.detach().numpy(), STEPS[name])


def test_one_image_is_refused(network, store):
    line = "^quantize.correction_images: got 1 images; allowed: 2 or more of the train split$"
    with pytest.raises(UserError, match=line):
        rounded(network, store, BitMap("per_channel", WIDTHS), correction_images=1)


def test_full_precision_is_kept_bit_for_bit(network, store):
    before = network().state_dict()
    shapes = {"0": (6, 3, 3, 3), "5": (2, 54)}
    model = rounded(network, store, BitMap.filled(shapes, 32), correction_images=20)
    for name, value in plain_state(model).items():
        assert torch.equal(value, before[name]), name
