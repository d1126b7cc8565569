"""A QDQ ONNX file as a list of nodes in which what is constant is computed and each grid stands where it is used.

QDQ writes every quantized tensor as floating numbers on a grid, between a QuantizeLinear (Q) and a DequantizeLinear
(DQ) node. Three rewrites bring that into the form from which ``fairquant.export.arithmetic.plan`` decides what is whole
numbers. They are the part of onnxruntime's that matters for numbers, at opset 13 to 18:

1. Nodes computed from constants alone are computed (the integer weights are looked up in the graph from packed codes).
   DQ of a constant stays: it says that a weight lies on a grid.
2. A DQ with one scale moves behind ``MaxPool``, ``Reshape``, ``Transpose``, ``Squeeze``, ``Unsqueeze`` and ``Slice``:
   they pick or move numbers, so they may as well pick or move the codes.
3. A Q with one scale moves before those nodes, where nothing else reads the tensors on the way. After that, a ``Relu``
   or ``Clip`` that only a Q reads disappears where the range of the Q's codes lies within what it lets through: the
   code range clips already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fairquant.errors import UserError

Array = npt.NDArray[Any]
OPSETS = range(13, 19)
MOVING = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
CODES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127), np.dtype(np.int32): (-(2**31), 2**31 - 1)}
CLIP_TOLERANCE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class Grid:
    """Codes q of an integer type that stand for ``scale · (q − zero)``.

    Attributes:
        scale: float32, () or (channels,).
        zero: of the codes' type, of ``scale``'s shape.
        axis: the dimension that the channels lie along, as the file says it.
    """

    scale: npt.NDArray[np.float32]
    zero: Array
    axis: int

    @property
    def single(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.scale.size == 1

    @property
    def least(self) -> int:
        """The least code."""
        return CODES[self.zero.dtype][0]

    @property
    def largest(self) -> int:
        """The largest code."""
        return CODES[self.zero.dtype][1]


@dataclass(eq=False)
class Node:
    """One operation: ``inputs`` and ``outputs`` are names of tensors, "" an optional input that is absent."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The first tensor computed."""
        return self.outputs[0]


@dataclass(eq=False)
class Graph:
    """Nodes in an order of computation, the constants they read, and the names of what goes in and comes out."""

    nodes: list[Node]
    constants: dict[str, Array]
    image: str
    logits: str
    opset: int

    def makers(self) -> dict[str, Node]:
        """Return the node that computes each tensor, by the tensor's name."""
        return {name: node for node in self.nodes for name in node.outputs}

    def readers(self) -> Counter[str]:
        """Return how often each tensor is read; the logits once more."""
        return Counter([name for node in self.nodes for name in node.inputs] + [self.logits])

    def grid(self, node: Node) -> Grid:
        """Return the grid of a Q or DQ node.

        Raises ``UserError`` where it is not constant or of another type than uint8, int8 and (DQ) int32.
        """
        scale = self.constants.get(node.inputs[1])
        zero = self.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        if scale is not None and zero is None:
            codes = self.constants.get(node.inputs[0])
            zero = np.zeros(scale.shape, np.uint8 if codes is None else codes.dtype)
        if scale is None or zero is None or scale.dtype != np.float32 or zero.dtype not in CODES:
            kind = "a computed one" if scale is None or zero is None else f"{scale.dtype} and {zero.dtype}"
            raise UserError(
                f"{node.output}: got {kind} as scale and zero point; allowed: constant float32 and uint8, int8 or int32"
            )
        single = scale.size == 1
        return Grid(scale.reshape(()) if single else scale, zero.reshape(()) if single else zero,
                    int(node.attributes.get("axis", 1)))  # fmt: skip


