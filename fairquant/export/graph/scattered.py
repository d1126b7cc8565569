"""A weight whose widths differ from weight to weight: which weight has which width stands beside the codes.

Weights of one width are one packed stream. A permutation of single weights would take 32 bits for each; instead the
rank of each weight's width among the layer's m widths is stored in 1, 2 or 4 bits (8 for more than 16 widths), and the
graph computes where a weight finds its value: the start of its stream + how many weights before it have its width.
Counting goes by bytes of ranks: tables give each byte's number of weights of each width and the order within the byte,
CumSum adds up the bytes before.

Cost: Σ bits/8 bytes and those ranks, beside the step sizes. onnxruntime folds all of it to a constant; OpenVINO
computes it once, when it compiles the model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from fairquant.export.codes import UNTOUCHED, CodedLayer
from fairquant.export.graph.planes import (
    Stream,
    bytes_of,
    fields,
    joined,
    looked_up,
    pack,
    smallest,
    trimmed,
    unpacked,
    zeros,
)
from fairquant.export.graph.rows import step_and_offset
from fairquant.export.graph.subgraph import Array, Builder


def scattered_weight(builder: Builder, layer: CodedLayer) -> Stream:
    """Add the weight of a layer on a grid with ``bits`` of the weight's shape; float32 of that shape."""
    present, ranks = np.unique(layer.bits, return_inverse=True)
    widths = [int(width) for width in present]
    rank, place = _ranks_and_places(builder, ranks.reshape(layer.shape).astype(np.uint8), widths)
    streams = joined(builder, "all", _streams(builder, layer, widths), to=TensorProto.FLOAT)
    values = builder.node("Gather", [streams.name, place], "v", axis=0)
    plain = np.isin(present, (0, 1, UNTOUCHED))
    if layer.zero is not None:
        zero = np.where(plain, 0, layer.zero).astype(np.float32)
        values = builder.node("Sub", [values, _of_each(builder, "z", zero, rank, layer.shape[0])], "vz")
    delta = np.where(np.isin(present, (0, UNTOUCHED)), np.float32(1), layer.delta).astype(np.float32)
    values = builder.node("Mul", [values, _of_each(builder, "d", delta, rank, layer.shape[0])], "vd")
    sizes = builder.store("shape", np.array(layer.shape, np.int64))
    return Stream(builder.node("Reshape", [values, sizes], "w"), TensorProto.FLOAT)


def _ranks_and_places(builder: Builder, ranks: npt.NDArray[np.uint8], widths: list[int]) -> tuple[str, str]:
    """Return the names of each weight's rank and place in the joined streams: int32 (out, weights of a channel)."""
    width = next(bits for bits in (1, 2, 4, 8) if len(widths) <= 1 << bits)
    packed = pack(ranks, width)
    index = bytes_of(builder, "ranks", packed)
    within, counts = _tables(width, widths)
    sizes = np.bincount(ranks.reshape(-1), minlength=len(widths))
    sizes[0] = 1 if widths[0] == 0 else sizes[0]
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    rank, order, count = (
        builder.node("Cast", [looked_up(builder, label, index, smallest(table))], f"{label}i", to=TensorProto.INT32)
        for label, table in (("rank", fields(width)), ("order", within), ("count", counts))
    )
    axis = builder.store("axis", np.array(0, np.int64))
    before = builder.node("CumSum", [count, axis], "before", exclusive=1)
    before = builder.node("Add", [before, builder.store("starts", starts[None])], "from")
    place = builder.node("Add", [builder.node("GatherElements", [before, rank], "base", axis=1), order], "at")
    shape, padded = (len(ranks), ranks.size // len(ranks)), len(packed) * 8 // width != ranks.size
    return (
        trimmed(builder, "r", rank, ranks.size, shape, padded=padded),
        trimmed(builder, "place", place, ranks.size, shape, padded=padded),
    )


def _tables(width: int, widths: list[int]) -> tuple[Array, Array]:
    """Return, for every byte, how many fields before each one equal it, and how many have each rank.

    Weights of 0 bits all find the same zero: they are not counted.
    """
    values = fields(width)
    equal = values[:, :, None] == values[:, None, :]
    within = np.tril(equal, k=-1).sum(axis=2)
    counts = (values[:, :, None] == np.arange(len(widths))).sum(axis=1)
    if widths[0] == 0:
        within[values == 0] = 0
        counts[:, 0] = 0
    return within, counts


def _streams(builder: Builder, layer: CodedLayer, widths: list[int]) -> list[Stream]:
    streams = []
    for width in widths:
        if width == 0:
            streams.append(zeros(builder, "b0", (1,), TensorProto.INT8))
        elif width == UNTOUCHED:
            streams.append(Stream(builder.store("floats", layer.floats), TensorProto.FLOAT))
        else:
            codes = layer.codes[layer.bits == width]
            step, offset = step_and_offset(layer, width)
            streams.append(unpacked(builder, f"b{width}", codes, width, shape=codes.shape, step=step, offset=offset))
    return streams


def _of_each(builder: Builder, label: str, table: npt.NDArray[np.float32], rank: str, channels: int) -> str:
    """Return what each weight finds in ``table`` (out | 1, widths): (out, weights of a channel).

    By GatherElements, also from a single row: OpenVINO would fold a Gather, see a constant, and rewrite (v − z) · d as
    v · d − z · d, which is rounded differently.
    """
    name = builder.store(label, table)
    if len(table) < channels:
        sizes = builder.store(f"{label}s", np.array([channels, table.shape[1]], np.int64))
        name = builder.node("Expand", [name, sizes], f"{label}e")
    return builder.node("GatherElements", [name, rank], f"{label}g", axis=1)
