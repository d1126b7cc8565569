"""What a quantizable layer is, in this one place: every ``Conv2d`` and ``Linear``, subclasses included.

Subclasses are timm's (``StdConv2d``, ``Conv2dSame`` ...) and torch's own (``NonDynamicallyQuantizableLinear``, the
``out_proj`` of ``MultiheadAttention``).
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from fairquant.errors import UserError

Layer = nn.Conv2d | nn.Linear
"""A quantizable layer: it has a ``weight`` whose first dimension is the output channel."""


def quantizable_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the quantizable layers by dotted name, in module order; a module used twice stands under its first name.

    Raises ``UserError`` when two layers share one weight (it cannot have two bit-widths), or when there is none.

    >>> list(quantizable_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))))
    ['0', '3']
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    owners: dict[int, str] = {}
    for name, module in layers.items():
        other = owners.setdefault(id(weight_parameter(module)), name)
        if other != name:
            raise UserError(f"model: layers {other!r} and {name!r} share one weight; allowed: a weight for each layer")
    if not layers:
        raise UserError(f"model: got {type(model).__name__} without Conv2d or Linear; allowed: one such layer at least")
    return layers


def weight_parameter(layer: Layer) -> nn.Parameter:
    """Return the parameter behind ``layer.weight``: itself, or what a parametrization computes it from."""
    computed: Any = getattr(layer, "parametrizations", {})
    return cast(nn.Parameter, computed["weight"].original if "weight" in computed else layer.weight)


def kind_of(layer: Layer) -> str:
    """Return ``conv2d`` or ``linear``."""
    return "conv2d" if isinstance(layer, nn.Conv2d) else "linear"


def layer_roles(model: nn.Module) -> dict[str, str]:
    """Return the layer names behind the words ``first``, ``last`` and ``classifier``.

    First and last are by module order; the classifier is what the model itself names so (timm's
    ``get_classifier``), or else the last layer.
    """
    layers = quantizable_layers(model)
    first, last = next(iter(layers)), next(reversed(layers))
    named = getattr(model, "get_classifier", lambda: None)()
    heads = [name for name, module in layers.items() if module is named]
    return {"first": first, "last": last, "classifier": heads[0] if heads else last}
