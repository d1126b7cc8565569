"""Quantizers on models: every kind of layer, evaluation's kept copy, mistakes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d, StdConv2dSame
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import ArtifactError, UserError
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import (
    bitmap_of,
    latent_weights,
    quantize_model,
    quantizers,
    refresh_scales,
    scale_tables,
)
from fairquant.quantize.fake_quant import fake_quantize


def by_hand(model: nn.Module, bits: BitMap) -> nn.Module:
    """Return a copy whose weights are replaced by absmax-quantized ones."""
    model = copy.deepcopy(model)
    for name, layer in quantizable_layers(model).items():
        weight = layer.weight.detach()
        width = torch.from_numpy(bits.broadcastable(name, tuple(weight.shape)).astype(np.int64))
        dims = tuple(range(weight.dim())) if bits.granularity == "per_tensor" else tuple(range(1, weight.dim()))
        clip = weight.abs().amax(dims, keepdim=True)
        delta = clip / (2.0 ** (width - 1) - 1).clamp_min(0.5)
        ones = (width == 1).expand(weight.shape)
        mean = (weight.abs().double() * ones).sum(dims, keepdim=True) / ones.sum(dims, keepdim=True).clamp_min(1)
        delta = torch.where(width == 1, mean.float(), delta)
        layer.weight.data = fake_quantize(weight, width, delta)
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_and_evaluation_use_the_quantized_weight(network, random_bits, granularity, channels_last):
    model = network()
    bits = random_bits(model, granularity)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    expected = by_hand(model, bits)
    quantize_model(model, bits, scale="absmax")
    images = torch.randn(4, 3, 8, 8)
    for mode in (True, False):
        model.train(mode), expected.train(mode)
        assert torch.equal(model(images), expected(images))
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))


class Zoo(nn.Module):
    """One layer of each kind that computes with its weight in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.standardised = nn.Sequential(StdConv2d(3, 8, 3), StdConv2dSame(8, 8, 3), ScaledStdConv2d(8, 8, 3))
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.reflected(self.standardised(x))).flatten(2).mT
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_every_subclass_works(random_bits, granularity, scale):
    torch.manual_seed(0)
    model = Zoo()
    bits = random_bits(model, granularity, widths=(2, 4, 8))
    assert "attention.out_proj" in bits.layers
    plain = by_hand(model, bits)
    quantize_model(model, bits, scale=scale)
    images = torch.randn(2, 3, 14, 14)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval(), plain.eval()
    with torch.no_grad():
        result = model(images)
        assert torch.isfinite(result).all()
        if scale == "absmax":
            torch.testing.assert_close(result, plain(images))
    assert isinstance(model.reflected, nn.Conv2d) and isinstance(model.standardised[0], StdConv2d)


def test_32_bits_change_nothing(network):
    model = network().eval()
    images = torch.randn(2, 3, 8, 8)
    expected = model(images)
    quantize_model(model, BitMap.filled(dict.fromkeys(quantizable_layers(model), ()), 32))
    assert torch.equal(model(images), expected)
    assert all(quantizer.untouched for quantizer in quantizers(model).values())


