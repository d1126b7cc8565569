"""Where activations are quantized: the tensors of a model's graph that a point stands behind.

Quantized are, as in the study of fairness under quantization that this follows (its ``QuantConv2d``, ``QuantLinear``,
``QuantAdd`` and ``Quant…Pool2d`` each quantize what they are given):

- the input of every quantizable layer, the image among them;
- both operands of an addition of two activations: the sum of a residual block. An activation is a tensor computed from
  the image; what is added to it from a parameter or a constant (position embeddings, biases) is none;
- the input of every pooling: modules without parameters whose class name holds "Pool", functions whose name does,
  and means over dimensions other than the first.

A tensor has one point, whoever reads it (what ``nn.Identity`` hands on is the same tensor), so that nothing is
quantized twice; and what a max pooling picks out of a quantized tensor needs no point of its own, reshaped or not: it
lies on the same grid. Who reads the tensor for another purpose (layer norm, softmax, a product) gets it as it was.

A point bears the name of its first reader: ``conv1.input``, ``layer1.0.add.1`` (the second operand of the block's sum,
``add_1`` in a block with a second sum), ``features.3.input``.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from fairquant.models.layers import quantizable_layers

ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)
ADD_METHODS = ("add", "add_", "__add__", "__iadd__")
MEANS = ("mean",)
VIEW_METHODS = {
    "chunk", "contiguous", "flatten", "permute", "reshape", "split", "squeeze", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip
VIEW_FUNCTIONS: set[Callable[..., Any]] = {
    operator.getitem, torch.chunk, torch.flatten, torch.permute, torch.reshape, torch.split, torch.squeeze,
    torch.transpose, torch.unsqueeze,
}  # fmt: skip
VIEW_MODULES = (nn.Flatten, nn.Identity, nn.Unflatten)
NUMBER_METHODS = ("dim", "is_contiguous", "ndimension", "numel", "size", "stride", "type")
NUMBER_ATTRIBUTES = ("device", "dtype", "is_cuda", "layout", "ndim", "shape")
DIRECT_USES = (F.linear, F.conv2d, torch.conv2d)
WEIGHT_SUFFIXES = (".parametrizations.weight.0", ".weight")


@dataclass(frozen=True)
class Point:
    """One tensor that is quantized.

    Attributes:
        name: readable and unique in the model.
        source: the node that computes the tensor.
        reads: who reads it quantized: pairs of the reading node and the argument it is given now, which is the source
            or what ``nn.Identity`` hands on of it.
    """

    name: str
    source: fx.Node
    reads: tuple[tuple[fx.Node, fx.Node], ...]


@dataclass(frozen=True)
class Points:
    """All points of a graph, in its order, and the points that feed each quantizable layer."""

    points: tuple[Point, ...]
    inputs: dict[str, tuple[str, ...]]


def find_points(model: fx.GraphModule) -> Points:
    """Return where the activations of ``model`` are quantized; the graph is left as it is."""
    reader = _Reader(model)
    reads: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
    names: dict[fx.Node, str] = {}
    fed: list[tuple[str, fx.Node]] = []
    for node in model.graph.nodes:
        layer = reader.layer_of(node)
        for operand, given in reader.operands(node):
            source = reader.computed(given)
            origin = reader.origin(source)
            if origin is source:
                names.setdefault(source, f"{layer or reader.labels[node]}.{operand}")
                reads.setdefault(source, []).append((node, given))
            if layer is not None:
                fed.append((layer, origin))
    final = dict(zip(names, _distinct(list(names.values())), strict=True))
    points = tuple(Point(name, source, tuple(reads[source])) for source, name in final.items())
    inputs: dict[str, tuple[str, ...]] = {}
    for layer, origin in fed:
        inputs[layer] = (*inputs.get(layer, ()), final[origin])
    return Points(points, inputs)


def _distinct(names: list[str]) -> list[str]:
    """Number the names that stand several times: a module used twice has two inputs."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        result.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return result


