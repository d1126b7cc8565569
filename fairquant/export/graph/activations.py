"""Activation marks of an exported graph become operators.

- A static grid of 2 to 8 bits: QuantizeLinear → [Clip of the codes] → DequantizeLinear.
- A static grid of 9 to 16 bits, and a dynamic one, in floating numbers as ``fairquant.quantize.affine`` computes it:
  round(x · (1/Δ)) + z, cut to the codes, − z, · Δ; where it is dynamic, Δ and z come from the tensor's extremes.

Before that, marks are repeated behind what only picks or moves numbers (max pooling, reshaping …): rounding to the same
grid again changes nothing, and runtimes fuse a layer only with a DequantizeLinear right in front of it. They fuse it
only with a QuantizeLinear right behind, so that a Relu or Clip that marks alone read becomes the range of their codes,
and what a Concat joins is rounded before it is joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

from fairquant.export.graph.deploy import DOMAIN, MARK, POINT
from fairquant.export.graph.edit import FLOAT, INT32, UINT8, GraphEdit, attribute, make
from fairquant.export.graph.grids import ActivationGrid
from fairquant.quantize.affine import SMALLEST

PICKS = (
    "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that pick or move numbers of their first input; Pad with zeros does, too: 0 is on every grid."""


@dataclass(eq=False)
class Marks:
    """The activation marks of a graph: the grid of each, by the name of its node."""

    edit: GraphEdit
    grids: dict[str, ActivationGrid] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)
    """Which point a mark rounds to, by the name of its node."""

    @classmethod
    def of(cls, edit: GraphEdit, grids: Mapping[str, ActivationGrid]) -> Marks:
        """Find the marks of ``edit`` and name them after their points."""
        found = cls(edit)
        for node in edit.of(MARK):
            point = attribute(node, POINT).decode()
            name, number = point, 1
            while name in found.grids:
                name, number = f"{point}_{number}", number + 1
            edit.read_instead(node.output[0], name)
            node.name = node.output[0] = name
            found.grids[name], found.points[name] = grids[point], point
        return found

    def before(self, name: str) -> str | None:
        """Return the mark whose grid the numbers of tensor ``name`` lie on, or None."""
        node = self.edit.maker(name)
        while node is not None and node.op_type != MARK:
            picks = node.op_type in PICKS or (node.op_type == "Pad" and self._pads_zeros(node))
            node = self.edit.maker(node.input[0]) if picks else None
        return None if node is None else node.name

    def grid(self, name: str) -> ActivationGrid | None:
        """Return the grid of the mark that computes tensor ``name``; None where none does."""
        return self.grids.get(name)

    def repeat(self, readers: Iterable[tuple[NodeProto, int]]) -> None:
        """Put a mark right in front of ``readers`` (node, place of the input) of numbers on an integer grid.

        Nothing is clipped there: the numbers are those of codes in use.
        """
        for node, place in readers:
            given = node.input[place]
            mark = self.before(given)
            if mark is None or mark == given or not self.grids[mark].integer:
                continue
            name = f"{given}.again"
            if name not in self.grids:
                first = min((reader for reader, _ in self.edit.readers(given)), key=self.edit.place)
                again = self._mark(given, name, self.points[mark], self.grids[mark].whole())
                self.edit.insert(first, [again])
            node.input[place] = name

    def spread(self) -> None:
        """Round what a Concat joins before it does, where all of that is rounded behind: the numbers are the same."""
        for node in self.edit.of("Concat"):
            readers = self.edit.readers(node.output[0])
            grid = self.grids.get(readers[0][0].name) if len(readers) == 1 else None
            if grid is None or not grid.integer:
                continue
            point = self.points[readers[0][0].name]
            for place, given in enumerate(node.input):
                name = f"{readers[0][0].name}.part{place}"
                self.edit.insert(node, [self._mark(given, name, point, grid)])
                node.input[place] = name
            self.grids[readers[0][0].name] = grid.whole()

    def absorb_clips(self) -> None:
        """Make each Relu and Clip that only marks of integer grids read a range of their codes."""
        for node in self.edit.of("Relu", "Clip"):
            ends = self._ends(node)
            readers = self.edit.readers(node.output[0])
            marks = all(reader.op_type == MARK and self.grids[reader.name].integer for reader, _ in readers)
            if ends is None or not readers or not marks or node.output[0] in self.edit.outputs:
                continue
            for reader, _ in readers:
                self.grids[reader.name] = self.grids[reader.name].within(*ends)
            self.edit.read_instead(node.output[0], node.input[0])
            self.edit.remove(node)

    def _ends(self, node: NodeProto) -> tuple[float, float] | None:
        """Return what a Relu or Clip cuts to; None where that is computed."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        values = [self.edit.constant(name) for name in node.input[1:]]
        if any(value is None and name for value, name in zip(values, node.input[1:], strict=True)):
            return None
        low, high = (*values, None, None)[:2]
        return -np.inf if low is None else float(low), np.inf if high is None else float(high)

    def _pads_zeros(self, node: NodeProto) -> bool:
        if attribute(node, "mode", b"constant") != b"constant":
            return True  # it picks numbers
        value = self.edit.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return value is not None and not value.any()

    def _mark(self, given: str, name: str, point: str, grid: ActivationGrid) -> NodeProto:
        """Return a further mark of ``point`` that reads tensor ``given``."""
        self.grids[name], self.points[name] = grid, point
        return helper.make_node(MARK, [given], [name], name=name, domain=DOMAIN, **{POINT: point})


def expand_marks(marks: Marks, *, apart: Iterable[NodeProto] = ()) -> None:
    """Replace every mark; nodes ``apart`` get numbers that do not come from a DequantizeLinear.

    onnxruntime rounds a floating weight between a DequantizeLinear and a QuantizeLinear to 8 bits without being asked;
    for such a layer the codes are made numbers again by Cast, Sub and Mul, which is the same arithmetic.
    """
    kept_apart = {id(node) for node in apart}
    for node in marks.edit.of(MARK):
        grid = marks.grids[node.name]
        if grid.integer:
            _quantized(marks, node, grid, kept_apart)
        else:
            marks.edit.replace(node, _rounded(marks.edit, node, grid, marks.points[node.name]))


def _quantized(marks: Marks, node: NodeProto, grid: ActivationGrid, apart: set[int]) -> None:
    assert grid.scale is not None and grid.zero is not None  # integer
    edit, name, point = marks.edit, node.name, marks.points[node.name]
    scale = edit.store(f"{point}.scale", grid.scale)
    zero = edit.store(f"{point}.zero_point", np.array(grid.zero, grid.dtype))
    codes = f"{name}.codes"
    nodes = [make("QuantizeLinear", [node.input[0], scale, zero], codes)]
    if grid.clips:
        ends = [edit.store(f"{grid.dtype.name}.{end}", np.array(end, grid.dtype)) for end in (grid.least, grid.largest)]
        codes = f"{name}.clipped"
        nodes.append(make("Clip", [nodes[0].output[0], *ends], codes))
    readers = [reader for reader, _ in edit.readers(name)]
    if grid.dtype == np.uint8 and any(reader.op_type == "Add" for reader in readers):
        nodes += _kept_apart(edit, edit.maker(node.input[0]), codes, name)
        codes = str(nodes[-1].output[0])
    far = [reader for reader in readers if id(reader) in apart]
    if len(far) < len(readers) or name in edit.outputs:
        nodes.append(make("DequantizeLinear", [codes, scale, zero], name))
    if far:
        nodes.append(make("Cast", [codes], f"{name}.number", to=FLOAT))
        moved = nodes[-1].output[0]
        if grid.zero:
            offset = edit.store(f"{point}.offset", np.float32(grid.zero))
            nodes.append(make("Sub", [moved, offset], f"{name}.level"))
            moved = nodes[-1].output[0]
        nodes.append(make("Mul", [moved, scale], f"{name}.float"))
        edit.read_instead(name, f"{name}.float", among=far)
    edit.replace(node, nodes)


def _kept_apart(edit: GraphEdit, maker: NodeProto | None, codes: str, name: str) -> list[NodeProto]:
    """Return operators that change no code, between a layer's rounded result and the residual sum that reads it.

    OpenVINO makes layer, rounding and addition one operator and leaves out the rounding: a quarter of the codes behind
    it were off by one. A pooling over one pixel, or for tokens a cast there and back, keeps them apart.
    """
    if maker is not None and maker.op_type == "Conv":
        return [make("MaxPool", [codes], f"{name}.kept", kernel_shape=[1, 1])]
    biased = (
        maker is not None and maker.op_type == "Add" and any(edit.constant(given) is not None for given in maker.input)
    )
    if biased or (maker is not None and maker.op_type in ("Gemm", "MatMul")):
        wide = make("Cast", [codes], f"{name}.wide", to=INT32)
        return [wide, make("Cast", wide.output, f"{name}.kept", to=UINT8)]
    return []


def _rounded(edit: GraphEdit, node: NodeProto, grid: ActivationGrid, point: str) -> list[NodeProto]:
    """Return operators in floating numbers that round ``node``'s input to ``grid``."""
    name, given = node.name, node.input[0]
    nodes: list[NodeProto] = []

    def then(operator: str, inputs: list[str], label: str, **attributes: int) -> str:
        nodes.append(make(operator, inputs, f"{name}.{label}" if label else name, **attributes))
        return str(nodes[-1].output[0])

    least, largest = (edit.store(f"codes.{end}", np.float32(end)) for end in (grid.least, grid.largest))
    if grid.scale is None:
        inverse, zero, scale = _found(edit, then, given, grid)
    else:
        inverse = edit.store(f"{point}.inverse", np.float32(1) / grid.scale)
        zero = edit.store(f"{point}.zero_point", np.float32(grid.zero))
        scale = edit.store(f"{point}.scale", grid.scale)
    codes = then("Round", [then("Mul", [given, inverse], "steps")], "rounded")
    if not grid.symmetric:
        codes = then("Add", [codes, zero], "moved")
    codes = then("Clip", [codes, least, largest], "codes")
    if not grid.symmetric:
        codes = then("Sub", [codes, zero], "level")
    then("Mul", [codes, scale], "")
    return nodes


