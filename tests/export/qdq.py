"""Small QDQ graphs for the tests of the integer simulation, and what onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairquant.export.quiet import import_onnxruntime

onnxruntime = import_onnxruntime()

TYPES = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8,
         np.dtype(np.int32): TensorProto.INT32, np.dtype(np.float32): TensorProto.FLOAT}  # fmt: skip


class Builder:
    """Collects nodes and constants; every method returns the name of the tensor it adds."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._count = 0

    def constant(self, values: Any) -> str:
        name = self._name("constant")
        self.constants[name] = np.asarray(values)
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self._name(op)
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def quantize(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        return self.node("QuantizeLinear", x, self.constant(np.float32(scale)), self.constant(dtype(zero)))

    def dequantize(self, codes: str, scale: Any, zero: Any, **attributes: Any) -> str:
        scale = np.asarray(scale, dtype=np.float32)
        return self.node("DequantizeLinear", codes, self.constant(scale), self.constant(zero), **attributes)

    def on_grid(self, x: str, scale: float, zero: int, dtype: Any = np.uint8) -> str:
        """Q and DQ."""
        return self.dequantize(self.quantize(x, scale, zero, dtype), scale, dtype(zero))

    def weight(
        self, shape: tuple[int, ...], *, axis: int = 0, extreme: bool = False, gain: float | None = None
    ) -> tuple[str, np.ndarray]:
        """An int8 weight with a scale per channel; ``extreme``: −127 and 127 only; ``gain``: keeps sums in range."""
        codes = self.random.integers(-127, 128, shape)
        codes = np.where(codes > 0, 127, -127) if extreme else codes
        scale = self.random.uniform(0.0005, 0.02, shape[axis]).astype(np.float32)
        if gain is not None:
            scale *= np.float32(gain / (0.01 * 73 * np.sqrt(codes.size / shape[axis])))
        zero = np.zeros(shape[axis], np.int8)
        return self.dequantize(self.constant(codes.astype(np.int8)), scale, zero, axis=axis), scale

    def bias(self, scale: np.ndarray, activation: float, *, largest: int = 20000) -> str:
        codes = self.random.integers(-largest, largest, len(scale)).astype(np.int32)
        return self.dequantize(
            self.constant(codes), np.float32(activation) * scale, np.zeros(len(scale), np.int32), axis=0
        )

    def model(self, output: str, *, image: tuple[Any, ...] = ("batch", 3, 8, 8)) -> onnx.ModelProto:
        """A file with the input "image" and one output."""
        graph = helper.make_graph(
            self.nodes, "tests", [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
            [onnx.ValueInfoProto(name=output)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def session(model: onnx.ModelProto | str | Path, *, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """One thread, all optimizations; ``optimized`` receives the graph that really runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def runtime(model: onnx.ModelProto | str | Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime computes."""
    return session(model).run(None, {"image": images})[0]


def optimized_operators(model: onnx.ModelProto | str | Path, folder: Path) -> list[str]:
    """The operators of the graph that onnxruntime really runs, layout changes left out."""
    path = folder / "optimized.onnx"
    session(model, optimized=path)
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Transpose"]


def images(random: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (random.normal(size=shape) * scale).astype(np.float32)
