"""Changing a graph, and the rewrites that change no number."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fairquant.export.graph.edit import GraphEdit, attribute, make
from fairquant.export.graph.tidy import tidy


def edit_of(nodes, output="y", **constants) -> GraphEdit:
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in constants.items()]
    ends = [value("x", TensorProto.FLOAT, ["n"])], [value(output, TensorProto.FLOAT, ["n"])]
    return GraphEdit(helper.make_graph(nodes, "g", *ends, initializer=tensors))


@pytest.fixture
def chain() -> GraphEdit:
    return edit_of([make("Neg", ["x"], "a"), make("Add", ["a", "a"], "b"), make("Abs", ["b"], "y")])


def test_makers_and_readers(chain):
    assert chain.maker("b").op_type == "Add" and chain.maker("x") is None
    assert [(node.op_type, place) for node, place in chain.readers("a")] == [("Add", 0), ("Add", 1)]
    assert [node.op_type for node in chain.of("Neg", "Abs")] == ["Neg", "Abs"]


def test_nodes_come_and_go(chain):
    neg, add, last = chain.nodes
    chain.insert(add, [make("Relu", ["a"], "r")])
    chain.read_instead("a", "r", among=[add])
    assert list(add.input) == ["r", "r"] and [node.op_type for node in chain.nodes] == ["Neg", "Relu", "Add", "Abs"]
    chain.replace(last, [make("Sign", ["b"], "s"), make("Abs", ["s"], "y")])
    chain.insert(None, [make("Exp", ["x"], "unread")])
    chain.store("never", np.zeros(3))
    chain.drop_unread()
    assert [node.op_type for node in chain.nodes] == ["Neg", "Relu", "Add", "Sign", "Abs"] and not chain.initializers
    chain.read_instead("y", "s")
    assert chain.outputs == ["s"]


def test_one_tensor_a_name(chain):
    assert chain.store("c", np.float32(2)) == chain.store("c", np.float32(2)) == "c"
    assert float(chain.constant("c")) == 2.0 and chain.constant("x") is None
    with pytest.raises(
        ValueError, match="initializer: got 'c' twice with different values; allowed: one tensor a name"
    ):
        chain.store("c", np.float32(3))


def test_attributes():
    node = make("Transpose", ["x"], "y", perm=[1, 0])
    assert attribute(node, "perm") == [1, 0] and attribute(node, "axis", 7) == 7 and node.name == "y"


def gelu(half_first: bool) -> GraphEdit:
    nodes = [make("Div", ["x", "root"], "d"), make("Erf", ["d"], "e"), make("Add", ["e", "one"], "p")]
    halved = ["half", "p"] if half_first else ["p", "half"]
    nodes += [make("Mul", halved, "h"), make("Mul", ["x", "h"], "y")]
    return edit_of(nodes, root=np.sqrt(2), one=1, half=0.5)


@pytest.mark.parametrize("half_first", [True, False])
def test_gelu_is_halved_last(half_first):
    edit = gelu(half_first)
    tidy(edit)
    *_, inner, outer = edit.nodes
    assert list(inner.input) == ["x", "p"] and list(outer.input) == ["h", "half"]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, ["n"])]
    x, results = np.linspace(-5, 5, 999, dtype=np.float32), []
    for one in (gelu(half_first), edit):
        graph = helper.make_graph(one.nodes, "g", *ends, initializer=list(one.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        results.append(ReferenceEvaluator(model).run(None, {"x": x})[0])
    assert np.array_equal(*results)


def test_other_products_with_erf_stay():
    nodes = [make("Erf", ["x"], "e"), make("Add", ["e", "one"], "p"), make("Mul", ["p", "third"], "h")]
    edit = edit_of([*nodes, make("Mul", ["x", "h"], "y")], one=1, third=1 / 3)
    tidy(edit)
    assert list(edit.nodes[2].input) == ["p", "third"]
