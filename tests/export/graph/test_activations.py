"""Passes over activation marks, on graphs made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from fairquant.export.graph.activations import Marks, expand_marks
from fairquant.export.graph.deploy import DOMAIN, MARK, POINT
from fairquant.export.graph.edit import GraphEdit
from fairquant.export.graph.grids import ActivationGrid
from fairquant.export.quiet import import_onnxruntime
from fairquant.quantize.activation import ActivationQuantizer

GRID = ActivationGrid(8, False, 0, 255, np.float32(0.1), 0)


def mark(given: str, output: str, point: str) -> NodeProto:
    return helper.make_node(MARK, [given], [output], name=f"node {output}", domain=DOMAIN, **{POINT: point})


def edit_of(nodes: Sequence[NodeProto], output: str, constants: dict[str, np.ndarray] | None = None) -> GraphEdit:
    value = helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    ends = [value("image", TensorProto.FLOAT, None)], [value(output, TensorProto.FLOAT, None)]
    return GraphEdit(helper.make_graph(nodes, "g", *ends, initializer=tensors))


def run(edit: GraphEdit, x: np.ndarray) -> np.ndarray:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        edit.nodes, "g", [value("image", TensorProto.FLOAT, None)], [value(edit.outputs[0], TensorProto.FLOAT, None)],
        initializer=list(edit.initializers.values()),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x})[0]


def kinds(edit: GraphEdit) -> list[str]:
    return [node.op_type for node in edit.nodes]


@pytest.mark.parametrize("x", ["mixed", "positive", "zeros"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("bits", "scheme"), [(8, "asymmetric"), (12, "asymmetric"), (6, "symmetric"), (16, "symmetric")]
)
def test_a_mark_computes_what_its_quantizer_does(bits, scheme, dynamic, x):
    generator = torch.Generator().manual_seed(0)
    given = {"mixed": torch.randn(500, generator=generator), "positive": torch.rand(500, generator=generator) + 1}
    image = given.get(x, torch.zeros(500))
    quantizer = ActivationQuantizer(bits=bits, scheme=scheme, observer="minmax", dynamic=dynamic).eval()
    if not dynamic:
        quantizer.load_grid(*quantizer.codes.grid(torch.tensor(-0.8), torch.tensor(1.9)))
    edit = edit_of([mark("image", "m", "p"), helper.make_node("Neg", ["m"], ["y"])], "y")
    expand_marks(Marks.of(edit, {"p": ActivationGrid.of(quantizer)}))
    got, wanted = -run(edit, image.numpy()), quantizer(image).numpy()
    if bits <= 8 and not dynamic:  # a division where the simulation multiplies with 1/Δ: a tie may fall otherwise
        assert (got != wanted).mean() < 0.01
    else:
        assert np.array_equal(got, wanted)


def test_marks_bear_their_points_names_even_twice():
    edit = edit_of([mark("image", "a", "p"), mark("a", "b", "p"), helper.make_node("Neg", ["b"], ["y"])], "y")
    marks = Marks.of(edit, {"p": GRID})
    assert [node.name for node in edit.nodes[:2]] == ["p", "p_1"] and edit.nodes[2].input[0] == "p_1"
    assert marks.points == {"p": "p", "p_1": "p"}


@pytest.mark.parametrize(("step", "zero", "clips"), [(6 / 255, 0, False), (0.1, 0, True), (0.1, 40, True)])
def test_clips_that_marks_alone_read_become_codes(step, zero, clips):
    """ReLU6 vanishes where the codes end at 6 themselves, else it is a range of codes."""
    grid = ActivationGrid(8, False, 0, 255, np.float32(step), zero)
    nodes = [helper.make_node("Clip", ["image", "low", "high"], ["c"]), mark("c", "m", "p")]
    edit = edit_of(nodes, "m", {"low": np.array(0, np.float32), "high": np.array(6, np.float32)})
    marks = Marks.of(edit, {"p": grid})
    marks.absorb_clips()
    expand_marks(marks)
    assert kinds(edit) == ["QuantizeLinear", *["Clip"] * clips, "DequantizeLinear"]
    x = np.linspace(-30, 30, 1001, dtype=np.float32)
    wanted = np.rint(np.clip(x, 0, 6).astype(np.float64) / step) * step
    np.testing.assert_allclose(run(edit, x), wanted, atol=step * 1.01)
    assert (np.abs(run(edit, x) - wanted) < 1e-5).mean() > 0.95


def test_a_relu_at_the_end_of_the_codes_vanishes():
    edit = edit_of([helper.make_node("Relu", ["image"], ["c"]), mark("c", "m", "p")], "m")
    marks = Marks.of(edit, {"p": GRID})
    marks.absorb_clips()
    expand_marks(marks)
    assert kinds(edit) == ["QuantizeLinear", "DequantizeLinear"]


def test_a_relu_that_others_read_stays():
    nodes = [
        helper.make_node("Relu", ["image"], ["r"]),
        mark("r", "m", "p"),
        helper.make_node("Add", ["r", "m"], ["y"]),
    ]
    edit = edit_of(nodes, "y")
    Marks.of(edit, {"p": GRID}).absorb_clips()
    assert kinds(edit) == ["Relu", MARK, "Add"]


def test_marks_are_repeated_behind_what_picks_numbers():
    nodes = [
        mark("image", "m", "p"),
        helper.make_node("MaxPool", ["m"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "w"], ["a"]),
        helper.make_node("Add", ["a", "pooled"], ["y"]),
    ]
    edit = edit_of(nodes, "y", {"w": np.ones((1, 1, 1, 1), np.float32)})
    marks = Marks.of(edit, {"p": GRID})
    marks.repeat([(edit.nodes[2], 0), (edit.nodes[3], 1), (edit.nodes[3], 0)])
    assert kinds(edit) == [MARK, "MaxPool", MARK, "Conv", "Add"]
    assert edit.nodes[3].input[0] == edit.nodes[4].input[1] == "pooled.again" and edit.nodes[4].input[0] == "a"
    expand_marks(marks)
    x = np.random.default_rng(0).uniform(0, 20, (1, 1, 4, 4)).astype(np.float32)
    wanted = 2 * np.rint(x.reshape(1, 1, 2, 2, 2, 2).max(axis=(3, 5)) * 10) / 10
    np.testing.assert_allclose(run(edit, x), wanted, rtol=1e-5, atol=0.21)


@pytest.mark.parametrize(
    ("mode", "value", "passes"), [("constant", 0.0, True), ("constant", 1.0, False), ("reflect", 0.0, True)]
)
def test_padding_with_zeros_stays_on_the_grid(mode, value, passes):
    pad = helper.make_node("Pad", ["m", "pads", "value"], ["padded"], mode=mode)
    edit = edit_of([mark("image", "m", "p"), pad], "padded", {"pads": np.ones(8, np.int64), "value": np.float32(value)})
    assert Marks.of(edit, {"p": GRID}).before("padded") == ("p" if passes else None)


def test_marks_move_before_a_concat():
    nodes = [
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Neg", ["image"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=0),
        mark("c", "m", "p"),
    ]
    edit, x = edit_of(nodes, "m"), np.linspace(-3, 30, 333, dtype=np.float32)
    marks = Marks.of(edit, {"p": GRID})
    marks.spread()
    marks.absorb_clips()
    assert kinds(edit) == ["Neg", MARK, MARK, "Concat", MARK]
    expand_marks(marks)
    wanted = np.clip(np.rint(np.concatenate([x, -x]) * 10), 0, 255) / 10
    np.testing.assert_allclose(run(edit, x), wanted, rtol=1e-5, atol=0.11)


def test_nodes_apart_get_the_same_numbers_without_a_dequantize():
    grid = ActivationGrid(8, False, 0, 255, np.float32(0.1), 7)
    nodes = [mark("image", "m", "p"), helper.make_node("Neg", ["m"], ["n"]), helper.make_node("Add", ["n", "m"], ["y"])]
    edit = edit_of(nodes, "y")
    expand_marks(Marks.of(edit, {"p": grid}), apart=[edit.nodes[1]])
    assert kinds(edit) == ["QuantizeLinear", "DequantizeLinear", "Cast", "Sub", "Mul", "Neg", "Add"]
    assert not run(edit, np.linspace(-3, 30, 333, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("maker", "grid", "between"),
    [
        ("Conv", GRID, ["MaxPool"]),
        ("MatMul", GRID, ["Cast", "Cast"]),
        ("Relu", GRID, []),
        ("Conv", ActivationGrid(8, True, -127, 127, np.float32(0.1), 0), []),
    ],
)
def test_codes_of_a_layer_stay_apart_from_the_sum_that_reads_them(maker, grid, between):
    nodes = [
        helper.make_node(maker, ["image"] if maker == "Relu" else ["image", "w"], ["a"]),
        mark("a", "m", "p"),
        helper.make_node("Add", ["m", "image"], ["y"]),
    ]
    w = np.ones((1, 1, 1, 1), np.float32)
    edit = edit_of(nodes, "y", {"w": w})
    expand_marks(Marks.of(edit, {"p": grid}))
    clips = ["Clip"] if grid.clips else []
    assert kinds(edit) == [maker, "QuantizeLinear", *clips, *between, "DequantizeLinear", "Add"]
    x = np.linspace(0, 12, 9, dtype=np.float32).reshape(9, 1, 1, 1)
    np.testing.assert_allclose(run(edit, x), np.rint(x * 10) / 10 + x, atol=1e-5)
