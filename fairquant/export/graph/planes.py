"""Codes of any width stored packed in an ONNX graph, and unpacked there by operators that runtimes fold at load.

A stream of n codes of b bits, b dividing 8, stands in ⌈n·b/8⌉ bytes, the first code in the lowest bits. The graph looks
every byte up in a table of the 8/b values it holds:

    Cast(int32) → Gather(256 × 8/b table) → Reshape [→ Slice]

Other widths are sums of such planes, each table holding its plane's place value: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2,
7 = 4 + 2 + 1 bits, and 9 to 15 a plane of 8 and these. 8 and 16 bits need no table. onnxruntime and OpenVINO fold all
of this to a constant; a DequantizeLinear of 4 bits they would run at every inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from fairquant.export.graph.subgraph import Array, Builder, Subgraph, stored_bytes

BYTES = 256
TABLE = "/table"
"""What the names of tables end with: they are the same in all layers, so that ``merged`` keeps one of each."""


@dataclass(frozen=True)
class Stream:
    """A tensor of the graph and its element type (of ``onnx.TensorProto``)."""

    name: str
    type: int


def planes_of(width: int) -> tuple[int, ...]:
    """Return the widths of the planes that make up ``width`` bits, from the lowest bits up.

    >>> [planes_of(width) for width in (1, 3, 7, 8, 12, 16)]
    [(1,), (2, 1), (4, 2, 1), (8,), (8, 4), (16,)]
    """
    if width == 16:
        return (16,)
    return tuple(part for part in (8, 4, 2, 1) if width & part)


def pack(codes: npt.NDArray[np.integer[Any]], width: int) -> npt.NDArray[np.uint8]:
    """Return codes of 1, 2 or 4 bits as bytes, the first in the lowest bits; the last byte is filled with zeros.

    >>> pack(np.array([1, 2, 3, 0, 2]), 2).tolist()
    [57, 2]
    """
    per_byte = 8 // width
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    result: npt.NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return result


def fields(width: int) -> npt.NDArray[np.int32]:
    """Return the codes of 1, 2, 4 or 8 bits in every byte: (256, 8/width)."""
    return (np.arange(BYTES, dtype=np.int32)[:, None] >> np.arange(0, 8, width, dtype=np.int32)) & ((1 << width) - 1)


def smallest(values: Array) -> Array:
    """Return whole numbers as the smallest of int8, uint8, int16, uint16 and int32 that holds all.

    >>> smallest(np.array([-1, 127])).dtype, smallest(np.array([0, 128])).dtype, smallest(np.array([-1, 200])).dtype
    (dtype('int8'), dtype('uint8'), dtype('int16'))
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for kind in (np.int8, np.uint8, np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.int32)


def stored(builder: Builder, label: str, values: Array) -> str:
    """Store whole numbers in the smallest type that holds them and return their name as int32 tensor."""
    small = smallest(values)
    name = builder.store(label, small)
    return name if small.dtype == np.int32 else builder.node("Cast", [name], f"{label}i", to=TensorProto.INT32)


def joined(builder: Builder, label: str, streams: Sequence[Stream], *, axis: int = 0, to: int | None = None) -> Stream:
    """Return streams one after another along ``axis``, as elements of type ``to``; their own, or int32, where None."""
    kinds = {stream.type for stream in streams}
    common = to if to is not None else kinds.pop() if len(kinds) == 1 else TensorProto.INT32
    alike = [cast(builder, f"{label}{at}", stream, common) for at, stream in enumerate(streams)]
    if len(alike) == 1:
        return alike[0]
    return Stream(builder.node("Concat", [stream.name for stream in alike], label, axis=axis), common)


def zeros(builder: Builder, label: str, shape: tuple[int, ...], kind: int) -> Stream:
    """Return zeros of ``shape`` that take no room."""
    sizes = builder.store("x".join(map(str, shape)), np.array(shape, np.int64))
    value = helper.make_tensor("", kind, [1], [0])
    return Stream(builder.node("ConstantOfShape", [sizes], label, value=value), kind)


