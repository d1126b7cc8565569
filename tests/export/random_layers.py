"""Layers of random codes, and what both runtimes make of a piece of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from fairquant.allocate.books import books_of
from fairquant.export.codes import UNTOUCHED, CodedLayer
from fairquant.export.graph.subgraph import Subgraph, merged
from fairquant.export.quiet import import_onnxruntime, import_openvino

onnxruntime, openvino = import_onnxruntime(), import_openvino()

Arrays = dict[str, npt.NDArray[Any]]


def coded(
    bits: Any,
    shape: tuple[int, ...],
    *,
    scheme: Any = "symmetric",
    codebook: Any = None,
    shared_scale: bool = False,
    seed: int = 0,
) -> CodedLayer:
    """Return a layer whose codes are drawn from all that its widths allow, with step sizes or codebooks to match."""
    random = np.random.default_rng(seed)
    bits = np.asarray(bits, np.uint8)
    widths = np.broadcast_to(bits.reshape(bits.shape + (1,) * (len(shape) - bits.ndim)), shape).astype(np.int32)
    spare = (widths % UNTOUCHED > 1) & (scheme == "symmetric") & (codebook is None)  # the code no level has
    codes = random.integers(0, (1 << widths % UNTOUCHED) - spare, dtype=np.int32)
    floats = random.standard_normal(int((widths == UNTOUCHED).sum())).astype(np.float32)
    columns = len(np.unique(bits)) if bits.ndim > 1 else 1
    delta = random.uniform(0.001, 0.1, (1 if shared_scale else shape[0], columns)).astype(np.float32)
    zero = random.integers(0, 255, delta.shape).astype(np.int32) if scheme == "asymmetric" else None
    centroids = np.empty(0, np.float32)
    if codebook is not None:
        books = books_of(bits, shape, codebook)
        centroids = random.standard_normal(sum(book.values for book in books)).astype(np.float32)
        delta = np.empty((0, 0), np.float32)
        for book in books:
            codes[book.channels] %= book.values
    return CodedLayer("conv", shape, bits, scheme, codes.astype(np.uint16), delta, zero, floats, codebook, centroids)


def model_of(
    parts: Sequence[Subgraph],
    nodes: Sequence[onnx.NodeProto],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    constants: Sequence[onnx.TensorProto] = (),
) -> bytes:
    """Return a checked model of weights ``parts`` and what ``nodes`` make of them: names to (type, shape)."""
    weight_nodes, initializers = merged(parts)
    graph = helper.make_graph(
        [*weight_nodes, *nodes],
        "weights",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (inputs or {}).items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [*initializers, *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def run_onnxruntime(model: bytes, feeds: Arrays | None = None, *, optimized: Path | None = None) -> Arrays:
    """Return all outputs by name; ``optimized`` is where onnxruntime writes what it made of the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds or {}), strict=True))


def run_openvino(model: bytes, feeds: Arrays | None = None) -> tuple[Arrays, list[tuple[str, str]]]:
    """Return all outputs by name, and (kind, element type) of everything that stands in the compiled model."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    results = compiled(feeds or {})
    names = [output.name for output in onnx.load_from_string(model).graph.output]
    outputs = {name: np.array(results[port]) for name, port in zip(names, compiled.outputs, strict=True)}
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return outputs, [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
