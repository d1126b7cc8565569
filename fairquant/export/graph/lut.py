"""A layer's weight in an ONNX graph: stored at the widths of its codes, whole again when a runtime has loaded it.

Weights of one width stand packed in one initializer (``fairquant.export.graph.planes``); output channels are sorted by
width, and ``Concat → Gather(inverse permutation)`` brings them back into their order. Where that takes less room (few
channels, few weights in each), all channels of a layer are stored at one larger width instead. ``integer_weight`` ends
in int8, to be followed by DequantizeLinear; ``float_weight`` goes on to

    symmetric: Δ · level        asymmetric: Δ · (code − zero point)        codebook: values[start + code]

in float32, with Cast and Mul: onnxruntime and OpenVINO fold those to a constant, where they would keep a
DequantizeLinear and run it at every inference. Fewer than 8 bits save room in the file alone: once loaded, a weight
takes 8 bits or 32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from fairquant.allocate.books import books_of
from fairquant.errors import UserError
from fairquant.export.codes import UNTOUCHED, CodedLayer, Floats
from fairquant.export.graph.planes import Stream, cast, joined, marginal_bytes, stored
from fairquant.export.graph.rows import Rows, Widths, in_order, packed_rows, storages, whole_numbers, widths_of_rows
from fairquant.export.graph.scattered import scattered_weight
from fairquant.export.graph.subgraph import Array, Builder, Subgraph

WIDEST_INTEGER = 8


def is_integer(layer: CodedLayer) -> bool:
    """Return whether a runtime can hold the weight as int8 with a step size per output channel.

    So it is on symmetric grids of up to 8 bits, one width in a channel.
    """
    on_grid = layer.codebook is None and layer.scheme == "symmetric"
    return on_grid and layer.bits.ndim <= 1 and int(layer.bits.max()) <= WIDEST_INTEGER


def integer_weight(layer: CodedLayer, *, prefix: str, transpose: bool = False) -> Subgraph:
    """Return the graph of ``layer.levels()`` as int8 of the weight's shape; of (in, out) where ``transpose``.

    Raises ``UserError`` for a layer that is not ``is_integer``.
    """
    if not is_integer(layer):
        raise UserError(f"layer {layer.name}: got a weight that is not int8 per channel; allowed: float_weight")
    numbers = whole_numbers(layer)
    axis, turned = _turned(numbers, transpose)

    def stored_at(widths: Widths) -> Subgraph:
        builder = Builder(prefix)
        streams, order = packed_rows(builder, layer, turned, widths, axis=axis)
        return builder.finish(in_order(builder, streams, order, turned.shape, TensorProto.INT8, axis=axis).name)

    return _smallest(stored_at, layer, numbers)


def float_weight(layer: CodedLayer, *, prefix: str, factor: Floats | None = None, transpose: bool = False) -> Subgraph:
    """Return the graph of ``layer.weight()``, float32, bit for bit; of (in, out) where ``transpose``.

    ``factor``, float32 (out,), multiplies the output channels: one more rounding to float32. Widths that differ from
    weight to weight cost 1 to 8 bits more for each (``fairquant.export.graph.scattered``).
    """
    if layer.bits.ndim > 1 and len(np.unique(layer.bits)) > 1:
        builder = Builder(prefix)
        weight = scattered_weight(builder, layer).name
        weight = builder.node("Transpose", [weight], "turned", perm=[1, 0]) if transpose else weight
        axis, _ = _turned(layer.codes, transpose)
        return builder.finish(_scaled(builder, weight, factor, axis, len(layer.shape)))
    numbers = whole_numbers(layer)
    axis, turned = _turned(numbers, transpose)

    def stored_at(widths: Widths) -> Subgraph:
        builder = Builder(prefix)
        weight = _floats(builder, layer, turned, widths, axis).name
        return builder.finish(_scaled(builder, weight, factor, axis, turned.ndim))

    return _smallest(stored_at, layer, numbers)


def _smallest(stored_at: Callable[[Widths], Subgraph], layer: CodedLayer, numbers: Array) -> Subgraph:
    """Return the graph of the storage that takes the least room."""
    own, *others = storages(layer, numbers)
    best = stored_at(own)
    for widths in others:
        if int(widths.sum()) * (numbers.size // len(widths)) < 8 * marginal_bytes(best):
            best = min(best, stored_at(widths), key=marginal_bytes)
    return best


def _turned(weight: Array, transpose: bool) -> tuple[int, Array]:
    """Return the axis of output channels and the weight, transposed on request.

    Codes are stored transposed instead of transposing them in the graph: OpenVINO does not fold a Transpose between
    int8 weights and their DequantizeLinear, and multiplies floats.
    """
    if not transpose:
        return 0, weight
    if weight.ndim != 2:
        raise ValueError(f"transpose: got a weight of shape {weight.shape}; allowed: (out, in)")
    return 1, weight.T


def _floats(builder: Builder, layer: CodedLayer, numbers: Array, widths: Widths, axis: int) -> Stream:
    """Return the weight, float32 of the shape of ``numbers``, stored at ``widths``."""
    streams, order = packed_rows(builder, layer, numbers, widths, axis=axis)
    if streams:
        whole = joined(builder, "numbers", streams, axis=axis)
        found = _on_grid if layer.codebook is None else _in_books
        streams = [found(builder, layer, whole, order, axis)]
    if len(layer.floats):
        rows = np.flatnonzero(widths == UNTOUCHED)
        floats = layer.floats.reshape(len(rows), *layer.shape[1:])
        streams.append(Stream(builder.store("floats", floats.T if axis else floats), TensorProto.FLOAT))
        order = np.concatenate([order, rows])
    return in_order(builder, streams, order, numbers.shape, TensorProto.FLOAT, axis=axis)


def _on_grid(builder: Builder, layer: CodedLayer, numbers: Stream, order: Rows, axis: int) -> Stream:
    """Return Δ · (number − zero point) of the channels in ``order``.

    By way of int32: OpenVINO takes int8 times a step size in front of a MatMul for compressed weights, keeps them, and
    rounds the activations to 8 bits as well.
    """
    wide = cast(builder, "i", numbers, TensorProto.INT32)
    if layer.zero is not None:
        zero = np.where(np.isin(widths_of_rows(layer), (0, 1, UNTOUCHED)), 0, layer.zero[:, 0])[order]
        points = stored(builder, "z", _along(zero, axis, len(layer.shape)))
        wide = Stream(builder.node("Sub", [wide.name, points], "s"), TensorProto.INT32)
    name = cast(builder, "f", wide, TensorProto.FLOAT).name
    delta = layer.delta[:, 0] if len(layer.delta) == 1 else layer.delta[order, 0]
    steps = builder.store("d", _along(delta, axis, len(layer.shape)))
    return Stream(builder.node("Mul", [name, steps], "m"), TensorProto.FLOAT)


def _in_books(builder: Builder, layer: CodedLayer, codes: Stream, order: Rows, axis: int) -> Stream:
    """Return the values that codes of the channels in ``order`` stand for in their codebooks."""
    assert layer.codebook is not None
    starts, start = np.zeros(layer.shape[0], np.int64), 0
    for book in books_of(widths_of_rows(layer), layer.shape, layer.codebook):
        starts[book.channels] = start
        start += book.values
    name = cast(builder, "i", codes, TensorProto.INT32).name
    if starts[order].any():
        name = builder.node("Add", [name, stored(builder, "k", _along(starts[order], axis, len(layer.shape)))], "s")
    values = builder.store("values", layer.centroids)
    return Stream(builder.node("Gather", [values, name], "v", axis=0), TensorProto.FLOAT)


def _scaled(builder: Builder, weight: str, factor: Floats | None, axis: int, dimensions: int) -> str:
    if factor is None:
        return weight
    scale = builder.store("factor", _along(np.asarray(factor, np.float32), axis, dimensions))
    return builder.node("Mul", [weight, scale], "scaled")


def _along(values: Array, axis: int, dimensions: int) -> Array:
    """Return one value per channel in a shape that is broadcast along the other axes of a weight."""
    return values.reshape(tuple(-1 if at == axis else 1 for at in range(dimensions)))
