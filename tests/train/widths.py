"""Widths for tests that train quantized models."""

from __future__ import annotations

import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
from fairquant.models.layers import quantizable_layers


def bits_of(model: nn.Module, granularity: Granularity = "per_channel", widths: tuple[int, ...] = (2, 4, 8)) -> BitMap:
    """Give the units of every layer ``widths`` in turn."""
    layers = {}
    for name, layer in quantizable_layers(model).items():
        shape = unit_shape(granularity, tuple(layer.weight.shape))
        flat = torch.tensor(widths, dtype=torch.uint8).repeat(layer.weight.numel())
        layers[name] = flat[: int(torch.tensor(shape).prod())].reshape(shape).numpy()
    return BitMap(granularity, layers)
