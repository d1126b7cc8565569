"""Layers as codes ⇄ the few arrays of a packed file: one stream of codes for each width, step sizes, codebooks.

All layers of a model share the arrays, one behind the other in model order, so that a file says little about each:

    widths      the width map (``width_map``) of all units
    codes.B     the codes of all weights of B bits, 1 ≤ B ≤ 16, a stream of ``bitstream``; where grids are asymmetric
                and B > 1, the zero points of the step sizes of B bits stand behind them in the same stream
    floats      the weights of 32 bits
    steps       the step sizes in use: of a layer, of each channel, or of each channel and width in it (ascending)
    centroids   the codebooks, in the order of ``allocate.books.books_of``

Within a layer everything is in C order. An array that would be empty is not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import BitMap, unit_shape
from fairquant.allocate.books import books_of
from fairquant.errors import ArtifactError
from fairquant.export.codes import UNTOUCHED, CodedLayer, Floats
from fairquant.export.packing import width_map
from fairquant.export.packing.bitstream import WIDEST, Codes, pack, unpack
from fairquant.export.packing.container import Arrays

Bits = npt.NDArray[np.uint8]
Shapes = Mapping[str, tuple[int, ...]]
"""Weight shapes by layer, in model order."""

CODED = range(1, WIDEST + 1)
FLOATS = ("floats", "steps", "centroids")
NAMES = ("widths", *(f"codes.{width}" for width in CODED), *FLOATS)


def to_arrays(layers: Mapping[str, CodedLayer]) -> Arrays:
    """Return the arrays of ``layers``, in their order."""
    found = list(layers.values())
    tables = [steps_of(layer.bits, layer.shape, layer.codebook is None) for layer in found]
    arrays: Arrays = {"widths": width_map.encode(np.concatenate([layer.bits.reshape(-1) for layer in found]))}
    for width in CODED:
        where = [(layer, _places(layer.bits, width)) for layer in found]
        parts = [layer.codes[places].reshape(-1) for layer, places in where if places is not None]
        if parts and width > 1:
            zeros = ((layer.zero, table) for layer, table in zip(found, tables, strict=True))
            parts += [zero[table == width].astype(np.uint16) for zero, table in zeros if zero is not None]
        if parts:
            arrays[f"codes.{width}"] = pack(np.concatenate(parts), width)
    floats = {
        "floats": [layer.floats for layer in found],
        "steps": [layer.delta[table > 0] for layer, table in zip(found, tables, strict=True)],
        "centroids": [layer.centroids for layer in found],
    }
    joined = {name: np.concatenate(values) for name, values in floats.items()}
    return arrays | {name: array for name, array in joined.items() if len(array)}


def steps_of(bits: Bits, shape: tuple[int, ...], on_grid: bool = True) -> Bits:
    """Return the width that each entry of a layer's table of step sizes serves, (out | 1, columns); 0: it is not used.

    >>> steps_of(np.uint8([[2, 2], [2, 4], [0, 4]]), (3, 2)).tolist()
    [[0, 2, 0], [0, 2, 4], [0, 0, 4]]
    >>> steps_of(np.uint8([2, 32, 8]), (3, 5)).ravel().tolist()
    [2, 0, 8]
    """
    if not on_grid:
        return np.zeros((0, 0), np.uint8)
    rows = bits.reshape(shape[0] if bits.ndim else 1, -1)
    table = rows[:, :1]
    present = np.flatnonzero(np.bincount(rows.reshape(-1))) if bits.ndim > 1 else np.empty(0)
    if len(present) > 1:
        table = np.stack([np.where((rows == width).any(axis=1), width, 0) for width in present], axis=1)
    return np.where(table == UNTOUCHED, 0, table).astype(np.uint8)


def _places(bits: Bits, width: int) -> npt.NDArray[Any] | EllipsisType | None:
    """Return an index of a weight's array that finds those of this width, in C order; None: there are none."""
    chosen = bits == width
    if not chosen.any():
        return None
    if bits.ndim == 0:
        return ...
    return np.flatnonzero(chosen) if bits.ndim == 1 else chosen


def read_bits(arrays: Arrays, bare: BitMap, shapes: Shapes) -> BitMap:
    """Return ``bare``, which has no layers, with the widths of ``arrays``; ``ArtifactError`` where they do not fit."""
    units = {name: unit_shape(bare.granularity, shape) for name, shape in shapes.items()}
    ends = np.cumsum([math.prod(shape) for shape in units.values()])
    if "widths" not in arrays or arrays["widths"].dtype != np.uint8:
        raise ArtifactError("got no widths; allowed: a width map, U8")
    parts = np.split(width_map.decode(arrays["widths"], int(ends[-1])), ends[:-1])
    widths = {name: part.reshape(units[name]) for name, part in zip(units, parts, strict=True)}
    return BitMap(bare.granularity, widths, scheme=bare.scheme, codebook=bare.codebook)


def from_arrays(arrays: Arrays, bits: BitMap, shapes: Shapes) -> dict[str, CodedLayer]:
    """Return the layers of widths ``bits``; raises ``ArtifactError`` unless ``arrays`` hold exactly them."""
    reader = _Reader(arrays, bits, shapes)
    return {name: reader.layer(name) for name in shapes}


