"""Which nodes of a QDQ graph are computed in whole numbers: the rules by which onnxruntime fuses, stated anew.

After the rewrites of ``fairquant.export.arithmetic.graph`` a node is computed in whole numbers where

- ``Conv``: image, weight and bias (if any) come from DQs, the weight is constant, the bias int32, and the result is
  read by one Q only;
- ``Gemm``: likewise, the DQ of the weight with a zero point; a result that no Q reads is floating; ``beta`` is 1, the
  image not transposed;
- ``MatMul``: from DQs, the weight constant with two dimensions; a result that no Q reads is floating;
- ``Add``: both come from DQs, one Q reads the result;
- ``GlobalAveragePool`` and ``AveragePool``: from a DQ, read by one Q only.

Whole-number nodes need one type for the codes of activations and result, and a weight with codes of 8 bits, int8 where
the activations are. (onnxruntime on x86 reads int8 activations as uint8 where one DQ alone reads the Q, and leaves
convolutions of others floating; here they are whole numbers all the same, equal but for that rounding.)

Everything else is computed in floating numbers, from what the DQs say. ``Mul`` of two DQs read by a Q alone, which
onnxruntime fuses too, is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from fairquant.errors import UserError
from fairquant.export.arithmetic import ops
from fairquant.export.arithmetic.floats import FLOAT_OPERATORS
from fairquant.export.arithmetic.graph import Array, Graph, Grid, Node
from fairquant.export.arithmetic.shapes import SHAPE_OPERATORS
from fairquant.export.arithmetic.window import window_of

Run = Callable[..., Tensor | tuple[Tensor, ...]]
OPERATORS = FLOAT_OPERATORS | SHAPE_OPERATORS
_Made = tuple[tuple[str, ...], Run]


@dataclass(frozen=True, eq=False)
class Step:
    """One computation: ``run`` of the tensors named ``inputs`` (None for "") gives those named ``outputs``."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Run


def plan(graph: Graph) -> list[Step]:
    """Return the computations that lead from the image to the logits, in order.

    Raises ``UserError`` naming an operator that is not supported.
    """
    planner = _Planner(graph)
    steps: list[Step] = []
    needed = {graph.logits}
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs) or id(node) in planner.absorbed:
            continue
        steps.append(planner.step(node))
        needed.update(steps[-1].inputs)
    return steps[::-1]


