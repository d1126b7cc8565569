"""The CIFAR residual networks: the paper's counts, shapes and shortcuts."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.families import cifar
from fairquant.models.layers import quantizable_layers
from fairquant.models.trace import trace

MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
"""Parameters by He et al. 2016, table 6."""
TEN = tuple(f"c{index}" for index in range(10))


def test_the_names_are_nobody_elses():
    assert cifar.names() == sorted(MILLIONS)
    assert not {name for name in MILLIONS if timm.is_model(name)} | (
        set(MILLIONS) & set(torchvision.models.list_models())
    )


@pytest.mark.parametrize("name", MILLIONS)
def test_depth_and_parameters_are_the_papers(make_spec, name):
    model = build(make_spec(name, classes=TEN), seed=0)
    assert len(quantizable_layers(model)) == int(name.removeprefix("resnet"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1 if name == "resnet110" else 2) == MILLIONS[name]


def test_macs_by_formula(make_spec):
    spec = make_spec("resnet20", classes=TEN)
    macs = describe(build(spec, seed=0), spec)["macs"]
    first, stage = 1024 * 16 * 27, 1024 * 16 * 16 * 9  # halving the side and doubling the channels keeps the product
    assert sum(macs.values()) == first + 6 * stage + 2 * (stage // 2 + 5 * stage) + 640
    assert macs["layer2.0.conv1"] == stage // 2 and macs["linear"] == 640


def test_shortcuts_are_every_second_pixel_between_zeros(make_spec):
    """With batch norm's factor at 0 a block is its shortcut."""
    block = build(make_spec("resnet20"), seed=0).eval().layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 7, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()


@pytest.mark.parametrize("size", [8, 32, 33, 64])
def test_any_size_trains_and_traces(make_spec, size):
    model = build(make_spec("resnet20", size=size), seed=0)
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        assert torch.equal(trace(model)(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": 7}, "^data.image_size: got 7 with model.name 'resnet20'; allowed: 8 or more$"),
        (
            {"weights": "imagenet"},
            "^model.weights: got 'imagenet', which does not exist for 'resnet20'; allowed: none, a",
        ),
    ],
)
def test_mistakes_are_one_line(make_spec, arguments, text):
    weights = arguments.pop("weights", "none")
    with pytest.raises(UserError, match=text):
        build(make_spec("resnet20", **arguments), weights=weights, seed=0)
