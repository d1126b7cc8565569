"""Weights and biases of quantizable layers are put into an exported graph, as integers wherever that is possible.

A layer is computed in integers where its weight is (symmetric grids of at most 8 bits, one a channel) and whatever it
multiplies comes from an activation mark of 8 bits or less. Its weight is DequantizeLinear of int8 levels, its bias
DequantizeLinear of int32 multiples of Δ_activations · Δ_weights, without which onnxruntime fuses no convolution. All
other layers keep floating weights, and the numbers they had in simulation.

onnxruntime fuses a convolution only if its result is rounded right away. Where it is not (SiLU comes first, say), the
levels become numbers by Cast and Mul, which it computes at load, where a DequantizeLinear would run at every inference;
OpenVINO computes in integers either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import NodeProto, helper

from fairquant.export.codes import CodedLayer, Floats
from fairquant.export.graph.activations import Marks
from fairquant.export.graph.deploy import ExportLayer
from fairquant.export.graph.edit import FLOAT, GraphEdit, attribute, make
from fairquant.export.graph.lut import float_weight, integer_weight, is_integer
from fairquant.export.graph.recode import fit_for_bias, folded, integer_bias
from fairquant.export.graph.subgraph import Subgraph, merged

Flavour = Literal["onnx", "tensorrt"]


@dataclass(frozen=True, eq=False)
class Use:
    """One place where a layer's weight is read.

    Attributes:
        node: Conv, Gemm or MatMul, or whatever reads the weight for another purpose.
        kind: which of these.
        turn: the Transpose between the weight and a MatMul.
    """

    node: NodeProto
    kind: Literal["conv", "gemm", "matmul", "other"]
    turn: NodeProto | None = None


@dataclass(frozen=True)
class Placed:
    """What became of the layers.

    Attributes:
        integer: names of those with integer weights.
        floating: names of the others.
        apart: nodes with floating weights that a runtime might round by itself between Q and DQ.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    apart: tuple[NodeProto, ...]


def uses_of(edit: GraphEdit, name: str) -> tuple[Use, ...]:
    """Return the places where the weight of layer ``name`` is read, in order."""
    found: list[Use] = []
    for node, place in edit.readers(f"{name}.weight"):
        if node.op_type == "Conv" and place == 1:
            found.append(Use(node, "conv"))
        elif node.op_type == "Gemm" and place == 1 and attribute(node, "transB", 0) == 1:
            found.append(Use(node, "gemm"))
        elif node.op_type == "Transpose" and list(attribute(node, "perm", [1, 0])) == [1, 0]:
            products = edit.readers(node.output[0])
            whole = all(product.op_type == "MatMul" and at == 1 for product, at in products)
            found += [Use(product, "matmul", node) for product, _ in products] if whole else [Use(node, "other")]
        else:
            found.append(Use(node, "other"))
    return tuple(found)


def _with_bias(uses: Sequence[Use]) -> tuple[Use, ...]:
    """Return the uses whose node adds the bias itself."""
    return tuple(use for use in uses if use.kind in ("conv", "gemm"))