def cast(builder: Builder, label: str, stream: Stream, to: int) -> Stream:
    """Return ``stream`` as elements of type ``to``."""
    if stream.type == to:
        return stream
    return Stream(builder.node("Cast", [stream.name], label, to=to), to)


def unpacked(
    builder: Builder,
    label: str,
    codes: npt.NDArray[np.integer[Any]],
    width: int,
    *,
    shape: tuple[int, ...],
    step: int = 1,
    offset: int = 0,
) -> Stream:
    """Store ``codes`` in ``width`` (1 to 16) bits each and return ``step`` · code + ``offset``, of ``shape``."""
    flat, parts = codes.reshape(-1).astype(np.int32), planes_of(width)
    if len(parts) == 1:
        return _plane(builder, label, flat, width, shape=shape, step=step, offset=offset)
    total, place = "", 0
    for part in parts:
        plane = (flat >> place) & ((1 << part) - 1)
        top = place + part == width
        own = f"{label}p{place}"
        stream = _plane(builder, own, plane, part, shape=shape, step=step << place, offset=offset if top else 0)
        name = cast(builder, f"{own}w", stream, TensorProto.INT32).name
        total = builder.node("Add", [total, name], f"{own}s") if total else name
        place += part
    return Stream(total, TensorProto.INT32)


def _plane(
    builder: Builder, label: str, codes: Array, width: int, *, shape: tuple[int, ...], step: int, offset: int
) -> Stream:
    """Return ``unpacked`` of a width that needs no other plane: a table's values, or numbers as they are."""
    if width >= 8:
        raw = smallest(codes.reshape(shape) * step + offset)
        return Stream(builder.store(label, raw), helper.np_dtype_to_tensor_dtype(raw.dtype))
    table = smallest(fields(width) * step + offset)
    values = looked_up(builder, label, bytes_of(builder, label, pack(codes, width)), table)
    return Stream(
        trimmed(builder, label, values, codes.size, shape, padded=codes.size * width % 8 != 0),
        helper.np_dtype_to_tensor_dtype(table.dtype),
    )


def bytes_of(builder: Builder, label: str, packed: npt.NDArray[np.uint8]) -> str:
    """Store bytes and return the name of what looks up in tables: int32 (bytes,)."""
    return builder.node("Cast", [builder.store(label, packed)], f"{label}i", to=TensorProto.INT32)


def looked_up(builder: Builder, label: str, index: str, table: Array) -> str:
    """Store a ``table`` (256, values per byte) and return the name of (bytes, values per byte)."""
    return builder.node("Gather", [builder.store(label + TABLE, table), index], f"{label}g", axis=0)


def marginal_bytes(subgraph: Subgraph) -> int:
    """Return the bytes of all but the tables: what one more layer costs in a file."""
    own = tuple(tensor for tensor in subgraph.initializers if not tensor.name.endswith(TABLE))
    return stored_bytes(Subgraph(subgraph.nodes, own, subgraph.output))


def trimmed(builder: Builder, label: str, name: str, n: int, shape: tuple[int, ...], *, padded: bool) -> str:
    """Return the first ``n`` elements of a tensor in ``shape``."""
    if padded:
        flat = builder.node("Reshape", [name, builder.store("flat", np.array([-1], np.int64))], f"{label}f")
        ends = [builder.store("start", np.array([0], np.int64)), builder.store(f"{label}n", np.array([n], np.int64))]
        name = builder.node("Slice", [flat, *ends], f"{label}c")
    return reshaped(builder, label, name, shape)


def reshaped(builder: Builder, label: str, name: str, shape: tuple[int, ...]) -> str:
    """Return a tensor in ``shape``."""
    sizes = builder.store("x".join(map(str, shape)), np.array(shape, np.int64))
    return builder.node("Reshape", [name, sizes], f"{label}r")
