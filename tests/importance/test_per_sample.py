"""Per-sample squares against a float64 loop of single-sample backward passes, and what is refused."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from fairquant.errors import UserError
from fairquant.importance import squares
from fairquant.importance.per_sample import PerSampleSquares
from fairquant.importance.positions import Tokens
from fairquant.models.build import build
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.models.spec import ModelSpec
from fairquant.quantize.frozen import FrozenUnits


def weights_of(model):
    """Evaluation mode with gradients for the quantizable weights alone; these by layer name."""
    weights = {name: weight_parameter(layer) for name, layer in quantizable_layers(model.eval()).items()}
    wanted = {id(weight) for weight in weights.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    return weights


def measured(model, images, labels, *, share=1.0, adder=None):
    weights = weights_of(model)
    sums = [torch.zeros_like(weight, requires_grad=False) for weight in weights.values()]
    adder = adder or PerSampleSquares(quantizable_layers(model))
    adder(sums, lambda: F.cross_entropy(model(images).float(), labels, reduction="none"), share)
    return dict(zip(weights, sums, strict=True))


def brute_force(model, images, labels):
    """The mean of squared gradients: one float64 backward pass for each sample."""
    model = copy.deepcopy(model).double()
    weights = weights_of(model)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for image, label in zip(images.double(), labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.square() / len(images)
    return sums


def batch(size=9, samples=5, channels=3):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(samples, channels, size, size, generator=generator)
    return images, torch.randint(0, 2, (samples,), generator=generator)


def assert_exact(model, images, labels):
    """Equal to 1e-3 of each value and 1e-5 of a layer's largest; below 1e-38 a float32 square is 0."""
    found, wanted = measured(model, images, labels), brute_force(model, images, labels)
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name].double(),
            value,
            rtol=1e-3,
            atol=max(1e-5 * float(value.max()), 1e-38),
            msg=lambda text, name=name: f"{name}: {text}",
        )
    return found


def head(*layers, channels, side=2):
    """``layers`` on 4-channel images of 9 pixels, then a classifier of two classes."""
    torch.manual_seed(3)
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side * side, 2))
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), *layers, nn.Tanh(), flat)


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "stride and padding": nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 1)),
    "dilation": nn.Conv2d(4, 6, 3, dilation=(2, 3), padding=2),
    "same, even kernel": nn.Conv2d(4, 6, (4, 2), padding="same", dilation=(1, 2)),
    "valid": nn.Conv2d(4, 6, 3, padding="valid", bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2),
    "depthwise, several outputs each": nn.Conv2d(4, 8, 3, groups=4, dilation=2),
    "one pixel": nn.Conv2d(4, 6, 1),
    "one pixel, stride": nn.Conv2d(4, 6, 1, stride=2),
    "one pixel, groups": nn.Conv2d(4, 6, 1, groups=2, padding=1),
    "one position": nn.Conv2d(4, 6, 9),
    "few positions": nn.Conv2d(4, 6, 8),
    "few positions, groups": nn.Conv2d(4, 6, 8, groups=2),
    "reflect": nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "circular, same": nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular"),
    "replicate, depthwise": nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate", groups=4),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, layout):
    layer = copy.deepcopy(CONVOLUTIONS[name])
    model = head(layer, channels=layer.out_channels).to(memory_format=layout)
    model[1].running_mean.normal_(0, 0.3)
    model[1].running_var.uniform_(0.5, 2)
    assert_exact(model, *batch())


@pytest.mark.parametrize("limits", [{"CACHED": 1}, {"MOST_PAIRS": 0}, {"MOST_PAIRS": 10_000, "LARGE": 1}])
@pytest.mark.parametrize("name", ["stride and padding", "groups", "few positions", "one position", "depthwise"])
def test_every_way_in_blocks_of_any_size(monkeypatch, name, limits):
    for key, value in limits.items():
        monkeypatch.setattr(squares, key, value)
    layer = copy.deepcopy(CONVOLUTIONS[name])
    assert_exact(head(layer, channels=layer.out_channels), *batch())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_many_samples_at_a_time_as_on_an_accelerator(monkeypatch, groups):
    """The branch an accelerator takes, on this machine: products of several samples in one buffer."""
    monkeypatch.setattr(squares, "at_a_time", lambda matrix, samples: 2)
    assert_exact(head(nn.Conv2d(4, 8, 3, groups=groups, padding=1), channels=8), *batch())


class Rows(nn.Module):
    """A linear layer on (samples, \\*shape, 4) features of the image."""

    def __init__(self, *shape, inplace=False):
        super().__init__()
        torch.manual_seed(5)
        self.shape, self.first, self.inner = (
            shape,
            nn.Linear(243, 4 * max(1, torch.Size(shape).numel())),
            nn.Linear(4, 6),
        )
        self.act, self.last = nn.ReLU(inplace=inplace), nn.Linear(6, 2)

    def forward(self, images):
        tokens = torch.tanh(self.first(images.flatten(1))).reshape(len(images), *self.shape, 4)
        return self.last(self.act(self.inner(tokens)).reshape(len(images), -1, 6).sum(1))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (11,), (2, 2), (3, 5), (2, 3, 2)])
