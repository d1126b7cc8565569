"""Which tensors have a point, what it is called, and who reads it: by hand on small networks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fairquant.models.trace import trace
from fairquant.quantize.points import Points, find_points


def points_of(model: nn.Module) -> Points:
    return find_points(trace(model))


def read(points: Points) -> dict[str, list[str]]:
    """Point → the names of the nodes that read it."""
    return {point.name: [reader.name for reader, _ in point.reads] for point in points.points}


class Net(nn.Module):
    """Layers that the forward of each test puts together."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.compute = forward
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.same, self.drop, self.act = nn.Identity(), nn.Dropout(0.5), nn.ReLU()
        self.fc = nn.Linear(3, 2)
        self.position = nn.Parameter(torch.zeros(3, 1, 1))
        self.register_buffer("mask", torch.zeros(3, 1, 1))
        self.maxpool, self.avgpool = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def case(name, forward, expected, inputs=None):
    return pytest.param(forward, expected, inputs, id=name)


def reused(m: Net, x: Tensor) -> Tensor:
    return m.a(m.act(m.a(x)))


def in_place(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    return y.add_(m.b(x))


def residual_before_pooling(m: Net, x: Tensor) -> Tensor:
    x = m.maxpool(m.act(m.a(x)))
    return m.fc(m.avgpool(m.b(x) + x).flatten(1))


@pytest.mark.parametrize(
    ("forward", "expected", "inputs"),
    [
        case("layers", lambda m, x: m.b(m.act(m.a(x))), {"a.input": ["a"], "b.input": ["b"]},
             {"a": ("a.input",), "b": ("b.input",)}),
        case("a tensor that two layers read", lambda m, x: m.a(x) * m.b(x), {"a.input": ["a", "b"]},
             {"a": ("a.input",), "b": ("a.input",)}),
        case("a sum of activations", lambda m, x: m.a(x) + x, {"a.input": ["a", "add"], "add.0": ["add"]}),
        case("torch.add and Tensor.add", lambda m, x: torch.add(m.act(x), m.drop(x)).add(m.b(m.act(x) * 2)),
             {"add.0": ["add"], "add.1": ["add"], "b.input": ["b"], "add_1.0": ["add_1"], "add_1.1": ["add_1"]}),
        case("in place", in_place, {"a.input": ["a", "add", "b"], "add.0": ["add"], "add_1.0": ["add_"],
                                    "add_1.1": ["add_"]}),
        case("parameters, buffers and numbers are no activations",
             lambda m, x: m.a(x) + m.position + m.mask + 1 + x.shape[0], {"a.input": ["a"]}),
        case("arithmetic on shapes", lambda m, x: m.a(x).reshape(x.shape[0] + x.size(1), -1), {"a.input": ["a"]}),
        case("a max pooling picks from a grid", lambda m, x: m.b(m.maxpool(m.act(m.a(x)))),
             {"a.input": ["a"], "maxpool.input": ["maxpool"]}, {"a": ("a.input",), "b": ("maxpool.input",)}),
        case("one after the other, reshaped", lambda m, x: m.fc(m.flat(F.max_pool2d(m.maxpool(m.a(x)), 2))),
             {"a.input": ["a"], "maxpool.input": ["maxpool"]}, {"a": ("a.input",), "fc": ("maxpool.input",)}),
        case("an average is another tensor", lambda m, x: m.fc(m.flat(m.avgpool(m.a(x)))),
             {"a.input": ["a"], "avgpool.input": ["avgpool"], "fc.input": ["fc"]}),
        case("the same tensor before and after a max pooling", residual_before_pooling,
             {"a.input": ["a"], "maxpool.input": ["maxpool"], "add.0": ["add"], "avgpool.input": ["avgpool"],
              "fc.input": ["fc"]}),
        case("functions that pool", lambda m, x: F.avg_pool2d(F.adaptive_avg_pool2d(m.a(x), 2), 2),
             {"a.input": ["a"], "adaptive_avg_pool2d.input": ["adaptive_avg_pool2d"],
              "avg_pool2d.input": ["avg_pool2d"]}),
        case("means over positions, not over samples", lambda m, x: m.a(x).mean((2, 3)) * torch.mean(x, 0) * x.mean(),
             {"a.input": ["a"], "mean.input": ["mean"]}),
        case("a tensor handed on is the same tensor", lambda m, x: m.a(x) + m.same(m.same(x)),
             {"a.input": ["a", "add"], "add.0": ["add"]}),
        case("dropout makes another", lambda m, x: m.a(x) + m.drop(x),
             {"a.input": ["a"], "add.0": ["add"], "add.1": ["add"]}),
        case("a layer used twice", reused, {"a.input": ["a"], "a.input_1": ["a_1"]}, {"a": ("a.input", "a.input_1")}),
        case("a layer used through its weight", lambda m, x: F.linear(m.act(x), weight=m.fc.weight),
             {"fc.input": ["linear"]}, {"fc": ("fc.input",)}),
        case("twice the same", lambda m, x: m.act(x) + m.act(x) * 0, {"add.0": ["add"], "add.1": ["add"]}),
    ],
)  # fmt: skip
def test_by_hand(forward, expected, inputs):
    points = points_of(Net(forward))
    assert read(points) == expected
    if inputs is not None:
        assert points.inputs == inputs


def test_functions_are_named_after_the_module_that_calls_them():
    inner = Net(lambda m, x: m.a(x) + m.drop(x) + m.b(x) + m.drop(x))
    names = list(read(points_of(nn.Sequential(inner, inner.same, inner.act))))
    assert names == ["0.a.input", "0.add.0", "0.add.1", "0.add_1.0", "0.add_1.1", "0.add_2.0", "0.add_2.1"]


def test_resnet18():
    points = points_of(torchvision.models.resnet18())
    expected = ["conv1.input", "maxpool.input"]
    for stage in range(1, 5):
        for block in range(2):
            place = f"layer{stage}.{block}"
            shared = stage == 1 and block == 0  # what the max pooling picks lies on its grid
            expected += [] if shared else [f"{place}.conv1.input"]
            expected += [f"{place}.conv2.input", f"{place}.add.0"]
            expected += [f"{place}.add.1"] if stage > 1 and block == 0 else []
    assert [point.name for point in points.points] == [*expected, "avgpool.input", "fc.input"]
    assert points.inputs["layer1.0.conv1"] == ("maxpool.input",)
    assert points.inputs["layer2.0.downsample.0"] == ("layer2.0.conv1.input",)
    assert len(points.inputs) == 21


def test_attention_inside_torchs_module_is_out_of_reach():
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=2)
    points = points_of(vit)
    block = "encoder.layers.encoder_layer_0"
    assert [point.name for point in points.points] == [
        "conv_proj.input", f"{block}.add.0", f"{block}.add.1", f"{block}.mlp.0.input", f"{block}.mlp.3.input",
        f"{block}.add_1.0", f"{block}.add_1.1", "heads.head.input",
    ]  # fmt: skip
    assert f"{block}.self_attention.out_proj" not in points.inputs
