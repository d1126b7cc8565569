"""Weights quantized with their batch norm folded in: after training, or all through it.

**After training** the model is folded first (``fairquant.models.fold``) and quantized then. A step size that was chosen
with the widths, on the weights before folding, is multiplied by |f|, f = γ/√(σ² + ε) of its channel: the codes stay,
and with them what was predicted for them.

**While it trains** a forward pass quantizes the weight that will be used in the end, and batch norm goes on
normalising by what it sees in the batch (Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2; Jacob et al. 2018, arXiv
1712.05877):

    y = conv(x, Q(f · w)) / f     output = γ · (y − m_B) / s_B + β

with f from the running variance, so that the grid does not jitter with the batch (the calibrating variant of the
micronet family; torch's ``ConvBn2d`` for quantization-aware training), and m_B, s_B of the batch. In evaluation mode
this is the folded model. The gradient reaches w and γ through both uses of f. A bias of the layer is a part of the
running mean instead: batch norm takes off whatever is constant.

**γ near 0.** Where |f| < 2⁻⁴⁰ (torch's divides by 0 there, and puts out NaN), ±2⁻⁴⁰ takes its place on both sides: what
the channel puts out for an input differs by at most 10⁻¹² of what the layer puts out, less than a rounding error of β;
γ goes on learning from the batch norm itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.fold import Pair, along_rows, fold_batch_norm, fold_pairs, foldable, remove_norm
from fairquant.models.layers import weight_parameter
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import quantizers

LEAST = 2.0**-40
"""Smallest |f| that weights are multiplied with, and outputs divided by, in training."""


def skeleton(spec: ModelSpec, *, folded: bool) -> nn.Module:
    """Build the full-precision model of ``spec``, folded or not, with weights that mean nothing."""
    model = build(spec, seed=0)
    if folded:
        fold_pairs(model, foldable(model))
    return model


def fold_for_rounding(model: nn.Module, bits: BitMap) -> BitMap:
    """Fold the batch norm of ``model`` in place; return ``bits`` with step sizes that fit the folded weights.

    Raises ``UserError`` for a model that cannot be traced, and for step sizes that folding leaves nothing of: one for a
    whole layer, whose channels are multiplied by different numbers.
    """
    scaled = rescaled(bits, {pair.name: pair.factor() for pair in foldable(model)})
    fold_batch_norm(model)
    return scaled


def rescaled(bits: BitMap, factors: Mapping[str, Tensor]) -> BitMap:
    """Return ``bits`` with the step sizes of each layer multiplied by |f| of their channel, (out,) by layer."""
    steps = dict(bits.steps)
    for name in factors.keys() & steps.keys():
        if bits.granularity == "per_tensor":
            raise UserError(
                f"quantize.batch_norm: got a folded layer {name} with one step size that was chosen before; allowed: "
                "keep, or granularity per_channel | per_param"
            )
        factor = factors[name].detach().abs().double().cpu().numpy()
        table = (steps[name] * factor[:, None]).astype(np.float32)
        steps[name] = np.maximum(table, np.finfo(np.float32).tiny)
    return replace(bits, steps=steps)


@contextmanager
def fold_in_training(model: nn.Module, bits: BitMap) -> Iterator[BitMap]:
    """Let the quantizers that are attached to ``model`` inside quantize folded weights, all through training.

    Hands out ``bits`` with fitting step sizes. Inside, weights are the folded ones, so that grids are measured on them;
    outside, they are what they were. ``settle_folding`` ends it. Raises as ``fold_for_rounding`` does.
    """
    folds = [_Fold(pair) for pair in foldable(model)]
    scaled = rescaled(bits, {fold.pair.name: fold.factor() for fold in folds})
    for fold in folds:
        fold.enter()
    yield scaled
    found = quantizers(model)
    for fold in folds:
        fold.leave()
        found[fold.pair.name].before = fold


def settle_folding(model: nn.Module) -> None:
    """Make a model trained inside ``fold_in_training`` a plainly folded one, with the same codes; others stay."""
    for quantizer in quantizers(model).values():
        fold = quantizer.before
        if isinstance(fold, _Fold):
            fold.settle()
            quantizer.before = None
            remove_norm(model, fold.pair.norm)


class _Fold:
    """One layer whose weight is multiplied by f before it is quantized, and whose output is divided by it again."""

    def __init__(self, pair: Pair) -> None:
        """Take in the layer's bias as a part of the running mean."""
        self.pair = pair
        self._now: Tensor | None = None  # f while the layer's forward runs: its gradient is one
        self._original: Tensor | None = None
        self._hooks: list[Any] = []
        if pair.layer.bias is not None:
            pair.statistics[0].sub_(pair.layer.bias.detach())
            pair.layer.bias = None

    def factor(self) -> Tensor:
        """Return f, (out,), at least 2⁻⁴⁰ in size."""
        factor = self.pair.factor(self.pair.statistics[1].dtype)
        least = torch.copysign(torch.full_like(factor, LEAST), factor.detach())
        return torch.where(factor.abs() < LEAST, least, factor)

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the folded ``weight`` (out, …)."""
        return weight * along_rows(self.factor() if self._now is None else self._now, weight)

    @torch.no_grad()
    def enter(self) -> None:
        """Fold the weight, for now."""
        weight = self.pair.layer.weight
        self._original = weight.detach().clone()
        weight.copy_(self(weight))

    @torch.no_grad()
    def leave(self) -> None:
        """Bring the weight back, bit for bit; fold it in every forward pass from here on."""
        layer = self.pair.layer
        if self._original is not None:
            weight_parameter(layer).copy_(self._original)
            self._original = None
        self._hooks = [layer.register_forward_pre_hook(self._begin), layer.register_forward_hook(self._end)]

    @torch.no_grad()
    def settle(self) -> None:
        """Fold for good."""
        factor = self.factor()
        for hook in self._hooks:
            hook.remove()
        weight = weight_parameter(self.pair.layer)
        weight.copy_(self(weight))
        self.pair.fold_bias(factor)

    def _begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._now = self.factor()

    def _end(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        factor, self._now = self._now, None
        if factor is None:
            raise RuntimeError("folding: got an output of a layer that was not called")
        divisor = factor[:, None, None] if isinstance(layer, nn.Conv2d) else factor
        return (output / divisor).to(output.dtype)