def test_linear_layers_on_any_number_of_dimensions(shape, inplace):
    assert_exact(Rows(*shape, inplace=inplace), *batch())


class Windows(nn.Module):
    """Windows of an image stand in rows of their own, as window attention has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.linear, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, images):
        n = len(images)
        cut = images.reshape(n, 3, 3, 3, 9).transpose(1, 2).reshape(n * 3, 3, 3, 9)
        rows = torch.tanh(self.conv(cut)).flatten(2).transpose(1, 2)
        return self.last(torch.tanh(self.linear(rows)).reshape(n, -1, 5).mean(1))


def test_windows_of_a_sample():
    assert_exact(Windows(), *batch())


class Shared(nn.Module):
    """A convolution and a linear layer called three times each, one call being of no use to the loss."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.linear, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3), nn.Linear(3, 2)
        self.size = size

    def forward(self, images):
        x = torch.tanh(self.conv(F.adaptive_avg_pool2d(images, self.size)))
        x = x + self.conv(F.avg_pool2d(x, 2, ceil_mode=True)).mean((2, 3), keepdim=True)
        self.conv(x), self.linear(images.new_ones(len(x), 3))
        pooled = x.mean((2, 3))
        return self.last(torch.tanh(self.linear(torch.tanh(self.linear(pooled)))))


@pytest.mark.parametrize("size", [2, 9])
def test_a_layer_called_several_times_adds_up_before_squaring(size):
    found = assert_exact(Shared(size), *batch())
    assert all(bool(value.any()) for value in found.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("squeezenet1_1", 48), ("mobilenet_v2", 32), ("efficientnet_b0", 32),
     ("deit_tiny_patch16_224", 32), ("tiny_vit_5m_224", 32), ("tf_mobilenetv3_small_minimal_100", 33)],
)  # fmt: skip
def test_whole_networks(name, size):
    model = build(ModelSpec(name, ("a", "b"), size, (0.5,) * 3, (0.25,) * 3), seed=0)
    images, labels = batch(size, samples=2)
    assert_exact(model.to(memory_format=torch.channels_last), images, labels)


def test_one_sample_by_hand():
    """logits (0, 0) and label 0: δ = (−½, ½), G = δ xᵀ, squared and halved by the share."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    found = measured(model, torch.tensor([[3.0, -4.0]]), torch.tensor([0]), share=0.5)
    assert found["0"].tolist() == [[1.125, 2.0], [1.125, 2.0]]


def test_two_positions_by_hand():
    """G = δ(x_1 + x_2)ᵀ = (−½, ½)ᵀ(4, −2), squared: 4 and 1; the shares of two batches add up."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    tokens = torch.tensor([[[3.0, -4.0], [1.0, 2.0]]])

    def losses():
        return F.cross_entropy(model(tokens).sum(1), torch.tensor([0]), reduction="none")

    weights_of(model)
    sums, adder = [torch.zeros(2, 2)], PerSampleSquares(quantizable_layers(model))
    adder(sums, losses, 1)
    adder(sums, losses, 2)
    assert sums[0].tolist() == [[12.0, 3.0], [12.0, 3.0]]


def test_samples_alone_or_together_give_the_same():
    images, labels = batch(samples=8)
    model = head(nn.Conv2d(4, 6, 3), channels=6)
    together = measured(model, images, labels)
    alone = [measured(model, images[i : i + 1], labels[i : i + 1], share=1 / 8) for i in range(8)]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(one[name] for one in alone), rtol=1e-5, atol=1e-9)


