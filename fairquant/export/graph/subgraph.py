"""A piece of an ONNX graph without inputs that ends in one tensor, and what collects one.

Operators are those of set 18 (IR version 8), which onnxruntime 1.16 to 1.31 ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Subgraph:
    """``nodes`` in an order that can run, the ``initializers`` they read, and the name of the ``output`` tensor.

    The output may be an initializer. Every name begins with the prefix the subgraph was made with.
    """

    nodes: tuple[NodeProto, ...]
    initializers: tuple[TensorProto, ...]
    output: str


class Builder:
    """Collects nodes and initializers; names are ``prefix`` and ``/`` and a label."""

    def __init__(self, prefix: str) -> None:
        """Start empty."""
        self._prefix = prefix
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def store(self, label: str, values: Array) -> str:
        """Add an initializer and return its name; a label that is there must hold the same values."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), f"{self._prefix}/{label}")
        if self._initializers.setdefault(tensor.name, tensor) != tensor:
            raise ValueError(f"label: got {label!r} twice with different values; allowed: one tensor a label")
        return tensor.name

    def node(self, operator: str, inputs: Iterable[str], label: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name, which must be new."""
        name = f"{self._prefix}/{label}"
        if name in self._initializers or any(name in node.output for node in self._nodes):
            raise ValueError(f"label: got {label!r} twice; allowed: one tensor a label")
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def finish(self, output: str) -> Subgraph:
        """Return what was collected."""
        return Subgraph(tuple(self._nodes), tuple(self._initializers.values()), output)


def stored_bytes(*subgraphs: Subgraph) -> int:
    """Return the bytes that nodes and initializers take in a file, names and all."""
    nodes = [node.ByteSize() for subgraph in subgraphs for node in subgraph.nodes]
    tensors = [tensor.ByteSize() for subgraph in subgraphs for tensor in subgraph.initializers]
    tags = [1 + max(1, -(-size.bit_length() // 7)) for size in nodes + tensors]  # and the length, 7 bits in a byte
    return sum(nodes + tensors + tags)


def merged(subgraphs: Iterable[Subgraph]) -> tuple[tuple[NodeProto, ...], tuple[TensorProto, ...]]:
    """Return nodes and initializers of all, equal initializers (the tables, above all) only once.

    The first of equal initializers keeps its name, the nodes that read the others are changed to read it; outputs keep
    their names.
    """
    parts = tuple(subgraphs)
    outputs = {part.output for part in parts}
    kept: dict[tuple[Any, ...], TensorProto] = {}
    read_as: dict[str, str] = {}
    for tensor in (tensor for part in parts for tensor in part.initializers):
        alone = tensor.name if tensor.name in outputs else ""
        first = kept.setdefault((tensor.data_type, tuple(tensor.dims), tensor.raw_data, alone), tensor)
        read_as[tensor.name] = first.name
    return tuple(_reading(node, read_as) for part in parts for node in part.nodes), tuple(kept.values())


def _reading(node: NodeProto, read_as: dict[str, str]) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.input[:] = [read_as.get(name, name) for name in node.input]
    return changed
