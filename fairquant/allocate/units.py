"""Weights grouped into units, the things that get a bit-width: layers, out channels or single weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape

Floats = npt.NDArray[np.floating[Any]]


def unit_importance(reduced: npt.NDArray[np.float32], granularity: Granularity) -> Floats:
    """Return the mean reduced importance of each unit of a layer: (*weight) → (U,).

    Means are float64; per parameter nothing is averaged and the float32 values are returned as they are.

    >>> unit_importance(np.array([[1, 3], [5, 7]], dtype=np.float32), "per_channel").tolist()
    [2.0, 6.0]
    """
    units = reduced.reshape(math.prod(unit_shape(granularity, reduced.shape)), -1)
    return units.reshape(-1) if units.shape[1] == 1 else units.mean(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Units:
    """The units of some layers in one row, layer after layer: ``importance`` (U,) and ``sizes`` (U,) in parameters."""

    granularity: Granularity
    shapes: Mapping[str, tuple[int, ...]]
    importance: Floats
    sizes: npt.NDArray[np.int64]

    @classmethod
    def gather(
        cls, granularity: Granularity, shapes: Mapping[str, tuple[int, ...]], importance: Mapping[str, Floats]
    ) -> Units:
        """Line up the unit importance (U_layer,) of each layer of ``shapes``; an empty mapping gives no units."""
        numbers = [math.prod(unit_shape(granularity, shape)) for shape in shapes.values()]
        sizes = [math.prod(shape) // number for shape, number in zip(shapes.values(), numbers, strict=True)]
        if len(set(sizes)) == 1:  # one number seen U times: for single weights of a large model this saves 8 bytes each
            lined_up: npt.NDArray[np.int64] = np.broadcast_to(np.int64(sizes[0]), (sum(numbers),))
        else:
            lined_up = np.repeat(np.array(sizes, dtype=np.int64), numbers)
        values = [importance[name] for name in shapes]
        return cls(granularity, shapes, np.concatenate(values) if values else np.empty(0), lined_up)

    def scatter(self, bits: npt.NDArray[np.uint8]) -> BitMap:
        """Cut one width per unit (U,) back into layers."""
        layers, start = {}, 0
        for name, shape in self.shapes.items():
            kept = unit_shape(self.granularity, shape)
            layers[name] = bits[start : start + math.prod(kept)].reshape(kept)
            start += math.prod(kept)
        return BitMap(self.granularity, layers)
