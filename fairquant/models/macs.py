"""Multiply-accumulates of every quantizable layer, counted in one forward pass of one image.

- Conv2d: H_out · W_out · C_out · (C_in / groups) · k_h · k_w
- Linear: tokens · C_in · C_out, where tokens is the product of all but the last dimension (197 in a 224-pixel ViT/16)

In both, MACs = output elements · (weights / output channels).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from fairquant.models.layers import quantizable_layers, weight_parameter

log = logging.getLogger(__name__)


def layer_macs(model: nn.Module, image_size: int, in_channels: int = 3) -> dict[str, int]:
    """Return MACs per quantizable layer for one ``image_size`` × ``image_size`` image, in module order.

    A layer that did not run counts 0 and is named in a warning. The model is left as it was.

    >>> layer_macs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2)), image_size=8)
    {'0': 7776, '2': 576}
    """
    layers = quantizable_layers(model)
    called = dict.fromkeys(layers, 0)
    direct = _DirectUse({id(weight_parameter(module)): name for name, module in layers.items()})
    handles = [module.register_forward_hook(_adder(called, name)) for name, module in layers.items()]
    training = [module for module in model.modules() if module.training]
    first = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad(), direct:
            model(torch.zeros(1, in_channels, image_size, image_size, device=first.device, dtype=first.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    macs = {name: called[name] or direct.macs.get(name, 0) for name in layers}
    silent = [name for name, count in macs.items() if count == 0]
    if silent:
        log.warning("model: layers that a forward pass does not use count 0 MACs: %s", ", ".join(silent))
    return macs


def _adder(macs: dict[str, int], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        macs[name] += _count(output, module.weight)  # type: ignore[arg-type]

    return hook


def _count(output: Tensor, weight: Tensor) -> int:
    return output.numel() * (weight.numel() // weight.shape[0])


class _DirectUse(TorchFunctionMode):
    """Counts layers whose weight a parent uses without calling them (attention's ``out_proj``, BEiT's ``qkv``)."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.macs: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (F.linear, F.multi_head_attention_forward):
            result = output[0] if isinstance(output, tuple) else output
            for value in (*args, *(kwargs or {}).values()):
                if name := self.names.get(id(value)):
                    self.macs[name] = self.macs.get(name, 0) + _count(result, value)
        return output
