"""The ONNX file of a quantized model: integers wherever the model's own grids are, packed at their widths.

Operator set 18, IR version 8; input ``image`` float32 (batch, 3, height, width), normalised as in training; output
``logits`` (batch, classes). One metadata entry, ``fairquant`` (``fairquant.export.metadata``). Equal models give equal
bytes.

Flavour ``tensorrt``: weights are plain int8, activations symmetric int8 without clipping of codes, biases floating, as
TensorRT reads Q and DQ. An asymmetric or narrower grid becomes the symmetric one of 8 bits that covers its range, so
the numbers differ from the simulation's; how far is for parity to say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper
from torch import nn

import fairquant
from fairquant.artifacts import atomic_path
from fairquant.errors import UserError
from fairquant.export.codes import Floats
from fairquant.export.graph.activations import Marks, expand_marks
from fairquant.export.graph.deploy import ExportModel, export_model
from fairquant.export.graph.edit import GraphEdit
from fairquant.export.graph.layer_nodes import Flavour, LayerPass, Placed, uses_of
from fairquant.export.graph.tidy import tidy
from fairquant.export.graph.traced import BATCH, IMAGE, IR_VERSION, LOGITS, OPSET, traced_graph
from fairquant.export.metadata import KEY, ModelMetadata
from fairquant.models.spec import ModelSpec

LARGEST_FILE = 2**31 - 1
"""What a protocol buffer may take."""


@dataclass(frozen=True)
class OnnxForm:
    """How a file computes what the simulation did.

    Attributes:
        integer_layers: layers whose weights are int8 and whose inputs are codes of at most 8 bits, in module order.
        float_layers: all others, whose weights are the same numbers in float32.
        activations: fp32 | static | dynamic.
        activation_bits: 2 to 16; 32 where activations are fp32.
    """

    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    activations: Literal["fp32", "static", "dynamic"]
    activation_bits: int


def write_onnx(path: str | Path, model: nn.Module, metadata: ModelMetadata, *, flavour: Flavour = "onnx") -> OnnxForm:
    """Write a quantized ``model`` (as ``load_quantized`` returns it), atomically; bytes depend on the content alone.

    Args:
        path: of the file.
        model: stays as it is.
        metadata: what the file says of itself.
        flavour: onnx | tensorrt.

    Raises ``UserError`` for a model without quantizers, or without ranges of its activations, one that torch cannot
    export, and a file of 2 GiB or more.
    """
    exported = export_model(model)
    state = exported.module.state_dict()
    biases = {name: state[f"{name}.bias"].numpy() for name in exported.layers if f"{name}.bias" in state}
    hidden = {f"{name}.weight" for name in exported.layers} | {f"{name}.bias" for name in biases}
    edit = GraphEdit(traced_graph(exported.module, metadata.spec, hidden=hidden))
    tidy(edit)
    placed = _place(edit, exported, biases, flavour)
    _write(path, edit, metadata.spec, metadata)
    first = next(iter(exported.grids.values()), None)
    if first is None:
        return OnnxForm(placed.integer, placed.floating, "fp32", 32)
    return OnnxForm(placed.integer, placed.floating, "dynamic" if first.dynamic else "static", first.bits)


def _place(edit: GraphEdit, exported: ExportModel, biases: Mapping[str, Floats], flavour: Flavour) -> Placed:
    """Replace activation marks and hidden inputs by what stands in the file."""
    grids = exported.grids
    if flavour == "tensorrt":
        grids = {point: grid.signed() if grid.integer else grid for point, grid in grids.items()}
    marks = Marks.of(edit, grids)
    marks.repeat([(use.node, 0) for name in exported.layers for use in uses_of(edit, name) if use.kind != "other"])
    marks.repeat([(node, place) for node in edit.of("Add") for place in (0, 1) if all(map(marks.before, node.input))])
    marks.spread()
    if flavour == "onnx":
        marks.absorb_clips()
    placed = LayerPass(edit, marks, biases, flavour).run(exported.layers)
    expand_marks(marks, apart=placed.apart if flavour == "onnx" else ())
    edit.drop_unread()
    return placed


def write_float_onnx(path: str | Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a full-precision ``model`` as the same kind of file, without metadata, atomically.

    Raises ``UserError`` for a model that torch cannot export, and a file of 2 GiB or more.
    """
    module = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    edit = GraphEdit(traced_graph(module, spec))
    tidy(edit)
    edit.drop_unread()
    _write(path, edit, spec, None)


def _write(path: str | Path, edit: GraphEdit, spec: ModelSpec, metadata: ModelMetadata | None) -> None:
    shape: list[str | int | None] = [BATCH, spec.in_channels, spec.image_size, spec.image_size]
    graph = helper.make_graph(
        edit.nodes,
        "model",
        [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [BATCH, spec.n_classes])],
        initializer=list(edit.initializers.values()),
    )
    made = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="fairquant",
        producer_version=fairquant.__version__,
    )
    if metadata is not None:
        helper.set_model_props(made, {KEY: metadata.to_json()})
    if made.ByteSize() > LARGEST_FILE:
        raise UserError(
            f"{path}: got {made.ByteSize()} bytes of ONNX; allowed: below 2 GiB, or export.formats: [packed]"
        )
    onnx.checker.check_model(made, full_check=True)
    with atomic_path(path) as partial:
        partial.write_bytes(made.SerializeToString(deterministic=True))