class TestKeptCopy:
    @pytest.fixture
    def model(self, network, random_bits, granularity, scale):
        model = network()
        quantize_model(model, random_bits(model, granularity), scale=scale)
        return model.eval()

    @staticmethod
    def fresh(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Evaluate without any kept copy."""
        return copy.deepcopy(model)(images).detach()

    def test_is_used(self, model):
        layer = model[0]
        with torch.no_grad():
            assert layer.weight is layer.weight
        assert layer.weight.requires_grad

    def test_follows_every_change(self, model, network):
        images = torch.randn(4, 3, 8, 8)
        other = {name: value * 1.5 for name, value in model.state_dict().items() if "weight.original" in name}

        def train_step() -> None:
            model.train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
            model(images).square().sum().backward()
            optimizer.step()
            model.eval()

        def change_in_place() -> None:
            with torch.no_grad():
                next(iter(latent_weights(model).values())).mul_(-3)

        def replace_data() -> None:
            weight = next(iter(latent_weights(model).values()))
            weight.data = weight.data + 1.0

        changes = {
            "training step": train_step,
            "in place": change_in_place,
            "data": replace_data,
            "load": lambda: model.load_state_dict(other, strict=False),
            "assign": lambda: model.load_state_dict(copy.deepcopy(other), strict=False, assign=True),
            "refresh": lambda: refresh_scales(model),
            "layout": lambda: model.to(memory_format=torch.channels_last),
            "dtype": lambda: model.double(),
        }
        for name, change in changes.items():
            with torch.no_grad():
                model(images.to(model[1].weight.dtype))  # keep copies
            change()
            inputs = images.to(model[1].weight.dtype)
            with torch.no_grad():
                torch.testing.assert_close(model(inputs), self.fresh(model, inputs), msg=name)

    def test_made_in_inference_mode_serves_autograd(self, model):
        images = torch.randn(2, 3, 8, 8)
        with torch.inference_mode():
            expected = model(images).clone()
        model.requires_grad_(False)
        images.requires_grad_()
        out = model(images)
        out.sum().backward()
        assert torch.equal(out.detach(), expected) and images.grad is not None

    def test_copies_are_independent(self, model):
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            before = model(images)
            twin = copy.deepcopy(model)
            next(iter(latent_weights(twin).values())).add_(1)
            assert torch.equal(model(images), before)
            assert not torch.equal(twin(images), before)


@pytest.mark.parametrize("scale_name", ["mse", "percentile"])
def test_epoch_scales_change_at_refresh_only(network, random_bits, scale_name):
    model = network()
    quantize_model(model, random_bits(model, "per_channel", widths=(2, 4)), scale=scale_name)
    before = {name: table.clone() for name, table in scale_tables(model).items()}
    with torch.no_grad():
        for weight in latent_weights(model).values():
            weight.mul_(2)
    model(torch.randn(2, 3, 8, 8))
    assert all(torch.equal(table, before[name]) for name, table in scale_tables(model).items())
    refresh_scales(model)
    for name, table in scale_tables(model).items():
        torch.testing.assert_close(table, before[name] * 2)


def test_step_and_learned_scales_are_not_refreshed(network, random_bits):
    model = network()
    quantize_model(model, random_bits(model, "per_channel"), scale="lsq")
    before = scale_tables(model)
    with torch.no_grad():
        for weight in latent_weights(model).values():
            weight.mul_(2)
    refresh_scales(model)
    assert all(torch.equal(table, before[name]) for name, table in scale_tables(model).items())


def test_table_shapes_and_values(network, random_bits):
    expected = {"per_tensor": (1, 1), "per_channel": (8, 1), "per_param": (8, 3)}
    for kind, shape in expected.items():
        model = network()
        bits = random_bits(model, kind, widths=(2, 4, 32))
        quantize_model(model, bits, scale="absmax")
        table = scale_tables(model)["0"]
        assert table.shape == shape
        if kind == "per_param":
            clip = latent_weights(model)["0"].detach().abs().amax((1, 2, 3))
            torch.testing.assert_close(table, torch.stack([clip, clip / 7, torch.ones(8)], 1))


def test_bitmap_comes_back(network, random_bits, granularity):
    model = network()
    bits = random_bits(model, granularity)
    quantize_model(model, bits)
    back = bitmap_of(model)
    assert back.granularity == granularity and list(back.layers) == list(bits.layers)
    assert all(np.array_equal(back.layers[name], bits.layers[name]) for name in bits.layers)
    assert "granularity=" + granularity in repr(model)


class TestMistakes:
    def test_layers_differ(self, network, random_bits):
        bits = random_bits(network(), "per_channel")
        less = BitMap("per_channel", {name: bits.layers[name] for name in list(bits.layers)[1:]})
        more = BitMap("per_channel", {**bits.layers, "ghost": np.zeros(3, np.uint8)})
        with pytest.raises(ArtifactError, match=r"^bit map: got no widths for layer 0; allowed: widths for each layer"):
            quantize_model(network(), less)
        with pytest.raises(ArtifactError, match=r"^bit map: got widths for layer ghost; allowed: widths for each"):
            quantize_model(network(), more)

    def test_shape_differs(self, network, random_bits):
        bits = random_bits(network(), "per_channel")
        wrong = BitMap("per_channel", {**bits.layers, "0": np.zeros(7, np.uint8)})
        with pytest.raises(
            ArtifactError, match=r"^bit map of layer 0: got shape \(7,\); allowed: \(8,\) \(per_channel"
        ):
            quantize_model(network(), wrong)

    def test_twice(self, network, random_bits):
        model = network()
        bits = random_bits(model, "per_channel")
        quantize_model(model, bits)
        with pytest.raises(UserError, match="got a model that is quantized already; allowed: a full-precision model"):
            quantize_model(model, bits)

    def test_no_quantizers(self, network):
        with pytest.raises(UserError, match="got a model without quantizers"):
            bitmap_of(network())

    def test_bad_tables(self, network, random_bits):
        model = network()
        bits = random_bits(model, "per_channel")
        tables = {name: torch.ones(1, 1) for name in bits.layers}
        with pytest.raises(ArtifactError, match=r"^layer 0: step sizes: got shape \(1, 1\); allowed: \(8, 1\)"):
            quantize_model(model, bits, tables=tables)
        tables["0"] = torch.full((8, 1), float("nan"))
        with pytest.raises(ArtifactError, match=r"^layer 0: step sizes: got a value that is not positive and finite"):
            quantize_model(network(), bits, tables=tables)