class _Planner:
    """Decides for one graph; nodes are asked for from the last to the first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers, self.readers = graph.makers(), graph.readers()
        self.absorbed: set[int] = set()

    def step(self, node: Node) -> Step:
        """Return the computation of a node; that of a Q may be its operand's too."""
        if node.op == "QuantizeLinear":
            grid, maker = self.graph.grid(node), self.makers.get(node.inputs[0])
            if maker is not None and self.readers[node.inputs[0]] == 1:
                fused = self._fused(maker, grid, node.output)
                if fused is not None:
                    self.absorbed.add(id(maker))
                    return fused
            return Step("QuantizeLinear", (node.inputs[0],), (node.output,), partial(ops.quantize, grid=grid))
        if node.op == "DequantizeLinear":
            return Step("DequantizeLinear", (node.inputs[0],), (node.output,),
                        partial(ops.dequantize, grid=self.graph.grid(node)))  # fmt: skip
        return self._fused(node, None, node.output) or self._floating(node)

    def _floating(self, node: Node) -> Step:
        if node.op not in OPERATORS:
            raise UserError(f"{node.output}: got operator {node.op}; allowed: {', '.join(sorted(OPERATORS))}")
        attributes = node.attributes | ({"outputs": len(node.outputs)} if node.op == "Split" else {})
        return Step(node.op, tuple(node.inputs), tuple(node.outputs), partial(OPERATORS[node.op], attributes))

    def _fused(self, node: Node, result: Grid | None, output: str) -> Step | None:
        """Return the computation of ``node`` in whole numbers, or None by the rules above."""
        sources = [self.makers.get(name) for name in node.inputs if name]
        if not sources or any(source is None or source.op != "DequantizeLinear" for source in sources):
            return None
        names = [source.inputs[0] for source in sources if source is not None]
        grids = [self.graph.grid(source) for source in sources if source is not None]
        if result is not None and (not result.single or not grids or grids[0].zero.dtype != result.zero.dtype):
            return None
        make = {
            "Conv": self._conv, "Gemm": self._gemm, "MatMul": self._matmul, "Add": self._add, "Mul": self._mul,
            "GlobalAveragePool": self._global_average, "AveragePool": self._average,
        }.get(node.op)  # fmt: skip
        made = None if make is None else make(node, names, grids, result)
        return None if made is None else Step(f"Q{node.op}", made[0], (output,), made[1])

    def _weight(self, names: Sequence[str], grids: Sequence[Grid]) -> tuple[Array, Array | None] | None:
        """Return the codes of a constant weight and its bias, or None where they are none."""
        codes = self.graph.constants.get(names[1])
        bias = self.graph.constants.get(names[2]) if len(names) > 2 else None
        signed = grids[0].zero.dtype == np.int8
        if codes is None or codes.dtype not in (np.uint8, np.int8) or (signed and codes.dtype != np.int8):
            return None
        if not grids[0].single or grids[0].zero.dtype == np.int32:
            return None
        if len(names) > 2 and (bias is None or bias.dtype != np.int32):
            return None
        return codes, bias

    def _conv(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        weight = self._weight(names, grids)
        if weight is None or result is None:
            return None
        products = ops.Products.of(weight[0], grids[1], weight[1], grids[0], result, out=0)
        window = window_of(node.attributes, node.output)
        return (names[0],), partial(ops.convolve, products=products, window=window)

    def _gemm(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        weight = self._weight(names, grids)
        stated = len(self.makers[node.inputs[1]].inputs) > 2
        if weight is None or not stated or node.attributes.get("beta", 1.0) != 1.0 or node.attributes.get("transA", 0):
            return None
        codes = weight[0].T if node.attributes.get("transB", 0) else weight[0]
        alpha = float(node.attributes.get("alpha", 1.0))
        products = ops.Products.of(
            np.ascontiguousarray(codes), grids[1], weight[1], grids[0], result, out=1, alpha=alpha
        )
        return (names[0],), partial(ops.multiply, products=products)

    def _matmul(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        weight = self._weight(names, grids)
        if weight is None or weight[0].ndim != 2:
            return None
        products = ops.Products.of(weight[0], grids[1], None, grids[0], result, out=1)
        return (names[0],), partial(ops.multiply, products=products)

    def _add(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        if result is None or grids[0].zero.dtype != grids[1].zero.dtype or not all(grid.single for grid in grids):
            return None
        return tuple(names), partial(ops.add, first=grids[0], second=grids[1], result=result)

    def _mul(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        if result is not None and grids[0].zero.dtype == grids[1].zero.dtype:
            raise UserError(f"{node.output}: got a Mul of quantized tensors, quantized; allowed: one floating operand")
        return None

    def _global_average(
        self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None
    ) -> _Made | None:
        if result is None or not grids[0].single:
            return None
        return tuple(names), partial(ops.global_average, grid=grids[0], result=result)

    def _average(self, node: Node, names: Sequence[str], grids: Sequence[Grid], result: Grid | None) -> _Made | None:
        if result is None or not grids[0].single:
            return None
        return tuple(names), partial(
            ops.average, grid=grids[0], result=result, kernel=tuple(node.attributes["kernel_shape"]),
            window=window_of(node.attributes, node.output),
            count_padding=bool(node.attributes.get("count_include_pad", 0)),
        )  # fmt: skip


def last_reads(steps: Sequence[Step], kept: str) -> list[tuple[str, ...]]:
    """Return for each step the tensors that nobody needs after it."""
    left = Counter(name for step in steps for name in set(step.inputs)) + Counter([kept])
    freed = []
    for step in steps:
        left.subtract(set(step.inputs))
        freed.append(tuple(sorted(name for name in set(step.inputs) if left[name] == 0)))
    return freed