class LayerPass:
    """Puts the layers of one model into its graph."""

    def __init__(self, edit: GraphEdit, marks: Marks, biases: Mapping[str, Floats], flavour: Flavour) -> None:
        """Work on ``edit``; ``biases`` holds those of layers that have one, (out,) each, by name."""
        self.edit, self.marks, self.biases, self.flavour = edit, marks, biases, flavour
        self.subgraphs: list[Subgraph] = []
        self.constant_nodes: list[NodeProto] = []

    def run(self, layers: Mapping[str, ExportLayer]) -> Placed:
        """Replace the hidden inputs of all ``layers``; those that nothing reads are left out."""
        integer: list[str] = []
        floating: list[str] = []
        nodes: list[NodeProto] = []
        for name, layer in layers.items():
            uses = uses_of(self.edit, name)
            loose = self.flavour == "onnx" and any(self._is_loose(use) for use in uses)
            biased = () if loose or self.flavour == "tensorrt" or name not in self.biases else _with_bias(uses)
            coded = self._integer(name, layer, uses, biased)
            if coded is not None:
                self._place_integer(name, coded, uses, loose=loose)
                for number, use in enumerate(biased):
                    self._integer_bias(name, coded, use, number)
                integer.append(name)
            elif uses:
                self._place_floating(name, layer, uses)
                floating.append(name)
            if coded is None or loose:
                nodes += [use.node for use in uses if coded is None or self._ends_in_codes(use)]
            if self.edit.readers(f"{name}.bias"):
                self.edit.store(f"{name}.bias", self.biases[name])
        made, tensors = merged(self.subgraphs)
        self.edit.initializers |= {tensor.name: tensor for tensor in tensors}
        self.edit.insert(None, [*made, *self.constant_nodes])
        return Placed(tuple(integer), tuple(floating), tuple(nodes))

    def _integer(self, name: str, layer: ExportLayer, uses: Sequence[Use], biased: Sequence[Use]) -> CodedLayer | None:
        """Return the codes of a layer that is computed in integers, at ``biased`` with its bias; None for any other."""
        scales = {id(use): self._scale(use) for use in uses}
        if not uses or not is_integer(layer.coded) or None in scales.values():
            return None
        coded = folded(layer.coded, layer.factor)
        if not biased:
            return coded
        given = np.array([scales[id(use)] for use in biased], np.float64)
        return fit_for_bias(coded, self.biases[name].astype(np.float64), given)

    def _scale(self, use: Use) -> np.float32 | None:
        """Return Δ of what a layer multiplies; None where that is not on an integer grid."""
        grid = None if use.kind == "other" else self.marks.grid(use.node.input[0])
        return grid.scale if grid is not None and grid.integer else None

    def _rounded(self, use: Use) -> list[bool]:
        """Return for each reader of a layer's result whether it rounds it."""
        return [self.marks.grid(reader.name) is not None for reader, _ in self.edit.readers(use.node.output[0])]

    def _ends_in_codes(self, use: Use) -> bool:
        """Return whether a layer's result is rounded, or may be behind a Relu or Clip."""
        readers = [reader.op_type for reader, _ in self.edit.readers(use.node.output[0])]
        return any(self._rounded(use)) or "Relu" in readers or "Clip" in readers

    def _is_loose(self, use: Use) -> bool:
        """Return whether a use is a convolution whose result is not rounded right away, and by one grid."""
        return use.kind == "conv" and self._rounded(use) != [True]

    def _place_integer(self, name: str, coded: CodedLayer, uses: Sequence[Use], *, loose: bool) -> None:
        for turned in sorted({use.kind != "conv" for use in uses}):
            prefix = f"{name}.weight.turned" if turned else f"{name}.weight"
            weight = self._numbers(name, coded, prefix, turned=turned, loose=loose)
            for use in uses:
                if (use.kind != "conv") == turned:
                    self._read(use, weight, turned=turned)

    def _numbers(self, name: str, coded: CodedLayer, prefix: str, *, turned: bool, loose: bool) -> str:
        """Add the nodes that make codes numbers; return the tensor."""
        output, levels = f"{prefix}.numbers", self._levels(coded, prefix, turned)
        if loose:
            steps = coded.delta.reshape(-1, *(1,) * (len(coded.shape) - 1))
            scale = self.edit.store(f"{name}.weight.scale", steps)
            cast = make("Cast", [levels], f"{prefix}.levels", to=FLOAT)
            self.constant_nodes += [cast, make("Mul", [cast.output[0], scale], output)]
            return output
        scale = self.edit.store(f"{name}.weight.scale", coded.delta[:, 0])
        zeros = self.edit.store(f"{name}.weight.zero_point", np.zeros(len(coded.delta), np.int8))
        self.constant_nodes.append(make("DequantizeLinear", [levels, scale, zeros], output, axis=int(turned)))
        return output

    def _integer_bias(self, name: str, coded: CodedLayer, use: Use, number: int) -> None:
        scale = self._scale(use)
        assert scale is not None  # an integer layer
        own = f"{name}.bias_{number}" if number else f"{name}.bias"
        bias, steps = integer_bias(coded, self.biases[name].astype(np.float64), scale)
        given = [self.edit.store(f"{own}.codes", bias), self.edit.store(f"{own}.scale", steps)]
        self.constant_nodes.append(make("DequantizeLinear", given, f"{own}.numbers", axis=0))
        use.node.input[2] = f"{own}.numbers"

    def _place_floating(self, name: str, layer: ExportLayer, uses: Sequence[Use]) -> None:
        for turned in sorted({use.kind == "matmul" for use in uses}):
            prefix = f"{name}.weight.turned" if turned else f"{name}.weight"
            weight = self._floats(layer, prefix, turned)
            for use in uses:
                if (use.kind == "matmul") == turned:
                    self._read(use, weight, turned=turned)
                    self.edit.read_instead(f"{name}.weight", weight, among=[use.node])

    def _read(self, use: Use, weight: str, *, turned: bool) -> None:
        """Let a node multiply with tensor ``weight``."""
        if use.kind != "other":
            use.node.input[1] = weight
        if use.kind == "gemm":
            replaced = [a for a in use.node.attribute if a.name != "transB"]
            del use.node.attribute[:]
            use.node.attribute.extend([*replaced, helper.make_attribute("transB", int(not turned))])

    def _levels(self, coded: CodedLayer, prefix: str, turned: bool) -> str:
        if self.flavour == "tensorrt":
            levels = coded.levels().astype(np.int8)
            return self.edit.store(prefix, levels.T if turned else levels)
        self.subgraphs.append(integer_weight(coded, prefix=prefix, transpose=turned))
        return self.subgraphs[-1].output

    def _floats(self, layer: ExportLayer, prefix: str, turned: bool) -> str:
        factor = None if layer.factor is None else layer.factor.astype(np.float32)
        if self.flavour == "tensorrt":
            weight = layer.coded.weight()
            if factor is not None:
                weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
            return self.edit.store(prefix, weight.T if turned else weight)
        self.subgraphs.append(float_weight(layer.coded, prefix=prefix, factor=factor, transpose=turned))
        return self.subgraphs[-1].output