class _Tape:
    """Values that are taken from the front."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values, self.place = values, 0

    def take(self, count: int) -> npt.NDArray[Any]:
        self.place += count
        return self.values[self.place - count : self.place]


class _Reader:
    """Takes layer after layer from arrays whose sizes are compared with the model's before."""

    def __init__(self, arrays: Arrays, bits: BitMap, shapes: Shapes) -> None:
        self.bits, self.shapes = bits, shapes
        on_grid = bits.codebook is None
        self.tables = {name: steps_of(bits.layers[name], shape, on_grid) for name, shape in shapes.items()}
        numbers = self._numbers()
        self.floats = {name: _Tape(_floats(arrays, name, numbers[name])) for name in FLOATS}
        if (self.floats["steps"].values <= 0).any():
            raise ArtifactError("got a step size that is not above 0; allowed: positive numbers")
        self.codes, self.zeros = self._unpacked(arrays, numbers)

    def _numbers(self) -> dict[str, int]:
        """Return how many numbers each array holds, zero points left out."""
        numbers = dict.fromkeys(NAMES, 0)
        for name, shape in self.shapes.items():
            widths = self.bits.layers[name]
            for width, units in self.bits.counts(name).items():
                if width > 0:
                    home = "floats" if width == UNTOUCHED else f"codes.{width}"
                    numbers[home] += units * (math.prod(shape) // widths.size)
            numbers["steps"] += int(np.count_nonzero(self.tables[name]))
            if self.bits.codebook is not None:
                numbers["centroids"] += sum(book.values for book in books_of(widths, shape, self.bits.codebook))
        return numbers

    def _unpacked(self, arrays: Arrays, numbers: Mapping[str, int]) -> tuple[dict[int, _Tape], dict[int, _Tape]]:
        """Return the codes and the zero points of each width that occurs."""
        codes, zeros = {}, {}
        for width in CODED:
            name = f"codes.{width}"
            if (numbers[name] > 0) != (name in arrays):
                raise ArtifactError(f"got {'a' if name in arrays else 'no'} tensor {name}; allowed: one for each width")
            if name in arrays:
                values = self._codes_and_zeros(arrays[name], numbers[name], width)
                codes[width], zeros[width] = _Tape(values[: numbers[name]]), _Tape(values[numbers[name] :])
        return codes, zeros

    def _codes_and_zeros(self, stream: npt.NDArray[Any], count: int, width: int) -> Codes:
        behind = 0
        if self.bits.scheme != "symmetric" and width > 1:
            behind = sum(int(np.count_nonzero(table == width)) for table in self.tables.values())
        if stream.dtype != np.uint8:
            raise ArtifactError(f"got codes of {width} bits as {stream.dtype}; allowed: U8")
        values = unpack(stream, count + behind, width)
        symmetric = self.bits.scheme == "symmetric" and self.bits.codebook is None
        largest = (1 << width) - (2 if symmetric and width > 1 else 1)
        if int(values.max()) > largest:
            raise ArtifactError(
                f"got the code {int(values.max())} of {width} bits; allowed: 0 to {largest} (symmetric)"
            )
        return values

    def layer(self, name: str) -> CodedLayer:
        """Return the next layer, which is ``name``."""
        bits, shape, table = self.bits.layers[name], self.shapes[name], self.tables[name]
        codes = self._codes(bits, shape)
        delta = np.ones(table.shape, np.float32)
        delta[table > 0] = self.floats["steps"].take(int(np.count_nonzero(table)))
        untouched = self.bits.counts(name).get(UNTOUCHED, 0) * (math.prod(shape) // bits.size)
        return CodedLayer(
            name, shape, bits, self.bits.scheme, codes, delta, self._zero(table),
            self.floats["floats"].take(untouched), self.bits.codebook, self._centroids(bits, shape, codes),
        )  # fmt: skip

    def _codes(self, bits: Bits, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        codes = np.zeros(shape, np.uint16)
        for width, tape in self.codes.items():
            where = _places(bits, width)
            if isinstance(where, np.ndarray) and bits.ndim > 1:
                codes[where] = tape.take(int(np.count_nonzero(where)))
            elif where is not None:
                channels = len(where) if isinstance(where, np.ndarray) else shape[0]
                codes[where] = tape.take(channels * math.prod(shape[1:])).reshape(channels, *shape[1:])
        return codes

    def _zero(self, table: Bits) -> npt.NDArray[np.int32] | None:
        if self.bits.scheme == "symmetric":
            return None
        zero = np.zeros(table.shape, np.int32)
        for width, tape in self.zeros.items():
            if width > 1:
                zero[table == width] = tape.take(int(np.count_nonzero(table == width)))
        return zero

    def _centroids(self, bits: Bits, shape: tuple[int, ...], codes: npt.NDArray[np.uint16]) -> Floats:
        """Return the next layer's codebooks; raises ``ArtifactError`` for a code beyond the end of its own."""
        if self.bits.codebook is None:
            return np.empty(0, np.float32)
        books = books_of(bits, shape, self.bits.codebook)
        for book in books:
            largest = int(codes[book.channels].max())
            if largest >= book.values:
                raise ArtifactError(
                    f"got the code {largest} in a codebook of {book.values} values; allowed: below that"
                )
        taken: Floats = self.floats["centroids"].take(sum(book.values for book in books))
        return taken


def _floats(arrays: Arrays, name: str, count: int) -> Floats:
    """Return the ``count`` numbers of an array that is there if it is not empty."""
    found = arrays.get(name, np.empty(0, np.float32))
    if found.dtype != np.float32 or len(found) != count or (count == 0 and name in arrays):
        raise ArtifactError(f"got {len(found)} {name} ({found.dtype}); allowed: {count} (F32), as the widths ask for")
    if not np.isfinite(found).all():
        raise ArtifactError(f"got {name} that are NaN or infinite; allowed: finite numbers")
    return found
