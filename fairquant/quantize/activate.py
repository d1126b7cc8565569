"""Activation quantizers on a model: nodes of its graph, or in front of its layers.

``points: all`` follows the model (``models.trace``) and puts a quantizer behind every point of ``quantize.points``;
what comes back is a graph module that shares the model's layers, parameters and state-dict names, with the quantizers
as submodules ``activation_points.<point>``. ``points: layers`` needs no graph: the quantizer is a submodule of each
quantizable layer, ``<layer>.activation_points``, for all calls of the layer, and the model itself comes back. Either
way devices, checkpoints and copies take the quantizers along.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, fx, nn

from fairquant.errors import UserError
from fairquant.models.layers import quantizable_layers
from fairquant.models.trace import trace
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.points import Point, find_points

LOG = logging.getLogger(__name__)
ROOT = "activation_points"
RECORD = "activation_record"
OUT_OF_PLACE: dict[Any, Any] = {operator.iadd: operator.add, "add_": "add", "__iadd__": "add"}
Place = Literal["all", "layers"]
Make = Callable[[], ActivationQuantizer]


@dataclass(frozen=True)
class Record:
    """What was attached: the arguments of ``attach_activations``, and quantizable layer → the points that feed it."""

    settings: dict[str, Any]
    inputs: dict[str, tuple[str, ...]]


def attach_activations(
    model: nn.Module,
    *,
    bits: int,
    scheme: str,
    observer: str,
    momentum: float = 0.1,
    percentile: float = 99.99,
    points: Place = "all",
    dynamic: bool = False,
) -> nn.Module:
    """Return ``model`` with activation quantizers that have no range yet (``train.calibrate`` finds it).

    Args:
        model: full precision or with quantized weights; it stays as it was for ``points: all``, but for its layers,
            which it shares with what is returned, and is changed in place for ``points: layers``.
        bits: 2 to 16.
        scheme: asymmetric | symmetric.
        observer: name of the plug-in that finds ranges.
        momentum: of ``observer: moving_average``.
        percentile: of ``observer: percentile``.
        points: all: inputs of layers, residual additions and poolings | layers: inputs of layers.
        dynamic: ranges are those of each input; nothing is calibrated.

    Layers that are used without being called (``out_proj`` of torch's attention) keep floating inputs and are named in
    a warning. Raises ``UserError`` for a model that has such quantizers already, or that cannot be followed.
    """
    if record_of(model) is not None:
        raise UserError("model: got one whose activations are quantized already; allowed: one without such quantizers")
    how = {"bits": bits, "scheme": scheme, "observer": observer, "momentum": momentum, "percentile": percentile}
    device = next(model.parameters()).device

    def make() -> ActivationQuantizer:
        return ActivationQuantizer(**how, dynamic=dynamic).to(device).train(model.training)  # type: ignore[arg-type]

    result, inputs = _in_graph(model, make) if points == "all" else _before_layers(model, make)
    setattr(result, RECORD, Record({**how, "points": points, "dynamic": dynamic}, inputs))
    left = [name for name in quantizable_layers(result) if name not in inputs]
    if left:
        LOG.warning(
            "activations: the inputs of layers that are used without being called stay floating: %s", ", ".join(left)
        )
    return result


def _in_graph(model: nn.Module, make: Make) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    traced = trace(model)
    found = find_points(traced)
    traced.add_module(ROOT, nn.Module())
    for point in found.points:
        *path, last = point.name.split(".")
        folder = traced.get_submodule(ROOT)
        for part in path:
            if part not in folder._modules:
                folder.add_module(part, nn.Module())
            folder = folder.get_submodule(part)
        folder.add_module(last, make())
        _insert(traced.graph, point)
    traced.recompile()
    return traced, found.inputs


def _insert(graph: fx.Graph, point: Point) -> None:
    """Quantize the tensor of ``point`` for its readers, before the first of them."""
    with graph.inserting_before(point.reads[0][0]):
        quantized = graph.call_module(f"{ROOT}.{point.name}", (point.source,))
    for reader, given in point.reads:
        reader.replace_input_with(given, quantized)
        reader.target = OUT_OF_PLACE.get(reader.target, reader.target)  # others may read what it would write over


def _before_layers(model: nn.Module, make: Make) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    uncalled = {id(module) for attention in attentions for module in attention.modules()}
    inputs: dict[str, tuple[str, ...]] = {}
    for name, layer in quantizable_layers(model).items():
        if id(layer) not in uncalled:
            layer.add_module(ROOT, make())
            layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)
            inputs[name] = (_point_of(name),)
    return model, inputs


def _quantize_input(
    layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Hand ``layer`` its input quantized; knows nothing but the layer, so that a copy uses its own quantizer."""
    quantizer = layer.get_submodule(ROOT)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, kwargs | {"input": quantizer(kwargs["input"])}


def _point_of(layer: str) -> str:
    return f"{layer}.input" if layer else "input"


def record_of(model: nn.Module) -> Record | None:
    """Return what was attached to ``model``; None where its activations are not quantized."""
    return cast(Record | None, getattr(model, RECORD, None))


def is_activation_key(name: str) -> bool:
    """Return whether the state-dict entry ``name`` is an activation quantizer's.

    >>> is_activation_key("activation_points.conv1.input.scale"), is_activation_key("conv1.activation_points.scale")
    (True, True)
    >>> is_activation_key("conv1.weight")
    False
    """
    return ROOT in name.split(".")


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return the activation quantizers of ``model`` by the names of their points; empty where there are none."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            of_layer = name.endswith(ROOT)
            point = _point_of(name.removesuffix(ROOT).removesuffix(".")) if of_layer else name.removeprefix(f"{ROOT}.")
            found[point] = module
    return found


def activation_settings(model: nn.Module) -> dict[str, Any] | None:
    """Return the arguments ``attach_activations`` was called with; None for a model without such quantizers."""
    record = record_of(model)
    return None if record is None else dict(record.settings)


def input_bits(model: nn.Module) -> dict[str, int]:
    """Return the width of the input of each quantizable layer whose input is quantized."""
    record = record_of(model)
    return {} if record is None else dict.fromkeys(record.inputs, record.settings["bits"])


def forget_ranges(model: nn.Module) -> None:
    """Give every activation quantizer of ``model`` an observer that has seen nothing; grids stay until new ones."""
    how = {n: v for n, v in (activation_settings(model) or {}).items() if n not in {"points", "dynamic"}}
    for quantizer in activation_quantizers(model).values():
        fresh = ActivationQuantizer(**how).observer
        if quantizer.observer is not None and fresh is not None:
            quantizer.observer = fresh.to(quantizer.observer.low.device).train(quantizer.training)


def keep_points(model: nn.Module, names: Collection[str]) -> list[str]:
    """Take away the quantizers in front of layers (``points: layers``) whose point is not in ``names``; return theirs.

    Raises ``UserError`` for a graph, whose points are all passed through at every call.
    """
    record = record_of(model)
    spare = [name for name in activation_quantizers(model) if name not in names]
    if not spare or record is None:
        return []
    if isinstance(model, fx.GraphModule):
        raise UserError(f"activation points: got a graph with {', '.join(spare)}; allowed: the points of its model")
    for name, layer in quantizable_layers(model).items():
        if _point_of(name) in spare and name in record.inputs:
            del layer._modules[ROOT]
            for number, hook in list(layer._forward_pre_hooks.items()):
                if hook is _quantize_input:
                    del layer._forward_pre_hooks[number], layer._forward_pre_hooks_with_kwargs[number]
            del record.inputs[name]
    return spare