def read_graph(model: onnx.ModelProto) -> Graph:
    """Return the graph of an ONNX file after the three rewrites.

    Raises ``UserError`` where it has more than one input or output, or an opset outside 13 to 18.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise UserError(f"opset: got {opset}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in stored]
    outputs = [value.name for value in model.graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"model: got {len(inputs)} inputs and {len(outputs)} outputs; allowed: one of each")
    constants, kept = _folded(model, opset)
    nodes = [
        Node(node.op_type, list(node.input), list(node.output),
             {entry.name: helper.get_attribute_value(entry) for entry in node.attribute})
        for node in kept
    ]  # fmt: skip
    graph = Graph(nodes, constants, inputs[0], outputs[0], opset)
    _unshare(graph)
    while _move_dequantize(graph) or _move_quantize(graph):
        pass
    while _drop_clip(graph):
        pass
    return graph


def _folded(model: onnx.ModelProto, opset: int) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    """Return all constants, computed ones included, and the nodes that are left."""
    constants: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known, folded, kept = set(constants), [], []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and known.issuperset(filter(None, node.input)):
            folded.append(node)
            known.update(node.output)
        else:
            kept.append(node)
    if not folded:
        return constants, kept
    read = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    wanted = sorted({name for node in folded for name in node.output} & read)
    part = helper.make_graph(
        folded, "constants", [], [onnx.ValueInfoProto(name=name) for name in wanted],
        initializer=[tensor for tensor in model.graph.initializer if any(tensor.name in node.input for node in folded)],
    )  # fmt: skip
    whole = helper.make_model(part, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    computed = ReferenceEvaluator(whole).run(None, {})
    return {**constants, **dict(zip(wanted, map(np.asarray, computed), strict=True))}, kept


def _unshare(graph: Graph) -> None:
    """Give every reader of a DQ its own, so that each may move."""
    readers, makers = graph.readers(), graph.makers()
    nodes: list[Node] = []
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            maker = makers.get(name)
            if maker is not None and maker.op == "DequantizeLinear" and readers[name] > 1:
                copy = Node(maker.op, list(maker.inputs), [f"{name}/{node.output}/{place}"], maker.attributes)
                nodes.append(copy)
                node.inputs[place] = copy.output
        nodes.append(node)
    graph.nodes[:] = _read_ones(graph, nodes)


def _read_ones(graph: Graph, nodes: Sequence[Node]) -> Iterator[Node]:
    read = {graph.logits, *(name for node in nodes for name in node.inputs)}
    return (node for node in nodes if not read.isdisjoint(node.outputs))


def _move_dequantize(graph: Graph) -> bool:
    """Swap the first DQ → moving node whose DQ has one scale; return whether there was one."""
    makers = graph.makers()
    for node in graph.nodes:
        dequantize = makers.get(node.inputs[0]) if node.op in MOVING else None
        if dequantize is None or dequantize.op != "DequantizeLinear" or not graph.grid(dequantize).single:
            continue
        codes, moved, after = dequantize.inputs[0], f"{node.output}/codes", node.output
        graph.nodes.remove(dequantize)
        node.inputs[0], node.outputs[0] = codes, moved
        dequantize.inputs[0], dequantize.outputs[0] = moved, after
        graph.nodes.insert(graph.nodes.index(node) + 1, dequantize)
        _unshare(graph)
        return True
    return False


def _move_quantize(graph: Graph) -> bool:
    """Swap the first moving node → Q that nothing else reads and whose Q has one scale; return whether there was."""
    makers, readers = graph.makers(), graph.readers()
    for quantize in graph.nodes:
        if quantize.op != "QuantizeLinear" or not graph.grid(quantize).single:
            continue
        node = makers.get(quantize.inputs[0])
        if node is None or node.op not in MOVING or readers[node.output] > 1 or readers[node.inputs[0]] > 1:
            continue
        before, moved, after = node.inputs[0], f"{node.inputs[0]}/codes", quantize.output
        graph.nodes.remove(quantize)
        quantize.inputs[0], quantize.outputs[0] = before, moved
        node.inputs[0], node.outputs[0] = moved, after
        graph.nodes.insert(graph.nodes.index(node), quantize)
        return True
    return False


def _drop_clip(graph: Graph) -> bool:
    """Remove the first Relu or Clip that a Q makes needless; return whether there was one."""
    makers, readers = graph.makers(), graph.readers()
    for quantize in graph.nodes:
        clip = makers.get(quantize.inputs[0]) if quantize.op == "QuantizeLinear" else None
        if clip is None or clip.op not in ("Relu", "Clip") or readers[clip.output] > 1:
            continue
        grid = graph.grid(quantize)
        if grid.single and _lets_through(graph, clip, grid):
            graph.nodes.remove(clip)
            quantize.inputs[0] = clip.inputs[0]
            return True
    return False


def _lets_through(graph: Graph, clip: Node, grid: Grid) -> bool:
    if clip.op == "Relu":
        return int(grid.zero) == grid.least
    low, high = (np.float32(grid.scale * np.float32(code - int(grid.zero))) for code in (grid.least, grid.largest))
    bounds = [graph.constants.get(name) for name in (*clip.inputs[1:], "", "")[:2]]
    if any(bound is None and name for bound, name in zip(bounds, clip.inputs[1:], strict=False)):
        return False
    least, largest = (
        default if bound is None else float(bound) for bound, default in zip(bounds, (-np.inf, np.inf), strict=True)
    )
    return bool(least - low <= CLIP_TOLERANCE and high - largest <= CLIP_TOLERANCE)