class _Reader:
    """What the nodes of one graph do with activations."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.layers = {id(layer): name for name, layer in quantizable_layers(model).items()}
        self.names = {name: self.layers[id(m)] for name, m in self.modules.items() if id(m) in self.layers}
        self.activations = self._activations(model.graph)
        self.labels = dict(self._labels(model.graph))

    def operands(self, node: fx.Node) -> Iterator[tuple[str, fx.Node]]:
        """Yield the activations that ``node`` must be given quantized, with their names at it."""
        if self._is_addition(node):
            for number, value in enumerate(node.args[:2]):
                if isinstance(value, fx.Node):
                    yield str(number), value
        elif self.layer_of(node) is not None or self.is_pooling(node):
            value = _first(node)
            if value in self.activations:
                yield "input", value

    def computed(self, node: fx.Node) -> fx.Node:
        """Return the node that computes the tensor ``node`` is: one that hands it on does not."""
        while node.op == "call_module" and type(self.modules[str(node.target)]) is nn.Identity:
            node = _first(node)
        return node

    def origin(self, node: fx.Node) -> fx.Node:
        """Return the tensor whose grid ``node`` lies on: itself, or what a max pooling before it picks from."""
        below = node
        while self._is_view(below):
            below = _first(below)
        return self.origin(_first(below)) if self._is_max_pooling(below) else node

    def layer_of(self, node: fx.Node) -> str | None:
        """Return the quantizable layer that ``node`` applies, called or through its weight."""
        if node.op == "call_module":
            return self.names.get(str(node.target))
        if node.op != "call_function" or node.target not in DIRECT_USES:
            return None
        weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
        place = str(weight.target) if isinstance(weight, fx.Node) and weight.op in ("get_attr", "call_module") else ""
        return next((self.names.get(place.removesuffix(s)) for s in WEIGHT_SUFFIXES if place.endswith(s)), None)

    def is_pooling(self, node: fx.Node) -> bool:
        """Return whether ``node`` averages over positions or picks among them."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            name = type(module).__name__.lower()
            return "pool" in name and "unpool" not in name and not any(True for _ in module.parameters())
        if _called(node) in MEANS:
            return _averages_positions(node)
        return node.op == "call_function" and "pool" in _called(node)

    def _is_addition(self, node: fx.Node) -> bool:
        adds = (node.op == "call_function" and node.target in ADD_FUNCTIONS) or (
            node.op == "call_method" and node.target in ADD_METHODS
        )
        return adds and len(node.args) > 1 and all(value in self.activations for value in node.args[:2])

    def _is_max_pooling(self, node: fx.Node) -> bool:
        name = type(self.modules[str(node.target)]).__name__ if node.op == "call_module" else _called(node)
        plain = name.lower().replace("_", "")
        return self.is_pooling(node) and "maxpool" in plain and "avg" not in plain

    def _is_view(self, node: fx.Node) -> bool:
        if node not in self.activations:
            return False
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], VIEW_MODULES)
        if node.op == "call_method":
            return node.target in VIEW_METHODS
        return node.op == "call_function" and node.target in VIEW_FUNCTIONS

    @staticmethod
    def _activations(graph: fx.Graph) -> set[fx.Node]:
        """Return the nodes that compute tensors from the image: not shapes, nor what is made of parameters alone."""
        found: set[fx.Node] = set()
        for node in graph.nodes:
            computed = node.op == "placeholder" or any(source in found for source in node.all_input_nodes)
            if computed and node.op != "output" and not _is_number(node):
                found.add(node)
        return found

    @staticmethod
    def _labels(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
        """Yield a readable name for every node: its module's, or the function's in the module that calls it."""
        seen: Counter[str] = Counter()
        for node in graph.nodes:
            if node.op == "call_module":
                yield node, str(node.target)
                continue
            name = "add" if node.target in (*ADD_FUNCTIONS, *ADD_METHODS) else _called(node)
            plain = ".".join(part for part in (_scope(node), name) if part)
            yield node, f"{plain}_{seen[plain]}" if seen[plain] else plain
            seen[plain] += 1


def _first(node: fx.Node) -> fx.Node:
    """Return the first tensor that ``node`` is given."""
    given = (*node.args, *node.kwargs.values())
    return next(value for value in given if isinstance(value, fx.Node))


def _called(node: fx.Node) -> str:
    """Return the name of the function or method that ``node`` calls."""
    return str(getattr(node.target, "__name__", node.target)) if node.op.startswith("call_") else node.op


def _scope(node: fx.Node) -> str:
    """Return the module that ``node`` was computed in."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _is_number(node: fx.Node) -> bool:
    """Return whether ``node`` asks a tensor for its shape or the like."""
    if node.op == "call_method":
        return node.target in NUMBER_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in NUMBER_ATTRIBUTES


def _averages_positions(node: fx.Node) -> bool:
    """Return whether a mean keeps the samples apart."""
    over = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = over if isinstance(over, (tuple, list)) else (over,)
    return all(isinstance(dim, int) and dim != 0 for dim in dims) and len(dims) > 0
