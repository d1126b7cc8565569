"""Small rewrites of an exported graph that change no number, and that runtimes' own patterns need."""

from __future__ import annotations

from onnx import NodeProto

from fairquant.export.graph.edit import GraphEdit


def tidy(edit: GraphEdit) -> None:
    """Apply all of them."""
    for erf in edit.of("Erf"):
        _half_last(edit, erf)


def _half_last(edit: GraphEdit, erf: NodeProto) -> None:
    """Turn x · (½ · (1 + erf)) into (x · (1 + erf)) · ½, the form of GELU that onnxruntime knows; halving is exact."""
    half, outer = _only_reader(edit, _only_reader(edit, erf, "Add"), "Mul"), None
    if half is not None:
        outer = _only_reader(edit, half, "Mul")
    if half is None or outer is None:
        return
    constant = next((place for place, name in enumerate(half.input) if _is_half(edit, name)), None)
    if constant is None:
        return
    x = next(name for name in outer.input if name != half.output[0])
    half_name, one_plus = half.input[constant], half.input[1 - constant]
    half.input[:] = [x, one_plus]
    outer.input[:] = [half.output[0], half_name]


def _only_reader(edit: GraphEdit, node: NodeProto | None, operator: str) -> NodeProto | None:
    if node is None or node.output[0] in edit.outputs:
        return None
    readers = edit.readers(node.output[0])
    return readers[0][0] if len(readers) == 1 and readers[0][0].op_type == operator else None


def _is_half(edit: GraphEdit, name: str) -> bool:
    value = edit.constant(name)
    return value is not None and value.size == 1 and float(value.reshape(())) == 0.5
