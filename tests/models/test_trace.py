"""The graph of a model: the model's own parts and state dict, its mode, and what cannot be followed."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fairquant.errors import UserError
from fairquant.models.layers import quantizable_layers
from fairquant.models.trace import Traced, trace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block with functional dropout, a buffer that is used and one that is not."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.second = nn.Conv2d(3, 3, 3, padding=1)  # registered before the one that runs before it
        self.first = nn.Conv2d(3, 3, 1)
        self.spare = nn.Linear(2, 2)
        self.register_buffer("shift", torch.full((3, 1, 1), 0.5))
        self.register_buffer("unused", torch.arange(3.0))
        self.register_buffer("hidden", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.first(x) + self.shift.reshape(1, 3, 1, 1), self.p, self.training)
        y[:, :, : x.shape[2]].mul_(self.hidden)
        return self.second(y) + x + torch.ones(3, 1, 1)


def small_swin() -> nn.Module:
    swin = torchvision.models.swin_transformer.SwinTransformer
    return swin([4, 4], 8, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.5, num_classes=2)


def same(first: nn.Module, second: nn.Module, images: Tensor = IMAGES) -> bool:
    """Compare two models bit for bit, with the same random numbers."""
    outputs = []
    for model in (first, second):
        torch.manual_seed(3)
        outputs.append(model(images))
    return torch.equal(*outputs)


@pytest.mark.parametrize("make", [Block, small_swin], ids=["block", "swin"])
class TestModel:
    def test_everything_is_the_models_own_in_its_order(self, make):
        model = make()
        graph = trace(model)
        assert list(graph.state_dict()) == list(model.state_dict())
        assert [(n, id(p)) for n, p in graph.named_parameters()] == [(n, id(p)) for n, p in model.named_parameters()]
        assert all(value is dict(model.named_buffers())[name] for name, value in graph.named_buffers()
                   if "constant" not in name)  # fmt: skip
        assert list(quantizable_layers(graph)) == list(quantizable_layers(model))

    @pytest.mark.parametrize("training", [True, False])
    def test_it_computes_what_the_model_does_in_both_modes(self, make, training):
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model = make().train(training)
        graph = trace(model)
        assert graph.training == training
        assert same(graph, model, images)
        assert same(graph.train(not training), model.train(not training), images)

    def test_a_copy_is_whole_and_its_own(self, make):
        model = make().eval()
        graph = trace(model)
        graph.note = "kept"
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        twin = copy.deepcopy(graph)
        assert isinstance(twin, Traced) and twin.note == "kept" and list(twin.state_dict()) == list(graph.state_dict())
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in graph.parameters()}
        assert same(twin, graph, images)
        with torch.no_grad():
            next(iter(twin.parameters())).add_(1)
        assert not same(twin, graph, images) and same(graph, model, images)

    def test_the_model_is_left_as_it_was(self, make):
        model = make()
        next(model.children()).eval()
        modes, attributes = [m.training for m in model.modules()], set(vars(model))
        trace(model)
        assert [m.training for m in model.modules()] == modes and set(vars(model)) == attributes


def test_constants_stay_out_of_the_state_dict_and_move_with_the_model():
    graph = trace(Block())
    constants = [name for name, _ in graph.named_buffers() if "constant" in name]
    assert constants and not set(constants) & set(graph.state_dict())
    assert {buffer.dtype for buffer in graph.double().buffers()} == {torch.float64}
    assert same(graph.float().eval(), trace(copy.deepcopy(graph)))


def test_the_graph_of_a_graph_is_a_copy_of_it():
    first = trace(Block().eval())
    second = trace(first)
    assert second.graph is not first.graph and same(first, second)
    assert [n.name for n in second.graph.nodes] == [n.name for n in first.graph.nodes]
    assert [n.meta.get("nn_module_stack") for n in second.graph.nodes] == [
        n.meta.get("nn_module_stack") for n in first.graph.nodes
    ]


class OnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


class OnMode(OnValues):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.training else x


class OtherNumber(OnValues):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (0.5 if self.training else 1.0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (OnValues(), "symbolically traced variables cannot be used as inputs to control flow"),
        (OnMode(), "it takes another way in training mode"),
        (OtherNumber(), "mul takes 0.5 in place of 1.0 in training mode"),
    ],
)
def test_what_cannot_be_followed_is_one_line(model, reason):
    with pytest.raises(UserError) as caught:
        trace(model)
    assert str(caught.value) == (
        f"model.name: got {type(model).__name__}, whose forward cannot be followed ({reason}); allowed: a model "
        "without branches on values, or settings that need no graph (quantize.activations.points: layers, "
        "quantize.batch_norm: keep)"
    )
    assert model.training and set(vars(model)) == set(vars(type(model)()))
