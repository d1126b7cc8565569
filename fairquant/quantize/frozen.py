"""Units frozen at their quantized values while the others go on training in full precision.

A parametrization hands out the frozen value of frozen weights and the trained one of the others, so that a frozen unit
stays what it is whatever an optimizer (momentum, weight decay) does to the parameter behind it (incremental network
quantization, Zhou et al. 2017, arXiv 1702.03044).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
from fairquant.models.layers import quantizable_layers, weight_parameter
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.fake_quant import UNTOUCHED, fake_quantize
from fairquant.quantize.layout import columns_of
from fairquant.quantize.quantizer import WeightQuantizer

Bits = npt.NDArray[np.uint8]


class FrozenUnits(nn.Module):
    """Parametrization of a weight some of whose units are frozen.

    Attributes:
        bits: uint8 widths of shape () | (out,) | the weight's; 32 where a unit is still trained.
        values: the weight's shape; the values of frozen units.
        mask: bool, broadcastable to the weight: frozen or not.
        steps: (out | 1, 33) step sizes by width, 1 where none is in use.
        used: (out | 1, 33) which step sizes are in use: a width's step size in a channel is measured once.
    """

    bits: Tensor
    values: Tensor
    mask: Tensor
    steps: Tensor
    used: Tensor

    def __init__(self, weight: Tensor, shape: tuple[int, ...], *, method: str, percentile: float) -> None:
        """Start with nothing frozen; ``shape`` is that of the widths."""
        super().__init__()
        self.method, self.percentile = method, percentile
        rows = shape[0] if shape else 1
        self.register_buffer("bits", torch.full(shape, UNTOUCHED, dtype=torch.uint8, device=weight.device))
        self.register_buffer("values", torch.zeros_like(weight, requires_grad=False))
        self.register_buffer("mask", self._spread(self.bits, weight) != UNTOUCHED)
        self.register_buffer("steps", torch.ones(rows, UNTOUCHED + 1, dtype=weight.dtype, device=weight.device))
        self.register_buffer("used", torch.zeros(rows, UNTOUCHED + 1, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with frozen units in place; their gradient is zero."""
        return torch.where(self.mask, self.values, weight)

    @torch.no_grad()
    def freeze(self, weight: Tensor, bits: Tensor) -> None:
        """Freeze the units that have a width in ``bits`` and none yet, at the current values of ``weight``."""
        bits = bits.to(weight.device)
        new = torch.where(self.bits == UNTOUCHED, bits, torch.full_like(bits, UNTOUCHED))
        fresh = WeightQuantizer(weight, new, method=self.method, percentile=self.percentile).table(weight)
        columns = columns_of(new)
        for column, width in enumerate(columns):
            of_rows = [width] if len(columns) > 1 else torch.unique(new).tolist()
            for one in of_rows:
                rows = (new == one).reshape(len(self.steps), -1).any(1) & ~self.used[:, one]
                self.steps[rows, one] = fresh[rows, column]
                self.used[rows, one] = True
        quantized = fake_quantize(weight, self._spread(new, weight), self._step_sizes(new, weight))
        self.values.copy_(torch.where(self._spread(new, weight) != UNTOUCHED, quantized, self.values))
        self.bits.copy_(torch.where(self.bits == UNTOUCHED, bits, self.bits))
        self.mask.copy_(self._spread(self.bits, weight) != UNTOUCHED)

    def table(self) -> Tensor:
        """Return the step sizes as ``WeightQuantizer.table`` has them: (out | 1, columns)."""
        columns = columns_of(self.bits)
        if len(columns) > 1:
            return self.steps[:, list(columns)]
        rows = self.bits.reshape(len(self.steps), -1)[:, :1].long()
        return self.steps.gather(1, rows)

    def _step_sizes(self, bits: Tensor, weight: Tensor) -> Tensor:
        rows = bits.reshape(len(self.steps), -1).long()
        return self._spread(self.steps.gather(1, rows).reshape(bits.shape), weight)

    @staticmethod
    def _spread(bits: Tensor, weight: Tensor) -> Tensor:
        """Give ``bits`` trailing dimensions of length 1, to broadcast against ``weight``."""
        return bits.reshape(*bits.shape, *(1,) * (weight.dim() - bits.dim()))


def attach_frozen(model: nn.Module, granularity: Granularity, *, scale: str, percentile: float) -> None:
    """Put ``FrozenUnits`` on every quantizable layer of ``model``; nothing is frozen yet."""
    for layer in quantizable_layers(model).values():
        weight = layer.get_parameter("weight")
        shape = unit_shape(granularity, tuple(weight.shape))
        frozen = FrozenUnits(weight.detach(), shape, method=scale, percentile=percentile)
        parametrize.register_parametrization(layer, "weight", frozen.train(layer.training), unsafe=True)


def frozen_units(model: nn.Module) -> dict[str, FrozenUnits]:
    """Return the parametrizations by layer name, in module order."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, FrozenUnits))
    return {name.removesuffix(".parametrizations.weight.0"): module for name, module in named}


def freeze(model: nn.Module, bits: Mapping[str, Bits]) -> None:
    """Freeze the units of each layer that have a width below 32 in ``bits`` and are not frozen yet."""
    layers = quantizable_layers(model)
    for name, frozen in frozen_units(model).items():
        frozen.freeze(weight_parameter(layers[name]), torch.from_numpy(bits[name].copy()))


def settle_frozen(model: nn.Module, granularity: Granularity) -> None:
    """Replace the parametrizations by quantizers with the same result, bit for bit; open units stay at 32 bits."""
    found = frozen_units(model)
    tables = {name: frozen.table().clone() for name, frozen in found.items()}
    bitmap = BitMap(granularity, {name: frozen.bits.cpu().numpy().copy() for name, frozen in found.items()})
    for layer in quantizable_layers(model).values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    quantize_model(model, bitmap, scale="lsq", tables=tables)
