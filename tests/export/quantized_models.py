"""Quantized models of real architectures with random weights, batch norm that does something, and any widths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap, Granularity, Per, Scheme, unit_shape
from fairquant.export.metadata import ModelMetadata
from fairquant.export.packed import write_packed
from fairquant.models.build import build
from fairquant.models.fold import fold_batch_norm
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.activate import activation_quantizers, attach_activations
from fairquant.quantize.attach import quantize_model

GROUPS = ("type I", "type VI")
EVERY = (0, 1, 2, 3, 5, 8, 11, 16, 32)
KINDS: dict[str, dict[str, Any]] = {
    "per_tensor": {"widths": EVERY, "granularity": "per_tensor"},
    "per_channel": {"widths": EVERY},
    "per_param": {"widths": EVERY, "granularity": "per_param"},
    "asymmetric": {"widths": EVERY, "scheme": "asymmetric"},
    "asymmetric_param": {"widths": EVERY, "granularity": "per_param", "scheme": "asymmetric"},
    "books_of_layers": {"widths": (0, 1, 3, 8, 32), "codebook": "tensor"},
    "books_of_channels": {"widths": (0, 1, 3, 5, 32), "codebook": "channel"},
    "folded": {"folded": True},
    "static": {"folded": True, "activations": {}},
    "layers": {"activations": {"points": "layers", "scheme": "symmetric", "bits": 16}},
    "dynamic": {"activations": {"dynamic": True, "bits": 4}},
    "float": {"widths": (32,), "granularity": "per_tensor"},
    "pruned": {"widths": (0,)},
}
"""Arguments of ``quantized`` for every kind of packed file."""


def spec_of(name: str, size: int) -> ModelSpec:
    return ModelSpec(name, ("benign", "malignant"), size, (0.5,) * 3, (0.25,) * 3)


def metadata_of(spec: ModelSpec) -> ModelMetadata:
    return ModelMetadata.of(spec, groups=GROUPS, provenance="0123456789abcdef" * 4)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}


def float_model(spec: ModelSpec) -> nn.Module:
    """Return the model of ``spec`` with batch-norm statistics, gains and biases drawn at random."""
    model = build(spec, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(2**40 + 1)  # beyond what a float32 holds
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.copy_(0.1 + torch.rand(parameter.shape, generator=generator))
    return model


def draw(model: nn.Module, widths: Sequence[int], granularity: Granularity = "per_channel") -> dict[str, np.ndarray]:
    """Return widths drawn at random for every unit."""
    random = np.random.default_rng(0)
    return {
        name: np.asarray(random.choice(widths, size=unit_shape(granularity, shape)), dtype=np.uint8)
        for name, shape in shapes_of(model).items()
    }


def quantized(
    spec: ModelSpec,
    widths: Sequence[int] = (2, 4, 8),
    granularity: Granularity = "per_channel",
    *,
    scheme: Scheme = "symmetric",
    codebook: Per | None = None,
    folded: bool = False,
    activations: dict[str, object] | None = None,
) -> nn.Module:
    """Return the model of ``spec`` with quantized weights, and activations where they are asked for."""
    model = float_model(spec)
    if folded:
        fold_batch_norm(model)
    bits = BitMap(granularity, draw(model, widths, granularity), scheme=scheme, codebook=codebook)
    quantize_model(model, bits)
    if activations is not None:
        asked: dict[str, object] = {"bits": 8, "scheme": "asymmetric", "observer": "minmax", **activations}
        model = attach_activations(model, **asked)  # type: ignore[arg-type]
        for number, quantizer in enumerate(activation_quantizers(model).values()):
            if not quantizer.dynamic:
                zero_point = 0 if quantizer.scheme == "symmetric" else number % 128
                quantizer.load_grid(torch.tensor(0.02 + 0.001 * number), torch.tensor(zero_point))
    return model.eval()


SMALL = spec_of("resnet20", 8)


@cache
def packed_bytes(kind: str) -> bytes:
    """Return the packed file of a small model of this kind."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "p"
        write_packed(path, quantized(SMALL, **KINDS[kind]), metadata_of(SMALL))
        return path.read_bytes()
