"""Which units are frozen in a round of iterative quantization, and at which width: least important first.

The mix is what an allocator asked for: so many parameters at each width. Units in ascending order of their current
importance fill it from the lowest width on, as in ``levels``: a unit belongs to the width in whose span of parameters
its midpoint lies. After round r of n, r/n of the parameters are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]
OPEN = 32
"""Stands for a unit that is not frozen yet."""


def mix_of(bits: Bits, sizes: Ints) -> dict[int, int]:
    """Return how many parameters have each width, ascending: widths (U,) and unit sizes (U,).

    >>> mix_of(np.array([8, 2, 8], dtype=np.uint8), np.array([10, 5, 1]))
    {2: 5, 8: 11}
    """
    return {int(width): int(sizes[bits == width].sum()) for width in np.unique(bits)}


def freeze_next(importance: Floats, sizes: Ints, frozen: Bits, mix: Mapping[int, int], *, share: float) -> Bits:
    """Return the widths after a round in which frozen units come to hold ``share`` of all parameters.

    Args:
        importance: current importance of each unit (U,); that of frozen units is not looked at.
        sizes: parameters of each unit (U,).
        frozen: width of each frozen unit, 32 of the others (U,).
        mix: parameters wanted at each width; they sum to all parameters.
        share: of all parameters, in (0, 1]; 1 freezes every unit.

    >>> frozen = np.full(4, 32, dtype=np.uint8)
    >>> half = freeze_next(np.array([3.0, 1.0, 4.0, 2.0]), np.ones(4, int), frozen, {2: 1, 4: 2, 8: 1}, share=0.5)
    >>> half.tolist()
    [32, 2, 32, 4]
    >>> freeze_next(np.array([1.0, 9.0, 0.5, 9.0]), np.ones(4, int), half, {2: 1, 4: 2, 8: 1}, share=1.0).tolist()
    [8, 2, 4, 4]
    """
    done = frozen != OPEN
    rest = np.flatnonzero(~done)
    order = rest[np.argsort(importance[rest], kind="stable")]
    start = int(sizes[done].sum())
    midpoints = 2 * (start + np.cumsum(sizes[order])) - sizes[order]  # doubled, so that all is exact in whole numbers
    now = midpoints <= 2 * share * int(sizes.sum()) if share < 1 else np.ones(len(order), dtype=bool)
    widths = np.array(sorted(mix), dtype=np.uint8)
    bounds = 2 * np.cumsum([mix[int(width)] for width in widths])[:-1]
    result = frozen.copy()
    result[order[now]] = widths[np.searchsorted(bounds, midpoints[now], side="left")]
    return result
