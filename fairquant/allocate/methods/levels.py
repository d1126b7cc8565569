"""levels: rank units by importance and give the least important share the fewest bits (FairQuant, arXiv 2602.23192).

With cumulative shares c_k and units in ascending order, a unit belongs to the lowest level k whose boundary c_k·W is
not below the unit's midpoint, where W counts parameters (``level_unit: params``: the average bits asked for are the
average bits got, within one unit) or units (``units``, the published rule). Only ranks matter: equal importance is
split in model order, so ties never break the shares, and negative importance is simply the least important.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.config.schema import AssignSection

Floats = npt.NDArray[np.floating[Any]]
Bits = npt.NDArray[np.uint8]


def allocate(importance: Floats, sizes: npt.NDArray[np.int64], section: AssignSection) -> Bits:
    """Return each unit's width from ``section.bits`` by the shares ``section.levels``: (U,), (U,) → (U,).

    >>> section = AssignSection(bits=(2, 4, 8), levels=(0.25, 0.25, 0.5))
    >>> allocate(np.array([9.0, 1.0, 5.0, 7.0]), np.array([1, 1, 1, 1]), section).tolist()
    [8, 2, 4, 8]
    >>> allocate(np.array([9.0, 1.0, 5.0, 7.0]), np.array([1, 1, 2, 4]), section).tolist()  # 5.5 asked, 5.75 got
    [8, 2, 2, 8]
    """
    widths, shares = section.ladder
    bounds = _boundaries(shares)
    if section.level_unit == "units" or not sizes.size or sizes.min() == sizes.max():
        return _by_threshold(importance, [_below(bound, len(importance)) for bound in bounds], widths)
    order = np.argsort(importance, kind="stable")
    ends = np.cumsum(sizes[order])
    midpoints = 2 * ends - sizes[order]  # doubled, so that all is exact in whole numbers
    doubled = [int(2 * bound * int(ends[-1])) for bound in bounds]
    below = np.searchsorted(midpoints, doubled, side="right")
    bits = np.empty(len(importance), dtype=np.uint8)
    bits[order] = np.repeat(np.array(widths, dtype=np.uint8), np.diff(below, prepend=0, append=len(order)))
    return bits


def _boundaries(shares: tuple[float, ...]) -> list[Fraction]:
    """Return the cumulative shares below the last level, exact: 0.2 + 0.4 is 3/5 as written, not 0.6000000000000001."""
    exact = [Fraction(repr(float(share))) for share in shares]
    return [bound / sum(exact) for bound in accumulate(exact[:-1])]


def _below(bound: Fraction, units: int) -> int:
    """Return how many of ``units`` equal units have their midpoint at or below ``bound``: rounds, a half goes up."""
    return int(bound * units + Fraction(1, 2))


def _by_threshold(importance: Floats, below: list[int], widths: tuple[int, ...]) -> Bits:
    """Give ``widths[k]`` to the units of rank below[k − 1] … below[k]: what a stable sort gives, without sorting."""
    bits = np.full(len(importance), widths[-1], dtype=np.uint8)
    inner = sorted({rank for rank in below if 0 < rank < len(importance)})
    ordered = np.partition(importance, inner) if inner else importance
    for rank, width in reversed(list(zip(below, widths[:-1], strict=True))):
        if rank == len(importance):
            bits[:] = width
        elif rank > 0:
            threshold = ordered[rank]
            lower = importance < threshold
            bits[lower] = width
            bits[np.flatnonzero(importance == threshold)[: rank - np.count_nonzero(lower)]] = width
    return bits