def _found(edit: GraphEdit, then: Callable[..., str], given: str, grid: ActivationGrid) -> tuple[str, str, str]:
    """Return the names of 1/Δ, z and Δ of a tensor's own range, as ``Codes.grid`` finds them."""
    nothing, one = edit.store("zero", np.float32(0)), edit.store("one", np.float32(1))
    least, largest = (edit.store(f"codes.{end}", np.float32(end)) for end in (grid.least, grid.largest))
    low = then("Min", [then("ReduceMin", [given], "min", keepdims=0), nothing], "low")
    high = then("Max", [then("ReduceMax", [given], "max", keepdims=0), nothing], "high")
    if grid.symmetric:
        width, steps = then("Max", [then("Neg", [low], "reach"), high], "width"), largest
    else:
        width = then("Sub", [high, low], "width")
        steps = edit.store(f"codes.{grid.largest - grid.least}", np.float32(grid.largest - grid.least))
    step = then("Max", [then("Div", [width, steps], "step"), edit.store("codes.step", np.float32(SMALLEST))], "least")
    scale = then("Where", [then("Equal", [width, nothing], "flat"), one, step], "scale")
    zero = nothing
    if not grid.symmetric:
        start = then("Round", [then("Div", [low, scale], "start")], "first")
        zero = then("Clip", [then("Sub", [least, start], "origin"), least, largest], "zero")
    return then("Reciprocal", [scale], "inverse"), zero, scale
