"""A torch module as an ONNX graph: torch's exporter, onnxscript's optimizer, and nothing of either in the file.

Weights and biases of quantizable layers are hidden from the optimizer, which would transpose them, or leave out a bias
of zeros; they stand among the graph's inputs until a pass puts them back. What exporters note down of the code they
have seen (stack traces, with the paths of this machine) is taken off.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import NodeProto, helper
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from fairquant.errors import UserError
from fairquant.models.spec import ModelSpec

OPSET, IR_VERSION = 18, 8
"""What onnxruntime has run since 1.14."""
IMAGE, LOGITS, BATCH = "image", "logits", "batch"
_SCOPES = "pkg.torch.onnx.name_scopes"


def traced_graph(module: nn.Module, spec: ModelSpec, *, hidden: Collection[str] = ()) -> onnx.GraphProto:
    """Return ``module`` as a graph: ``image`` float32 (batch, channels, height, width) → ``logits`` (batch, classes).

    Args:
        module: in evaluation mode, on the CPU.
        spec: its name and the size of images.
        hidden: names of parameters that become further inputs of the graph.

    Node names are readable: the module's name and the operator. Raises ``UserError`` for a model that torch cannot
    export.
    """
    image = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)
    try:
        with _quiet(), torch.no_grad(), _PlainAttention():
            program = torch.onnx.export(
                module, (image,), dynamo=True, opset_version=OPSET, input_names=[IMAGE], output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},), optimize=False, verbose=False,
            )  # fmt: skip
            if program is None:
                raise RuntimeError("the exporter gave nothing")
            proto = program.model_proto
    except Exception as error:  # torch.export and its decompositions name no common class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"model.name: got {spec.name!r}, which torch cannot export to ONNX ({reason}); allowed: a model that "
            "torch.export follows, or export.formats: [packed]"
        ) from None
    return _named(_optimized(proto, hidden))


class _PlainAttention(TorchFunctionMode):
    """Attention as the products it is: the exporter would transpose keys by their shape, at every inference."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute attention without mask and dropout by hand, everything else as it is."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
        query, key, value, scale = given.pop("query"), given.pop("key"), given.pop("value"), given.pop("scale", None)
        if any(argument not in (None, False, 0) for argument in given.values()):
            return func(*args, **kwargs)
        weights = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return weights.softmax(dim=-1) @ value


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter has to say about itself off the terminal; multi-head attention is to be followed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels, fast = [logger.level for logger in loggers], torch.backends.mha.get_fastpath_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _optimized(proto: onnx.ModelProto, hidden: Collection[str]) -> onnx.GraphProto:
    import onnxscript.optimizer

    kept = []
    for tensor in proto.graph.initializer:
        if tensor.name in hidden:
            proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            kept.append(tensor)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    with _quiet():
        graph: onnx.GraphProto = onnxscript.optimizer.optimize(proto).graph
    return graph


def _named(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Name nodes and the tensors they compute after the module they come from; take off all notes."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    seen: dict[str, int] = {}
    for node in graph.node:
        base = _scope(node)
        seen[base] = seen.get(base, -1) + 1
        node.name = f"{base}_{seen[base]}" if seen[base] else base
        for place, output in enumerate(node.output):
            if output and output not in kept:
                names[output] = f"{node.name}.{place}" if len(node.output) > 1 else node.name
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return _without_notes(graph)


def _scope(node: NodeProto) -> str:
    """Return ``<module>.<operator>``."""
    noted = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    scopes = [scope for scope in ast.literal_eval(noted)[:-1] if scope and not scope.startswith("_")]
    return f"{scopes[-1]}.{node.op_type}" if scopes else node.op_type


def _without_notes(graph: onnx.GraphProto) -> onnx.GraphProto:
    del graph.value_info[:], graph.metadata_props[:], graph.quantization_annotation[:]
    graph.name, graph.doc_string = "model", ""
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return graph
