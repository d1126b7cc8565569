"""Codes of layers beside the weight that the parametrized layer computes, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
from fairquant.errors import UserError
from fairquant.export.codes import CodedLayer, coded_layers
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import quantize_model

WIDTHS = (0, 1, *range(2, 17), 32)
MIXES = [*((width,) for width in WIDTHS), (0, 1, 2, 4, 8, 32), (2, 4, 8), (0, 32), WIDTHS]
BOOK_MIXES = [(0,), (1,), (5,), (8,), (32,), (0, 1, 3, 8, 32)]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 6, 1, bias=False), nn.Linear(6, 5))
        return nn.Sequential(*layers).eval()


def bitmap(model: nn.Module, granularity: Granularity, widths: tuple[int, ...], **changes: object) -> BitMap:
    random = np.random.default_rng(len(widths))
    shapes = {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}
    drawn = {name: random.choice(widths, size=unit_shape(granularity, shape)) for name, shape in shapes.items()}
    layers = {name: np.asarray(values, np.uint8) for name, values in drawn.items()}
    return BitMap(granularity, layers, **changes)  # type: ignore[arg-type]


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: layer.weight.detach().numpy().copy() for name, layer in quantizable_layers(model).items()}


def check(layer: CodedLayer, bits: np.ndarray, weight: np.ndarray) -> None:
    """What holds for every layer, whatever it was quantized by."""
    assert layer.weight().dtype == np.float32 and np.array_equal(layer.weight(), weight)
    assert layer.codes.dtype == np.uint16 and layer.codes.shape == weight.shape
    widths = np.broadcast_to(bits.reshape(bits.shape + (1,) * (weight.ndim - bits.ndim)), weight.shape)
    assert np.array_equal(layer.widths, widths)
    stored = (widths > 0) & (widths < 32)
    assert (layer.codes[~stored] == 0).all() and (weight[widths == 0] == 0).all()
    assert (layer.codes < 2.0 ** np.minimum(widths, 16)).all()
    assert np.array_equal(layer.floats, weight[widths == 32])


@pytest.mark.parametrize("widths", MIXES, ids=str)
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_grids(granularity, scheme, widths):
    model = network()
    bits = bitmap(model, granularity, widths, scheme=scheme)
    quantize_model(model, bits, scale="absmax")
    weights = weights_of(model)
    for name, layer in coded_layers(model).items():
        check(layer, bits.layers[name], weights[name])
        assert layer.codebook is None and layer.centroids.size == 0 and layer.scheme == scheme
        levels = layer.levels()
        largest = 2.0 ** (np.clip(layer.widths.astype(int), 1, 16) - 1) - 1
        grid = (layer.widths > 1) & (layer.widths < 32)
        assert set(np.unique(levels[layer.widths == 1])) <= {-1, 1}
        assert (levels[(layer.widths == 0) | (layer.widths == 32)] == 0).all()
        if scheme == "symmetric":
            assert layer.zero is None and (np.abs(levels)[grid] <= largest[grid]).all()
            assert np.array_equal(levels[grid], layer.codes[grid] - largest[grid])
        else:
            assert layer.zero is not None and layer.zero.shape == layer.delta.shape
            assert (np.abs(levels) < 2.0 ** layer.widths.clip(1, 16)).all()


@pytest.mark.parametrize("widths", BOOK_MIXES, ids=str)
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_codebooks(granularity, per, widths):
    model = network()
    bits = bitmap(model, granularity, widths, codebook=per)
    quantize_model(model, bits)
    weights = weights_of(model)
    for name, layer in coded_layers(model).items():
        check(layer, bits.layers[name], weights[name])
        assert layer.codebook == per and layer.zero is None and layer.delta.shape == (0, 0)
        coded = (layer.widths > 0) & (layer.widths < 32)
        assert np.isin(weights[name][coded], layer.centroids).all()
        with pytest.raises(UserError, match=rf"layer {name}: got codebooks; allowed: weights on a grid"):
            layer.levels()


@pytest.mark.parametrize("scale", ["lsq", "mse", "percentile", "weighted"])
def test_scales_that_clip(scale):
    model = network()
    bits = bitmap(model, "per_param", (0, 1, 2, 3, 8, 32))
    quantize_model(model, bits, scale=scale, percentile=90.0)
    weights = weights_of(model)
    for name, layer in coded_layers(model).items():
        check(layer, bits.layers[name], weights[name])


def test_the_order_in_memory_does_not_matter():
    model = network()
    quantize_model(model, bitmap(model, "per_param", (2, 4, 8)))
    plain = coded_layers(model)
    other = coded_layers(model.to(memory_format=torch.channels_last))
    for name, layer in plain.items():
        assert np.array_equal(layer.codes, other[name].codes) and other[name].codes.flags.c_contiguous
        assert np.array_equal(layer.weight(), other[name].weight())


def linear(weight: list[list[float]]) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(weight[0]), len(weight)))
    model[0].weight.data = torch.tensor(weight)
    return model


def only_layer(model: nn.Module, bits: BitMap, **given: object) -> CodedLayer:
    quantize_model(model, bits, **given)  # type: ignore[arg-type]
    return coded_layers(model)["0"]


def u8(*values: object) -> np.ndarray:
    return np.array(values, np.uint8)


class TestByHand:
    def test_symmetric(self):
        """2 bits, Δ ½: −1, 0, 1 are stored as 0, 1, 2; 1 bit, Δ ¾: the sign; 3 bits, Δ 1: −3 … 3 as 0 … 6."""
        model = linear([[0.6, -0.4, 0.2, -9.0], [0.1, -0.2, 0.0, 3.0], [2.4, -3.0, 0.4, -0.6], [7.0, 8.0, 9.0, 1.5]])
        table = torch.tensor([[0.5], [0.75], [1.0], [1.0]])
        layer = only_layer(model, BitMap("per_channel", {"0": u8(2, 1, 3, 32)}), scale="lsq", tables={"0": table})
        assert layer.codes.tolist() == [[2, 0, 1, 0], [1, 0, 1, 1], [5, 0, 3, 2], [0, 0, 0, 0]]
        assert layer.levels().tolist() == [[1, -1, 0, -1], [1, -1, 1, 1], [2, -3, 0, -1], [0, 0, 0, 0]]
        assert layer.weight()[:3].tolist() == [[0.5, -0.5, 0, -0.5], [0.75, -0.75, 0.75, 0.75], [2, -3, 0, -1]]
        assert layer.floats.tolist() == [7.0, 8.0, 9.0, 1.5] == layer.weight()[3].tolist()

    def test_asymmetric(self):
        """2 bits, Δ ½, z 1: −½, 0, ½, 1 are stored as 0, 1, 2, 3."""
        given = {"tables": {"0": torch.tensor([[0.5]])}, "zero_points": {"0": torch.tensor([[1]], dtype=torch.int32)}}
        bits = BitMap("per_tensor", {"0": np.array(2, np.uint8)}, scheme="asymmetric")
        layer = only_layer(linear([[-0.4, 0.1], [0.6, 5.0]]), bits, scale="mse", **given)
        assert layer.codes.tolist() == [[0, 1], [2, 3]] and layer.levels().tolist() == [[-1, 0], [1, 2]]
        assert layer.weight().tolist() == [[-0.5, 0.0], [0.5, 1.0]]

    def test_a_width_for_each_weight(self):
        """Columns of the table are the widths 0, 2, 4 and 32 of the layer."""
        table = torch.tensor([[1.0, 0.5, 0.25, 1.0]])
        bits = BitMap("per_param", {"0": u8([0, 2, 4, 32])})
        layer = only_layer(linear([[5.0, 0.6, -0.6, 0.123]]), bits, scale="lsq", tables={"0": table})
        assert layer.codes.tolist() == [[0, 2, 7 - 2, 0]]
        assert layer.weight().tolist() == [[0.0, 0.5, -0.5, np.float32(0.123)]]

    def test_codebooks(self):
        """Channels 0 and 2 share four values; channel 1 is the weight itself."""
        codes, centroids = (
            torch.tensor([[1, 0], [0, 0], [2, 0]], dtype=torch.uint8),
            torch.tensor([-1.0, 2.0, 0.5, 7.0]),
        )
        bits = BitMap("per_channel", {"0": u8(2, 32, 2)}, codebook="tensor")
        layer = only_layer(linear([[9.0, 9.0], [0.25, 4.0], [9.0, 9.0]]), bits, books={"0": (codes, centroids)})
        assert layer.weight().tolist() == [[2.0, -1.0], [0.25, 4.0], [0.5, -1.0]]
        assert layer.floats.tolist() == [0.25, 4.0] and layer.centroids.tolist() == [-1.0, 2.0, 0.5, 7.0]


def test_a_full_precision_model_is_refused():
    with pytest.raises(UserError, match="got a model without quantizers; allowed: what the quantize stage writes"):
        coded_layers(network())
