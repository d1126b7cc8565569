"""From a quantized model to what is exported: a plain module, the codes of its layers, the grids of its activations.

Parametrizations are gone and weights are plain numbers; every activation quantizer is an ``ActivationMark``, a node of
its own in the exported graph. Batch norm that follows a layer alone (``fairquant.models.fold``) is folded into it with
the codes kept: with f = γ/√(σ² + ε), a weight Δ · level becomes (Δ·|f|) · (±level), and the bias β + f · (b − μ), both
from float64. Where the model cannot be followed (``points: layers`` needs no graph) batch norm stays.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fairquant.errors import UserError
from fairquant.export.codes import CodedLayer, coded_layers
from fairquant.export.graph.grids import ActivationGrid
from fairquant.models.fold import Pair, fold_pairs, foldable
from fairquant.models.layers import quantizable_layers
from fairquant.quantize.activate import ROOT, activation_quantizers
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.attach import QUANTIZER

LOG = logging.getLogger(__name__)
DOMAIN, MARK, POINT = "fairquant", "Activation", "point"
"""Domain, operator and attribute of the node that stands for an activation quantizer until passes replace it."""


@dataclass(frozen=True, eq=False)
class ExportLayer:
    """A quantizable layer: its codes, and what batch norm multiplies its rows with (float64 (out,)), or None."""

    coded: CodedLayer
    factor: npt.NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class ExportModel:
    """What is exported.

    Attributes:
        module: in evaluation mode, without parametrizations; weights and biases have batch norm folded in.
        layers: by name, in module order.
        grids: by point, in the model's order; empty where activations are not quantized.
    """

    module: nn.Module
    layers: dict[str, ExportLayer]
    grids: dict[str, ActivationGrid]


class ActivationMark(nn.Module):
    """Stands where an activation quantizer was; hands its input on, in the exported graph through a node."""

    def __init__(self, point: str) -> None:
        """Stand for the quantizer of ``point``."""
        super().__init__()
        self.point = point

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        if not torch.compiler.is_exporting():
            return x
        shape: tuple[int | torch.SymInt, ...] = tuple(x.shape)
        result: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARK}", (x,), {POINT: self.point}, dtype=x.dtype, shape=shape, version=1
        )
        return result


def export_model(model: nn.Module) -> ExportModel:
    """Return what is exported of a quantized ``model`` (as ``load_quantized`` returns it), which stays as it is.

    Raises ``UserError`` for a model without quantizers, or with activation quantizers that have no range yet.
    """
    coded = coded_layers(model)
    quantizers = activation_quantizers(model)
    for point, quantizer in quantizers.items():
        if not quantizer.ready:
            raise UserError(f"{point}: got no range of activations yet; allowed: a calibrated model")
    grids = {point: ActivationGrid.of(quantizer) for point, quantizer in quantizers.items()}
    module = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    _bare(module)
    pairs = _foldable(module)
    factors = {pair.name: pair.factor().numpy() for pair in pairs}
    fold_pairs(module, pairs)
    _mark(module)
    module.requires_grad_(False)  # biases that folding made
    return ExportModel(module, {name: ExportLayer(coded[name], factors.get(name)) for name in coded}, grids)


def _bare(module: nn.Module) -> None:
    """Make the weights of layers plain numbers, and what a graph reads of them.

    torch's own ``remove_parametrizations`` takes the property off the class, which copies of a layer share.
    """
    for layer in quantizable_layers(module).values():
        if parametrize.is_parametrized(layer, "weight"):
            weight = layer.weight.detach().clone()
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer._modules["parametrizations"]
            layer.weight = nn.Parameter(weight, requires_grad=False)
    if isinstance(module, fx.GraphModule):
        _read_plain(module)


def _read_plain(module: fx.GraphModule) -> None:
    """Let a graph read the weight itself where a layer is used through what its weight is computed from."""
    for node in list(module.graph.nodes):
        layer = str(node.target).removesuffix(QUANTIZER)
        if node.op != "call_module" or layer == node.target:
            continue
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(f"{layer}.weight"))
        given = node.all_input_nodes
        module.graph.erase_node(node)
        for original in given:
            if not original.users:
                module.graph.erase_node(original)
    module.recompile()


def _foldable(module: nn.Module) -> tuple[Pair, ...]:
    """Return the batch norms that fold; hooks in front of layers (``points: layers``) change nothing behind them."""
    with _without_hooks(module):
        try:
            return foldable(module)
        except UserError as error:
            LOG.warning("batch norm stays as it is: %s", error)
            return ()


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Take the quantizers in front of layers off, and put them back."""
    taken = []
    for layer in quantizable_layers(module).values():
        if ROOT in layer._modules:
            taken.append((layer, layer._modules.pop(ROOT), dict(layer._forward_pre_hooks)))
            layer._forward_pre_hooks.clear()
    try:
        yield
    finally:
        for layer, quantizer, hooks in taken:
            layer._modules[ROOT] = quantizer
            layer._forward_pre_hooks.update(hooks)


def _mark(module: nn.Module) -> None:
    """Put marks in the places of activation quantizers."""
    points = {id(quantizer): point for point, quantizer in activation_quantizers(module).items()}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ActivationQuantizer):
                setattr(parent, name, ActivationMark(points[id(child)]))
