"""Output channels grouped by the width they are stored at, unpacked, and brought back into their order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fairquant.export.codes import UNTOUCHED, CodedLayer
from fairquant.export.graph.planes import Stream, joined, stored, unpacked, zeros
from fairquant.export.graph.subgraph import Builder

Widths = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def step_and_offset(layer: CodedLayer, width: int) -> tuple[int, int]:
    """Return the step and the offset that turn a code of ``width`` bits into the whole number that is stored.

    That is the level on a symmetric grid, the code where there is a zero point or a codebook, and ±1 at one bit.
    """
    if layer.codebook is not None:
        return 1, 0
    if width == 1:
        return 2, -1
    return 1, 1 - (1 << (width - 1)) if layer.zero is None else 0


def widths_of_rows(layer: CodedLayer) -> Widths:
    """Return the width of each output channel, uint8 (out,), of a layer that has one width in each."""
    return np.broadcast_to(layer.bits.reshape(-1)[:1] if layer.bits.ndim > 1 else layer.bits, layer.shape[:1])


def whole_numbers(layer: CodedLayer) -> npt.NDArray[np.int32]:
    """Return what ``step_and_offset`` makes of the codes, the weight's shape; 0 at 0 and 32 bits."""
    widths = widths_of_rows(layer)
    result = np.zeros(layer.shape, np.int32)
    for width in np.unique(widths).tolist():
        if 0 < width < UNTOUCHED:
            step, offset = step_and_offset(layer, width)
            result[widths == width] = layer.codes[widths == width].astype(np.int32) * step + offset
    return result


def storages(layer: CodedLayer, numbers: npt.NDArray[np.int32]) -> Iterator[Widths]:
    """Yield the widths at which channels may be stored, uint8 (out,): their own, or all alike where that can hold all.

    Storing all alike takes more bits and no permutation. Channels of 32 bits are floats whatever the others are, and no
    codebook holds the zeros of those of 0 bits.
    """
    widths = widths_of_rows(layer)
    yield widths
    packed = (widths < UNTOUCHED) & ((widths > 0) | (layer.codebook is None))
    widest = int(widths[packed].max(initial=0))
    for width in sorted({widest, max(widest, 8)} if widest else ()):
        step, offset = step_and_offset(layer, width)
        codes = (numbers[packed] - offset) // step
        fits = bool(((codes >= 0) & (codes < 1 << width) & (codes * step + offset == numbers[packed])).all())
        alike = np.where(packed, np.uint8(width), widths)
        if fits and not np.array_equal(alike, widths):
            yield alike


def packed_rows(
    builder: Builder, layer: CodedLayer, numbers: npt.NDArray[np.int32], widths: Widths, *, axis: int
) -> tuple[list[Stream], Rows]:
    """Return ``numbers`` of channels of 1 to 16 bits, a stream a width, and which channels (of ``axis``) those are."""
    streams, order = [], []
    for width in np.unique(widths).tolist():
        if not 0 < width < UNTOUCHED:
            continue
        rows = np.flatnonzero(widths == width)
        step, offset = step_and_offset(layer, width)
        codes = (numbers.take(rows, axis) - offset) // step
        streams.append(unpacked(builder, f"b{width}", codes, width, shape=codes.shape, step=step, offset=offset))
        order.append(rows)
    return streams, np.concatenate(order) if order else np.empty(0, np.int64)


def in_order(
    builder: Builder, streams: list[Stream], order: Rows, shape: tuple[int, ...], kind: int, *, axis: int
) -> Stream:
    """Return the streams' channels, elements of type ``kind``, at the places ``order`` along ``axis`` of ``shape``.

    The other places are zeros.
    """
    if not streams:
        return zeros(builder, "b0", shape, kind)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    spare = [zeros(builder, "b0", one, kind)] if len(order) < shape[axis] else []
    together = joined(builder, "all", [*streams, *spare], axis=axis, to=kind)
    place = np.full(shape[axis], len(order))
    place[order] = np.arange(len(order))
    if np.array_equal(place, np.arange(shape[axis])):
        return together
    return Stream(builder.node("Gather", [together.name, stored(builder, "place", place)], "rows", axis=axis), kind)
