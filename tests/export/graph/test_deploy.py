"""What is left of a quantized model for the exporter: plain weights, folded batch norm, marks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.export.graph.deploy import ActivationMark, export_model
from fairquant.models.fold import FoldedNorm
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activate import activation_quantizers
from tests.export.small_networks import images, logits, quantized


@pytest.mark.parametrize("activations", [None, {}, {"points": "layers"}])
def test_the_model_is_not_changed(activations):
    model = quantized(widths=(2, 8), activations=activations)
    before, state = logits(model, images(4)), {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    export_model(model)
    assert np.array_equal(logits(model, images(4)), before)
    assert [type(module) for module in model.modules()] == classes
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], value) for name, value in state.items())


@pytest.mark.parametrize("activations", [{}, {"points": "layers"}])
def test_without_rounding_of_activations_it_computes_the_same(activations):
    model = quantized(widths=(2, 8), activations=activations)
    exported = export_model(model)
    for quantizer in activation_quantizers(model).values():
        quantizer.quantizing = False
    np.testing.assert_allclose(logits(exported.module, images(4)), logits(model, images(4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activations", [{}, {"points": "layers"}])
def test_quantizers_are_gone_and_batch_norm_is_folded(activations):
    model = quantized(activations=activations)
    exported = export_model(model)
    found = list(exported.module.modules())
    assert not [module for module in found if isinstance(module, nn.BatchNorm2d) or hasattr(module, "parametrizations")]
    assert sum(isinstance(module, FoldedNorm) for module in found) == 3
    marks = [module.point for module in found if isinstance(module, ActivationMark)]
    assert sorted(marks) == sorted(exported.grids) == sorted(activation_quantizers(model))
    assert list(exported.layers) == list(quantizable_layers(model))
    folded = [name for name, layer in exported.layers.items() if layer.factor is not None]
    assert folded == ["stem", "body", "skip"]
    norm = model.get_submodule("stem_norm")
    wanted = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    np.testing.assert_array_equal(exported.layers["stem"].factor, wanted.detach().numpy())


class Branching(nn.Module):
    """Cannot be followed: it branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_what_cannot_be_followed_keeps_its_batch_norm(caplog):
    exported = export_model(quantized(Branching()))
    assert isinstance(exported.module.get_submodule("norm"), nn.BatchNorm2d)
    assert exported.layers["conv"].factor is None
    assert "batch norm stays as it is: model.name: got Branching, whose forward cannot be followed" in caplog.text


class Direct(nn.Module):
    """Uses a layer through its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x[:, :, :2, :2].flatten(1), self.fc.weight, self.fc.bias)


def test_a_layer_that_is_used_through_its_weight():
    model = quantized(Direct(), widths=(4,), activations={})
    exported = export_model(copy.deepcopy(model))
    assert [module.point for module in exported.module.modules() if isinstance(module, ActivationMark)] == ["fc.input"]
    for quantizer in activation_quantizers(model).values():
        quantizer.quantizing = False
    np.testing.assert_allclose(logits(exported.module, images(4)), logits(model, images(4)), rtol=1e-6)
