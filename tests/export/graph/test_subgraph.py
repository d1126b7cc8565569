"""Collecting pieces of a graph: what they take in a file, and equal tensors kept once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fairquant.export.graph.lut import float_weight, integer_weight
from fairquant.export.graph.subgraph import Builder, Subgraph, merged, stored_bytes
from tests.export.random_layers import coded, model_of, run_onnxruntime


def bytes_in_a_file(part: Subgraph) -> int:
    graph = onnx.GraphProto()
    graph.node.extend(part.nodes)
    graph.initializer.extend(part.initializers)
    return graph.ByteSize()


@pytest.mark.parametrize("channels", [2, 16, 300])
def test_stored_bytes_are_those_of_the_file(channels: int):
    layer = coded([2, 8] * (channels // 2), (channels, 9, 3, 3))
    parts = [integer_weight(layer, prefix="a"), float_weight(layer, prefix="b")]
    assert [stored_bytes(part) for part in parts] == [bytes_in_a_file(part) for part in parts]
    assert stored_bytes(*parts) == sum(map(bytes_in_a_file, parts))


class TestBuilder:
    def test_names_begin_with_the_prefix(self):
        builder = Builder("conv1.weight")
        name = builder.node("Cast", [builder.store("codes", np.arange(3))], "i", to=TensorProto.INT32)
        part = builder.finish(name)
        assert part.output == "conv1.weight/i" and [tensor.name for tensor in part.initializers] == [
            "conv1.weight/codes"
        ]

    def test_equal_tensors_may_share_a_label(self):
        builder = Builder("w")
        assert builder.store("shape", np.array([1, 2])) == builder.store("shape", np.array([1, 2])) == "w/shape"
        assert len(builder.finish("w/shape").initializers) == 1

    def test_other_tensors_may_not(self):
        builder = Builder("w")
        builder.store("shape", np.array([1, 2]))
        with pytest.raises(ValueError, match="got 'shape' twice with different values; allowed: one tensor a label$"):
            builder.store("shape", np.array([2, 1]))
        builder.node("Shape", ["w/shape"], "n")
        for label in ("shape", "n"):
            with pytest.raises(ValueError, match=f"^label: got '{label}' twice; allowed: one tensor a label$"):
                builder.node("Shape", ["w/shape"], label)


class TestMerged:
    def test_tables_are_kept_once_and_weights_stay_what_they_are(self):
        layers = [coded([2, 4, 8, 4] * 9, (36, 10, 3, 3), seed=seed) for seed in range(3)]
        parts = [float_weight(layer, prefix=f"layer{at}") for at, layer in enumerate(layers)]
        _, initializers = merged(parts)
        tables = [tensor.name for tensor in initializers if tensor.dims[:1] == [256]]
        assert tables == ["layer0/b2/table", "layer0/b4/table"]
        nodes = [helper.make_node("Identity", [part.output], [f"w{at}"]) for at, part in enumerate(parts)]
        outputs = {f"w{at}": (TensorProto.FLOAT, layer.shape) for at, layer in enumerate(layers)}
        results = run_onnxruntime(model_of(parts, nodes, outputs))
        for at, layer in enumerate(layers):
            np.testing.assert_array_equal(results[f"w{at}"], layer.weight())

    def test_outputs_keep_their_names(self):
        layer = coded(8, (4, 3))
        parts = [integer_weight(layer, prefix=prefix) for prefix in ("a", "b")]
        assert [part.output for part in parts] == ["a/b8", "b/b8"] and not any(part.nodes for part in parts)
        assert [tensor.name for tensor in merged(parts)[1]] == ["a/b8", "b/b8"]

    def test_only_equal_tensors_are_merged(self):
        values = {
            "a": np.arange(4),
            "b": np.arange(4).reshape(2, 2),
            "c": np.arange(4, dtype=np.float32),
            "d": np.arange(4),
        }
        parts = []
        for prefix, array in values.items():
            builder = Builder(prefix)
            parts.append(builder.finish(builder.node("Identity", [builder.store("x", array)], "y")))
        nodes, initializers = merged(parts)
        assert [tensor.name for tensor in initializers] == ["a/x", "b/x", "c/x"]
        assert [node.input[0] for node in nodes] == ["a/x", "b/x", "c/x", "a/x"]
        assert parts[3].nodes[0].input[0] == "d/x"  # what was given is left as it was
