"""Reading a QDQ graph: constants are computed, grids move to where they are used."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from fairquant.errors import UserError
from fairquant.export.arithmetic.graph import Grid, read_graph
from tests.export.qdq import Builder


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op for node in read_graph(model).nodes]


def test_codes_looked_up_in_the_graph_become_constants():
    builder = Builder()
    packed = builder.constant(np.array([0b01_00_10_01, 0b00_00_00_11], np.uint8))
    table = np.array([[(byte >> shift & 3) - 1 for shift in (0, 2, 4, 6)] for byte in range(256)], np.int8)
    codes = builder.node("Gather", builder.constant(table), builder.node("Cast", packed, to=onnx.TensorProto.INT32))
    codes = builder.node("Reshape", codes, builder.constant(np.array([8, 1])))
    codes = builder.node(
        "Slice",
        codes,
        builder.constant(np.array([0])),
        builder.constant(np.array([6])),
        builder.constant(np.array([0])),
    )
    weight = builder.dequantize(codes, 0.5, np.int8(0))
    flat = builder.node("Reshape", "image", builder.constant(np.array([-1, 6])))
    graph = read_graph(builder.model(builder.node("MatMul", flat, weight), image=("batch", 6, 1, 1)))
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "Reshape", "MatMul"]
    assert graph.constants[codes].ravel().tolist() == [0, 1, -1, 0, 2, -1]
    assert graph.constants[codes].dtype == np.int8


def test_dequantize_moves_behind_what_only_moves_numbers():
    builder = Builder()
    x = builder.on_grid("image", 0.1, 3)
    x = builder.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = builder.node("Transpose", x, perm=[0, 2, 3, 1])
    assert operators(builder.model(builder.node("Relu", x))) == [
        "QuantizeLinear", "MaxPool", "Transpose", "DequantizeLinear", "Relu",
    ]  # fmt: skip


def test_a_dequantize_read_twice_moves_along_each_way():
    builder = Builder()
    x = builder.on_grid("image", 0.1, 3)
    pooled = builder.node("MaxPool", x, kernel_shape=[1, 1])
    graph = read_graph(builder.model(builder.node("Add", x, pooled)))
    makers = graph.makers()
    add = graph.nodes[-1]
    assert add.op == "Add"
    assert [makers[name].op for name in add.inputs] == ["DequantizeLinear", "DequantizeLinear"]
    assert makers[makers[add.inputs[1]].inputs[0]].op == "MaxPool"


def test_quantize_moves_before_a_reshape_that_nothing_else_reads():
    builder = Builder()
    mean = builder.node("GlobalAveragePool", "image")
    flat = builder.node("Reshape", mean, builder.constant(np.array([-1, 3])))
    model = builder.model(builder.on_grid(flat, 0.1, 3))
    assert operators(model) == ["GlobalAveragePool", "QuantizeLinear", "Reshape", "DequantizeLinear"]


def test_quantize_stays_where_the_tensor_is_read_as_it_is_too():
    builder = Builder()
    mean = builder.node("GlobalAveragePool", "image")
    flat = builder.node("Reshape", mean, builder.constant(np.array([-1, 3, 1, 1])))
    model = builder.model(builder.node("Sub", builder.on_grid(flat, 0.1, 3), mean))
    assert operators(model)[:3] == ["GlobalAveragePool", "Reshape", "QuantizeLinear"]


@pytest.mark.parametrize(
    ("bounds", "scale", "zero", "dropped"),
    [
        (None, 0.1, 0, True),  # Relu
        (None, 0.1, 1, False),
        ((0, 6), 6 / 255, 0, True),
        ((0, 6), 0.1, 0, False),  # codes reach 25.5
        ((0, None), 0.1, 0, True),
        ((-1, 6), 6 / 255, 0, True),
        ((0, 6), 6 / 255, 1, False),  # codes reach −6/255
    ],
)
def test_a_clip_within_which_the_codes_lie_is_needless(bounds, scale, zero, dropped):
    builder = Builder()
    if bounds is None:
        clipped = builder.node("Relu", "image")
    else:
        ends = ["" if end is None else builder.constant(np.float32(end)) for end in bounds]
        clipped = builder.node("Clip", "image", *ends)
    model = builder.model(builder.on_grid(clipped, scale, zero))
    assert (operators(model) == ["QuantizeLinear", "DequantizeLinear"]) is dropped


def test_grid_knows_its_codes():
    grid = Grid(np.array(0.5, np.float32), np.array(-3, np.int8), 1)
    assert (grid.single, grid.least, grid.largest) == (True, -128, 127)
    assert not Grid(np.ones(3, np.float32), np.zeros(3, np.int8), 0).single


def test_other_opsets_are_refused():
    model = Builder().model("image")
    model.opset_import[0].version = 21
    with pytest.raises(UserError, match=r"^opset: got 21; allowed: 13 to 18$"):
        read_graph(model)


def test_several_outputs_are_refused():
    builder = Builder()
    model = builder.model(builder.node("Relu", "image"))
    model.graph.output.append(helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, None))
    with pytest.raises(UserError, match=r"^model: got 1 inputs and 2 outputs; allowed: one of each$"):
        read_graph(model)


def test_computed_scales_are_refused():
    builder = Builder()
    scale = builder.node("ReduceMax", "image", keepdims=0)
    codes = builder.node("QuantizeLinear", "image", scale, builder.constant(np.uint8(0)))
    with pytest.raises(UserError, match="got a computed one as scale and zero point; allowed: constant float32 and"):
        read_graph(builder.model(codes))
