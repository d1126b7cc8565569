"""A width for every single weight: the weight in both runtimes, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from fairquant.export.graph.lut import float_weight
from fairquant.export.graph.subgraph import stored_bytes
from tests.export.random_layers import coded, model_of, run_onnxruntime, run_openvino

SHAPE = (7, 5, 3, 3)


def widths(present: list[int], shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(len(present))
    return random.choice(present, shape).astype(np.uint8)


CASES: dict[str, dict[str, Any]] = {
    "2, 4 and 8": {"bits": widths([2, 4, 8])},
    "two widths": {"bits": widths([3, 5])},
    "pruned": {"bits": widths([0, 1, 2, 4])},
    "pruned or not": {"bits": widths([0, 4])},
    "floats": {"bits": widths([0, 1, 6, 32])},
    "pruned and floats": {"bits": widths([0, 32])},
    "five widths": {"bits": widths([1, 2, 4, 7, 16])},
    "every width": {"bits": widths([*range(17), 32], (40, 5, 3, 3)), "shape": (40, 5, 3, 3)},
    "zero points": {"bits": widths([0, 1, 2, 4, 12, 32]), "scheme": "asymmetric"},
    "one step size a width": {"bits": widths([2, 4, 8]), "shared_scale": True},
    "one zero point a width": {"bits": widths([2, 4, 8]), "shared_scale": True, "scheme": "asymmetric"},
    "matrix": {"bits": widths([2, 4, 8], (9, 11)), "shape": (9, 11)},
    "matrix, one zero point a width": {
        "bits": widths([0, 2, 4, 32], (9, 11)), "shape": (9, 11), "shared_scale": True, "scheme": "asymmetric"
    },
    "a channel": {"bits": [[2, 4, 4]], "shape": (1, 3)},
    "a weight a channel": {"bits": [[2], [4]], "shape": (2, 1)},
    "a byte of ranks": {"bits": [[2, 4, 4, 2], [2, 2, 2, 4]], "shape": (2, 4)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_runtimes_find_every_weight(name: str):
    layer = coded(**{"shape": SHAPE} | CASES[name])
    factor = np.linspace(0.5, 2, layer.shape[0], dtype=np.float32)
    parts = {"w": float_weight(layer, prefix="a"), "scaled": float_weight(layer, prefix="b", factor=factor)}
    expected = {"w": layer.weight(), "scaled": layer.weight() * factor.reshape(-1, *(1,) * (len(layer.shape) - 1))}
    if len(layer.shape) == 2:
        parts["turned"] = float_weight(layer, prefix="c", factor=factor, transpose=True)
        expected["turned"] = expected["scaled"].T
    nodes = [helper.make_node("Identity", [part.output], [output]) for output, part in parts.items()]
    shapes = {output: (TensorProto.FLOAT, weight.shape) for output, weight in expected.items()}
    model = model_of(list(parts.values()), nodes, shapes)
    for results in (run_onnxruntime(model), run_openvino(model)[0]):
        for output, weight in expected.items():
            assert results[output].dtype == np.float32
            np.testing.assert_array_equal(results[output], weight)


def test_only_matrices_are_transposed():
    with pytest.raises(ValueError, match=r"^transpose: got a weight of shape \(7, 5, 3, 3\); allowed: \(out, in\)$"):
        float_weight(coded(widths([2, 4]), SHAPE), prefix="w", transpose=True)


def test_onnxruntime_keeps_a_constant(tmp_path: Path):
    part = float_weight(coded(widths([2, 4, 8]), SHAPE), prefix="w")
    node = helper.make_node("Conv", ["x", part.output], ["y"])
    model = model_of([part], [node], {"y": (TensorProto.FLOAT, ("n", 7, 6, 6))}, inputs={"x": ("n", 5, 8, 8)})
    path = tmp_path / "optimized.onnx"
    run_onnxruntime(model, {"x": np.ones((2, 5, 8, 8), np.float32)}, optimized=path)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv"]


@pytest.mark.parametrize(
    ("present", "rank_bits"), [([2, 4], 1), ([2, 4, 8], 2), ([1, 2, 4, 8], 2), ([1, 2, 3, 4, 8], 4)], ids=str
)
def test_ranks_of_widths_are_all_it_costs(present: list[int], rank_bits: int):
    shape = (32, 64, 3, 3)
    layer = coded(widths(present, shape), shape)
    weights = layer.codes.size
    least = int(layer.bits.sum()) / 8 + weights * rank_bits / 8 + layer.delta.nbytes
    assert least < stored_bytes(float_weight(layer, prefix="w")) < least + 14_000  # the tables, a model's once
