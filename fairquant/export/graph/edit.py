"""An ONNX graph that passes change: nodes, the tensors they read, who computes a tensor and who reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class GraphEdit:
    """Nodes in an order that can run, initializers by name, and the names of what goes in and comes out."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Take in what ``graph`` holds."""
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]

    def maker(self, name: str) -> NodeProto | None:
        """Return the node that computes tensor ``name``; None for inputs and initializers."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[tuple[NodeProto, int]]:
        """Return the nodes that read tensor ``name``, with the place of it among their inputs."""
        return [(node, place) for node in self.nodes for place, given in enumerate(node.input) if given == name]

    def constant(self, name: str) -> Array | None:
        """Return the values of an initializer; None for any other tensor."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def store(self, name: str, values: Array | np.generic) -> str:
        """Make an initializer and return its name; one that is there must hold the same values."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        if self.initializers.setdefault(name, tensor) != tensor:
            raise ValueError(f"initializer: got {name!r} twice with different values; allowed: one tensor a name")
        return name

    def insert(self, before: NodeProto | None, nodes: Iterable[NodeProto]) -> None:
        """Put ``nodes`` before another; None: before all."""
        place = 0 if before is None else self.place(before)
        self.nodes[place:place] = list(nodes)

    def remove(self, node: NodeProto) -> None:
        """Take ``node`` out; nothing may read what it computed."""
        del self.nodes[self.place(node)]

    def replace(self, node: NodeProto, nodes: Sequence[NodeProto]) -> None:
        """Put ``nodes`` in the place of one."""
        place = self.place(node)
        self.nodes[place : place + 1] = list(nodes)

    def read_instead(self, old: str, new: str, *, among: Iterable[NodeProto] | None = None) -> None:
        """Let everyone, or the nodes ``among``, read tensor ``new`` where they read ``old``."""
        for node in self.nodes if among is None else among:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
        if among is None:
            self.outputs = [new if name == old else name for name in self.outputs]

    def of(self, *operators: str) -> Iterator[NodeProto]:
        """Yield the nodes of these operators, in order; the graph may be changed meanwhile."""
        yield from [node for node in self.nodes if node.op_type in operators]

    def drop_unread(self) -> None:
        """Take out nodes and initializers that lead to no output."""
        read, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.output):
                kept.append(node)
                read.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in read}

    def place(self, node: NodeProto) -> int:
        """Return where ``node`` stands."""
        return next(place for place, other in enumerate(self.nodes) if other is node)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of an attribute of ``node``, or ``default``."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def make(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """Return a node with one output, which bears the same name."""
    return helper.make_node(operator, list(inputs), [output], name=output, **attributes)


FLOAT, INT32, UINT8 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8
