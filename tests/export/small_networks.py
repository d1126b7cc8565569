"""A small network with all that graphs are made of, quantized and calibrated, and what runtimes make of its file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fairquant.allocate.bitmap import BitMap, Granularity, Per, Scheme, unit_shape
from fairquant.export.graph.deploy import ActivationMark, export_model
from fairquant.export.graph.layer_nodes import Flavour
from fairquant.export.metadata import ModelMetadata
from fairquant.export.onnx_file import OnnxForm, write_onnx
from fairquant.export.quiet import import_onnxruntime
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.activate import activation_quantizers, attach_activations
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.attach import quantize_model

GROUPS = ("type I", "type VI")
SIZE = 16


class SmallNetwork(nn.Module):
    """Strided, grouped and pointwise convolutions, pooling, a residual sum, SiLU, a linear layer of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.relu6, self.pool = nn.ReLU(), nn.ReLU6(), nn.MaxPool2d(2)
        self.body, self.body_norm = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.skip, self.skip_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.soft, self.silu = nn.Conv2d(8, 8, 1), nn.SiLU()
        self.mix, self.gelu = nn.Linear(8, 16), nn.GELU()
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem_norm(self.stem(image))))
        x = self.relu(self.body_norm(self.body(x)) + self.relu6(self.skip_norm(self.skip(x))))
        x = self.silu(self.soft(x))
        x = self.gelu(self.mix(x.flatten(2).transpose(1, 2)))
        return self.head(x.mean(1))


def spec_of(name: str = "small", size: int = SIZE) -> ModelSpec:
    return ModelSpec(name, ("a", "b", "c"), size, (0.5,) * 3, (0.25,) * 3)


def images(count: int, size: int = SIZE) -> Tensor:
    """Return images that are smooth: (count, 3, size, size)."""
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=size, mode="bilinear").contiguous()


def lively(model: nn.Module, size: int) -> nn.Module:
    """Give norms, biases and statistics values as after training, some factors negative and one 0."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
        for norm in norms:
            norm.weight.copy_(1 + 0.2 * torch.randn(norm.weight.shape, generator=generator))
            norm.weight[:2] = torch.tensor([0.0, -0.5])
            norm.momentum = 1.0
        model.train()(images(16, size))
    return model.eval()


def quantized(
    model: nn.Module | None = None,
    widths: Sequence[int] = (8,),
    *,
    size: int = SIZE,
    granularity: Granularity = "per_channel",
    scheme: Scheme = "symmetric",
    codebook: Per | None = None,
    activations: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a small network, or ``model``, with quantized weights and, where asked for, calibrated activations."""
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = SmallNetwork()
    model = lively(model, size)
    random = np.random.default_rng(0)
    bits = {
        name: np.asarray(random.choice(widths, unit_shape(granularity, tuple(layer.weight.shape))), np.uint8)
        for name, layer in quantizable_layers(model).items()
    }
    quantize_model(model, BitMap(granularity, bits, scheme=scheme, codebook=codebook))
    if activations is None:
        return model
    asked = {"bits": 8, "scheme": "asymmetric", "observer": "minmax", **activations}
    model = attach_activations(model, **asked).eval()
    found = [] if asked.get("dynamic") else list(activation_quantizers(model).items())
    for _, quantizer in found:
        quantizer.observing, quantizer.quantizing = True, False
    with torch.no_grad():
        model(images(16, size))
    for name, quantizer in found:
        quantizer.settle(point=name)
        quantizer.observing, quantizer.quantizing = False, True
    return model


def written(path: Path, model: nn.Module, spec: ModelSpec | None = None, *, flavour: Flavour = "onnx") -> OnnxForm:
    spec = spec_of() if spec is None else spec
    meta = ModelMetadata.of(spec, groups=GROUPS, provenance="0123456789abcdef" * 4)
    return write_onnx(path, model, meta, flavour=flavour)


def logits(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


def run(path: Path, x: Tensor, *, optimized: bool = True) -> np.ndarray:
    """Return onnxruntime's logits, with all of its optimizations or none."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x.numpy()})[0]


def operators(path: Path, *, optimized: bool = True) -> Counter[str]:
    """Return how often each operator stands in the file, or in what onnxruntime makes of it."""
    if optimized:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path.with_suffix(".optimized"))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        path = path.with_suffix(".optimized")
    return Counter(node.op_type for node in onnx.load(path).graph.node)


class _Rounding(nn.Module):
    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x)


def on_the_files_grid(model: nn.Module, path: Path) -> nn.Module:
    """Return the simulation with batch norm folded and with the biases that stand in the file as whole numbers."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    module = copy.deepcopy(export_model(model).module)
    for name, layer in quantizable_layers(module).items():
        if f"{name}.bias.codes" in stored:
            layer.bias.copy_(torch.from_numpy(stored[f"{name}.bias.codes"] * stored[f"{name}.bias.scale"]))
    own = activation_quantizers(model)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ActivationMark):
                setattr(parent, name, _Rounding(own[child.point]))
    return module