def test_positions_that_cancel_leave_nothing_below_zero():
    """δ(a_1 + a_2) with a_2 near −a_1: the pairs' terms cancel to rounding errors of either sign."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(64, 1, 8, generator=generator)
    values = torch.cat([row, -row * (1 + 1e-6 * torch.randn(64, 1, 8, generator=generator))], 1)
    total = torch.zeros(5, 8)
    squares.add_squares(total, [Tokens(values, torch.randn(64, 1, 5, generator=generator).expand(64, 2, 5), 64)], 1.0)
    assert bool((total >= 0).all())
    assert float(total.max()) < 1e-4


def test_a_model_without_a_gradient_adds_nothing():
    model = nn.ModuleDict({"spare": nn.Linear(3, 2)})
    model.forward = lambda images: images.flatten(1)[:, :2]
    assert not measured(model, *batch())["spare"].any()


def test_bfloat16_passes_are_squared_in_float32():
    model = head(nn.Conv2d(4, 6, 3), channels=6)
    images, labels = batch()
    exact = measured(model, images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = measured(model, images, labels)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert torch.corrcoef(torch.stack([value.flatten(), rough[name].flatten()]))[0, 1] > 0.98


class Cubed(nn.Module):
    def forward(self, weight):
        return weight**3


class Mixed(nn.Module):
    def forward(self, weight):
        return weight / weight.norm()


def parametrized(parametrization):
    model = head(nn.Conv2d(4, 6, 3), channels=6)
    parametrize.register_parametrization(model[3], "weight", parametrization)
    return model


def test_elementwise_parametrizations_count_with_their_slope():
    found = assert_exact(parametrized(Cubed()), *batch())
    assert bool(found["3"].any())


def test_frozen_units_are_worth_nothing():
    model = head(nn.Conv2d(4, 6, 3), channels=6)
    units = FrozenUnits(model[3].weight.detach(), (6,), method="absmax", percentile=99.9)
    bits = torch.tensor([4, 32, 4, 32, 32, 32], dtype=torch.uint8)
    units.freeze(model[3].weight.detach(), bits)
    parametrize.register_parametrization(model[3], "weight", units)
    found = assert_exact(model, *batch())["3"]
    assert not found[bits == 4].any()
    assert bool(found[bits == 32].any())


class Everything(nn.Module):
    def forward(self, weight):
        return torch.ones_like(weight)


def test_a_weight_that_is_replaced_as_a_whole_is_worth_nothing():
    assert not measured(parametrized(Everything()), *batch())["3"].any()


def refusal(model, *given):
    with pytest.raises(UserError) as error:
        measured(model, *(given or batch()))
    return str(error.value)


def test_a_parametrization_that_mixes_weights_is_refused():
    assert refusal(parametrized(Mixed())) == (
        "importance: layer '3': got a parametrization that mixes weights; allowed for per-sample gradients: "
        "one that takes each weight by itself"
    )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.last = nn.MultiheadAttention(9, 3, batch_first=True), nn.Linear(9, 2)

    def forward(self, images):
        rows = images.flatten(1, 2)
        return self.last(self.attn(rows, rows, rows, need_weights=False)[0].mean(1))


class Standardized(nn.Conv2d):
    def forward(self, images):
        return F.conv2d(images, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("model", "name"), [(Attention(), "attn.out_proj"), (head(Standardized(4, 6, 3), channels=6), "3")]
)
def test_weights_used_elsewhere_or_changed_are_refused(model, name):
    assert refusal(model) == (
        f"importance: layer {name!r}: got a weight used outside conv2d and linear, or changed on the way there; "
        "allowed for per-sample gradients: weights that these read as they are stored or parametrized"
    )


class Changed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(243, 4), nn.Linear(4, 2)

    def forward(self, images):
        x = self.first(images.flatten(1))
        logits = self.second(x)
        x.mul_(2)
        return logits


def test_an_input_changed_after_it_was_read_is_refused():
    assert refusal(Changed()) == (
        "importance: layer 'second': got an input changed in place after the layer read it; "
        "allowed for per-sample gradients: inputs left as they are"
    )


class Centred(nn.Module):
    """Samples see each other: a batch statistic."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(243, 4), nn.Linear(4, 2)

    def forward(self, images):
        x = self.first(images.flatten(1))
        return self.last(x - x.mean(0))


class TokensFirst(nn.Module):
    """(tokens, samples, features): rows of a sample are apart."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(9, 4), nn.Linear(4, 2)

    def forward(self, images):
        return self.last(torch.tanh(self.inner(images[:, 0, :8].transpose(0, 1))).mean(0))


@pytest.mark.parametrize(("model", "name"), [(Centred(), "first"), (TokensFirst(), "inner")])
def test_samples_that_see_each_other_or_are_out_of_order_are_refused(model, name):
    assert refusal(model, *batch(samples=4)) == (
        f"importance: layer {name!r}: got samples that see each other or are out of order; "
        "allowed for per-sample gradients: independent ones in order"
    )


class Table(nn.Module):
    """A layer that reads no image: three rows whatever the batch."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, images):
        return self.last(images.mean((1, 2, 3))[:, None] * self.table(torch.eye(3)).sum(0))


def test_rows_that_are_not_those_of_samples_are_refused():
    assert refusal(Table()) == (
        "importance: layer 'table': got 3 rows for 5 samples; "
        "allowed for per-sample gradients: samples along the first dimension"
    )


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, images):
        return torch.stack([self.inner(image.mean((1, 2))) for image in images])


def test_layers_called_for_each_sample_apart_are_refused():
    assert refusal(Alone()) == (
        "importance: layer 'inner': got an input of shape (3,); "
        "allowed for per-sample gradients: samples along the first dimension"
    )


def test_the_graph_is_freed_without_the_garbage_collector():
    model, kept = head(nn.Conv2d(4, 6, 3), channels=6), []
    model[4].register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    gc.disable()
    try:
        measured(model, *batch())
        assert kept[0]() is None
    finally:
        gc.enable()
