"""The description saved next to a model: all that stages without torch need to know about it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fairquant.models.layers import kind_of, layer_roles, quantizable_layers
from fairquant.models.macs import layer_macs
from fairquant.models.spec import ModelSpec


def describe(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    """Return the spec, the quantizable layers, their roles, MACs per image and parameter counts, as JSON values.

    ``layers`` maps names, in module order, to ``{"shape": [...], "kind": "conv2d" | "linear", "groups": n}``.
    ``parameters`` counts ``total`` (all), ``quantizable`` (weights of those layers) and ``rest``: the other parameters
    and the float buffers, all that a packed file holds in full precision (batch norm's batch counter is neither).
    """
    layers = quantizable_layers(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    quantizable = sum(layer.weight.numel() for layer in layers.values())
    buffers = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    return {
        "spec": spec.to_dict(),
        "layers": {
            name: {"shape": list(layer.weight.shape), "kind": kind_of(layer), "groups": getattr(layer, "groups", 1)}
            for name, layer in layers.items()
        },
        "roles": layer_roles(model),
        "macs": layer_macs(model, spec.image_size, spec.in_channels),
        "parameters": {"total": total, "quantizable": quantizable, "rest": total - quantizable + buffers},
    }
