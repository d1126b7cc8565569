"""ONNX files made by hand, small enough to work out what they compute, and a runtime without any file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIZE = 16


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    arrays: Mapping[str, np.ndarray],
    *,
    image: Sequence[int | str] = ("batch", 3, SIZE, SIZE),
    logits: Sequence[int | str] = ("batch", 2),
    dtype: int = TensorProto.FLOAT,
    text: str | None = None,
) -> Path:
    """Write a graph from ``image`` to ``logits``, with metadata ``text``; nothing is checked."""
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [helper.make_tensor_value_info("image", dtype, image)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if text is not None:
        helper.set_model_props(model, {"fairquant": text})
    onnx.save(model, path)
    return path


def linear(path: Path, weight: np.ndarray, *, size: int = SIZE, text: str | None = None) -> Path:
    """logits = pixels · weightᵀ; ``weight`` float32 (C, 3·size²)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], transB=1),
    ]
    shape, classes = ("batch", 3, size, size), weight.shape[0]
    return write(path, nodes, {"weight": weight}, image=shape, logits=("batch", classes), text=text)


def weight_only(path: Path, codes: np.ndarray, scale: np.ndarray, *, size: int) -> Path:
    """logits = pixels · (codes · scale), the weight stored as int8 (3·size², C) with float32 scales (C,)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    arrays = {"codes": codes, "scale": scale, "zero": np.zeros(len(scale), np.int8)}
    return write(path, nodes, arrays, image=("batch", 3, size, size), logits=("batch", len(scale)))


def integer_convolution(path: Path, codes: np.ndarray, *, size: int, step: float) -> Path:
    """8-bit pixels ⋆ int8 codes over the whole image, rounded to multiples of ``step`` in 0…255 steps."""
    one, zero = np.ones((), np.float32), np.zeros((), np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["pixels"]),
        helper.make_node("DequantizeLinear", ["pixels", "one", "zero"], ["image2"]),
        helper.make_node("DequantizeLinear", ["codes", "ones", "zeros"], ["weight"], axis=0),
        helper.make_node("Conv", ["image2", "weight"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["steps"]),
        helper.make_node("DequantizeLinear", ["steps", "step", "zero"], ["rounded"]),
        helper.make_node("Flatten", ["rounded"], ["logits"]),
    ]
    arrays = {
        "one": one, "zero": zero, "codes": codes, "ones": np.ones(len(codes), np.float32),
        "zeros": np.zeros(len(codes), np.int8), "step": np.array(step, np.float32),
    }  # fmt: skip
    return write(path, nodes, arrays, image=("batch", 3, size, size), logits=("batch", len(codes)))


class Told:
    """A runtime that returns what it is told to, call by call, and remembers what it was given."""

    def __init__(self, answers: Sequence[np.ndarray]) -> None:
        self.answers = list(answers)
        self.given: list[np.ndarray] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.given.append(images)
        return self.answers.pop(0)
