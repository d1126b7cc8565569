"""Batch norm folded into the layer before it: one layer that puts out in evaluation what the two did.

With a convolution or linear layer y = w·x + b and a batch norm γ · (y − μ) / √(σ² + ε) + β behind it, running
statistics μ and σ² (Jacob et al. 2018, arXiv 1712.05877, equation 14):

    w ← f · w     b ← β + f · (b − μ)     f = γ / √(σ² + ε), one for each out channel

Computed in float64 and rounded once. A batch norm folds where it is all that a layer's output goes to, and where that
layer is all it ever takes in: both are used once. Which ones those are follows from the architecture alone, so that a
model built anew and folded has the same state-dict keys. The others stay: those behind a concatenation, a sum or a
rectifier (pre-activation networks, most of densenet), behind a layer that standardises its own weight (timm's
``StdConv2d``), and those without running statistics, which have nothing fixed to fold.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fairquant.models.layers import Layer
from fairquant.models.trace import trace

log = logging.getLogger(__name__)

_LINEAR_IN_WEIGHT = (nn.Conv2d.forward, nn.Linear.forward)
_NORMALISING = (_BatchNorm.forward,)
_TIMM_LINEAR = ("timm.layers.conv2d_same", "Conv2dSame")
_TIMM_NORMALISING = ("timm.layers.norm_act", "BatchNormAct2d")
_KINDS = ((nn.Conv2d, nn.BatchNorm2d), (nn.Linear, nn.BatchNorm1d))


class FoldedNorm(nn.Sequential):
    """Stands where a batch norm was: what that did besides (dropout and activation of timm's), or nothing."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer and the batch norm behind it, with their names in the model."""

    name: str
    layer: Layer
    norm_name: str
    norm: _BatchNorm

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """The running mean and variance, (out,) each."""
        if self.norm.running_mean is None or self.norm.running_var is None:
            raise ValueError("batch norm: got a layer without running statistics; allowed: one that tracks them")
        return self.norm.running_mean, self.norm.running_var

    def factor(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return f = γ / √(σ² + ε), (out,), differentiable with respect to γ.

        >>> pair = Pair("conv", nn.Conv2d(1, 1, 1), "bn", nn.BatchNorm2d(1, eps=0.0))
        >>> _ = nn.init.constant_(pair.norm.weight, 3.0), pair.norm.running_var.fill_(4.0)
        >>> pair.factor().tolist()
        [1.5]
        """
        spread = torch.sqrt(self.statistics[1].to(dtype) + self.norm.eps)
        gamma = self.norm.weight if self.norm.affine else torch.ones_like(spread)
        return gamma.to(dtype) / spread

    @torch.no_grad()
    def fold(self) -> None:
        """Give the layer the weight and bias of both."""
        factor = self.factor()
        weight = self.layer.weight
        weight.copy_(weight.double() * along_rows(factor, weight))
        self.fold_bias(factor)

    @torch.no_grad()
    def fold_bias(self, factor: Tensor) -> None:
        """Give the layer the bias β + f · (b − μ) for ``factor`` f, (out,)."""
        old = 0.0 if self.layer.bias is None else self.layer.bias.double()
        shift = self.norm.bias.double() if self.norm.affine else torch.zeros_like(factor, dtype=torch.float64)
        bias = shift + factor.double() * (old - self.statistics[0].double())
        if self.layer.bias is None:
            self.layer.bias = nn.Parameter(bias.to(self.norm.running_mean))
        else:
            self.layer.bias.copy_(bias)


def along_rows(factor: Tensor, weight: Tensor) -> Tensor:
    """Give ``factor`` (out,) trailing dimensions of length 1, to multiply ``weight`` (out, …)."""
    return factor.reshape(-1, *(1,) * (weight.dim() - 1))


def foldable(model: nn.Module) -> tuple[Pair, ...]:
    """Return the layers and batch norms of ``model`` that fold into one, in the order they run; nothing is changed.

    A linear layer's output is taken to be (N, out). Raises ``UserError`` as ``trace`` does.
    """
    graph = trace(model)
    nodes = [node for node in graph.graph.nodes if node.op == "call_module"]
    modules = {node: graph.get_submodule(str(node.target)) for node in nodes}
    uses = Counter(id(module) for module in modules.values())
    read = {str(node.target).rpartition(".")[0] for node in graph.graph.nodes if node.op == "get_attr"}
    pairs = []
    for node, norm in modules.items():
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        layer = modules.get(before) if isinstance(before, fx.Node) else None
        if not isinstance(layer, Layer) or not isinstance(norm, _BatchNorm) or not isinstance(before, fx.Node):
            continue
        alone = len(before.users) == 1 and uses[id(layer)] == 1 and uses[id(norm)] == 1
        names = str(before.target), str(node.target)
        if alone and not read & set(names) and _folds(layer, norm):
            pairs.append(Pair(names[0], layer, names[1], norm))
    return tuple(pairs)


def _is_of(place: tuple[str, str], forward: object) -> bool:
    """Say whether ``forward`` is that of timm's class; where nothing has imported timm, no layer is one of its."""
    module, name = place
    return module in sys.modules and forward is getattr(sys.modules[module], name).forward


def _folds(layer: Layer, norm: _BatchNorm) -> bool:
    """Return whether the two compute what the formula says, and nothing watches what is between them."""
    normalises = type(norm).forward in _NORMALISING or _is_of(_TIMM_NORMALISING, type(norm).forward)
    known = normalises and any(isinstance(layer, kind) and isinstance(norm, norm_kind) for kind, norm_kind in _KINDS)
    forward = _original_forward(layer)
    linear = forward in _LINEAR_IN_WEIGHT or _is_of(_TIMM_LINEAR, forward)
    plain = linear and not parametrize.is_parametrized(layer)
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, norm._forward_hooks, norm._forward_pre_hooks)
    fits = norm.running_mean is not None and norm.num_features == layer.weight.shape[0]
    return known and plain and fits and not any(hooks)


def _original_forward(layer: Layer) -> object:
    """Return the function behind ``layer.forward``; None for a convolution that changes how it convolves."""
    other = isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward
    return None if other else type(layer).forward


def fold_batch_norm(model: nn.Module) -> tuple[str, ...]:
    """Fold every batch norm of ``model`` that can be folded, in place; return the names of the layers they went into.

    The model must be a full-precision one, and computes in evaluation mode what it did, up to rounding. Layers without
    a bias get one; ``FoldedNorm`` stands in the batch norm's place. The log names the batch norms that stay. Raises
    ``UserError`` for a model that cannot be traced.
    """
    pairs = foldable(model)
    fold_pairs(model, pairs)
    stay = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    log.info("batch norm: folded into %d layers; %s", len(pairs), f"stays: {', '.join(stay)}" if stay else "none stays")
    return tuple(pair.name for pair in pairs)


def fold_pairs(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold ``pairs`` of ``model``, in place."""
    for pair in pairs:
        pair.fold()
        remove_norm(model, pair.norm)


def remove_norm(model: nn.Module, norm: _BatchNorm) -> None:
    """Put a ``FoldedNorm`` with the children of ``norm`` wherever ``model`` holds it."""
    empty = FoldedNorm(OrderedDict(norm.named_children())).train(norm.training)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is norm:
                setattr(parent, name, empty)


def is_folded(model: nn.Module) -> bool:
    """Return whether a batch norm of ``model`` was folded."""
    return any(isinstance(module, FoldedNorm) for module in model.modules())
