"""ONNX files of real architectures at small image sizes: what runtimes make of them, and how large they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fairquant.export.integer import IntegerSession
from fairquant.export.onnx_file import OnnxForm
from fairquant.export.runtimes import open_session
from fairquant.models.build import build
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.attach import bitmap_of
from tests.export.small_networks import images, logits, on_the_files_grid, operators, quantized, run, spec_of, written

SIZE = 32


class Made(NamedTuple):
    """A model, its file, and the file's form."""

    model: nn.Module
    path: Path
    form: OnnxForm


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    known: dict[str, Made] = {}

    def of(name: str, **arguments: Any) -> Made:
        if name + str(arguments) not in known:
            spec, path = spec_of(name, SIZE), tmp_path_factory.mktemp("models") / "m.onnx"
            model = quantized(build(spec, seed=0), size=SIZE, **arguments)
            known[name + str(arguments)] = Made(model, path, written(path, model, spec))
        return known[name + str(arguments)]

    return of


FUSED = {
    "resnet18": {"QLinearConv": 20, "QLinearAdd": 8, "QGemm": 1, "Conv": 0},
    "mobilenet_v2": {"QLinearConv": 52, "QLinearAdd": 10, "QGemm": 1, "Conv": 0},
    "resnet20": {"QLinearConv": 19, "QLinearAdd": 7, "QGemm": 1, "Conv": 0},
    "squeezenet1_1": {"QLinearConv": 26, "QLinearConcat": 8, "Conv": 0},
    "deit_tiny_patch16_224": {"MatMulIntegerToFloat": 48, "BiasGelu": 12, "QGemm": 1, "Shape": 1},
}
"""What onnxruntime computes at 8 bits; resnet20 has two sums of which one operand is read floating, too."""


@pytest.mark.parametrize("name", FUSED)
def test_nothing_is_left_floating(make, name):
    made = make(name, activations={})
    found = operators(made.path)
    assert {operator: found[operator] for operator in FUSED[name]} == FUSED[name], dict(found)
    assert made.form.float_layers == () and len(made.form.integer_layers) == len(quantizable_layers(made.model))


@pytest.mark.parametrize("name", FUSED)
def test_the_first_steps_are_the_simulations(make, name):
    """Logits of random weights tell little after 50 layers of rounding: they only have to be near."""
    model, path, _ = make(name, activations={})
    x = images(16, SIZE)
    wanted = logits(on_the_files_grid(model, path), x)
    for optimized in (False, True):
        got = run(path, x, optimized=optimized)
        assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.95


def test_mixed_widths_take_their_bits(make):
    """Σ bits/8 of the weights, and 6 % for step sizes, biases, nodes and the last bits of bytes."""
    model, path, form = make("resnet18", widths=(2, 4, 8), activations={})
    layers, bits = quantizable_layers(model), bitmap_of(model).layers
    total = sum(int(bits[name].sum()) * layer.weight[0].numel() for name, layer in layers.items()) / 8
    assert total < path.stat().st_size <= 1.06 * total
    assert form.float_layers == () and operators(path)["Conv"] == 0


def test_a_convolution_before_silu_is_floating_but_not_at_every_inference(make):
    model, path, form = make("efficientnet_b0", activations={})
    found = operators(path)
    assert form.float_layers == () and found["QLinearConv"] == 16 and found["Conv"] == 65, dict(found)
    graph = onnx.load(path.with_suffix(".optimized")).graph
    stored = {tensor.name for tensor in graph.initializer}
    assert not [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    assert len(form.integer_layers) == 82 and torch.isfinite(torch.from_numpy(run(path, images(2, SIZE)))).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_runtimes_round_what_the_file_says(make, name):
    """OpenVINO's residual sums would be 0.11 and 0.02 of the logits' deviation off if it left out a rounding."""
    path, x = make(name, activations={}).path, images(16, SIZE).numpy()
    exact = IntegerSession(path).run(x)
    assert np.array_equal(open_session(path, "onnxruntime", threads=1).run(x), exact)
    assert np.abs(open_session(path, "openvino", threads=1).run(x) - exact).mean() < 0.01 * exact.std()
