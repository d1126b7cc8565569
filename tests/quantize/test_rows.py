"""Memory that is used again: never while anybody can still read it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.rows import Workspace, as_rows, from_rows, inner_order


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_row_views_are_copy_free(layout):
    weight = torch.randn(6, 5, 3, 3).to(memory_format=layout)
    assert as_rows(weight, inner_order(weight)).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 1, 3, 3), (6, 5, 1, 1), (6, 1, 1, 3), (6, 1, 3, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_go_back_to_the_same_strides(shape, layout):
    """Also where a length of 1 leaves a choice: a convolution takes its memory format from them."""
    weight = nn.Conv2d(shape[1], shape[0], shape[2:]).to(memory_format=layout).weight.detach()
    order = inner_order(weight)
    back = from_rows(as_rows(weight, order).clone(), weight, order)
    assert torch.equal(back, weight)
    lengths = [n for n, size in enumerate(shape) if size > 1 or n == 1]
    assert [back.stride()[n] for n in lengths] == [weight.stride()[n] for n in lengths]


class TestWorkspace:
    def test_is_used_again_when_free(self):
        workspace, like = Workspace(), torch.empty(4, 5)
        place = workspace.take(like).data_ptr()
        assert workspace.take(like).data_ptr() == place

    @pytest.mark.parametrize("how", ["view", "detach", "mT", "numpy", "untyped_storage"])
    def test_is_left_alone_while_held(self, how):
        workspace, like = Workspace(), torch.empty(4, 5)
        workspace.take(like)
        tensor = workspace.take(like)
        place = tensor.data_ptr()
        held = tensor.mT if how == "mT" else tensor.view(20) if how == "view" else getattr(tensor, how)()
        del tensor
        assert workspace.take(like).data_ptr() != place
        assert held is not None

    def test_follows_shape_and_type(self):
        workspace = Workspace()
        assert workspace.take(torch.empty(4, 5)).shape == (4, 5)
        assert workspace.take(torch.empty(2, 3)).shape == (2, 3)
        assert workspace.take(torch.empty(2, 3, dtype=torch.float64)).dtype == torch.float64

    def test_without_a_reference_count_memory_is_fresh(self, monkeypatch):
        monkeypatch.delattr(torch._C, "_storage_Use_Count")
        workspace, like = Workspace(), torch.empty(4, 5)
        first, second = workspace.take(like), workspace.take(like)
        assert first.data_ptr() != second.data_ptr()


@pytest.fixture
def pair(network):
    """A quantized network, and an equal one that never uses memory again."""
    models = []
    for reuse in (True, False):
        model: nn.Module = network()
        quantize_model(model, BitMap.filled(dict.fromkeys(quantizable_layers(model), ()), 4))
        if not reuse:
            for module in model.modules():
                if hasattr(module, "_workspace"):
                    module._workspace.take = torch.empty_like
        models.append(model.train())
    return models


def test_several_forwards_before_a_backward(pair):
    torch.manual_seed(0)
    batches, gradients = torch.randn(3, 4, 3, 8, 8), []
    for model in pair:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            losses = []
            for batch in batches:
                losses.append(model(batch).square().sum())
                with torch.no_grad():
                    model[0].parametrizations.weight.original.mul_(1.0)
            optimizer.zero_grad()
            for loss in losses:
                loss.backward(retain_graph=True)
            losses[0].backward()
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_weight_that_was_taken_out_keeps_its_values(pair):
    model = pair[0]
    taken = [model[0].weight, model[0].weight.detach(), model[0].weight.data[0]]
    values = [t.detach().clone() for t in taken]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        optimizer.step()
    assert all(torch.equal(a.detach(), b) for a, b in zip(taken, values, strict=True))


def test_the_graph_is_freed(pair):
    model = pair[0]
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8)).sum().backward()
    quantizer = model[0].parametrizations.weight[0]
    held = quantizer._workspace._tensor
    assert held.grad_fn is None and not held.requires_grad
    place = held.data_ptr()
    assert model[0].weight.data_ptr() == place
