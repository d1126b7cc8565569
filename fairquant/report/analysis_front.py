"""Which of many choices nothing surpasses: the Pareto front in any number of directions.

A choice is surpassed where another is at least as good in every direction and better in one; equal choices surpass
neither (Deb 2001, "Multi-Objective Optimization using Evolutionary Algorithms", section 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIRECTIONS = ("min", "max")


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[bool]:
    """Return for each of N points whether no other surpasses it.

    Args:
        points: (N, D) finite numbers.
        directions: min | max for each of the D values: which way is better.

    Raises:
        ValueError: a direction that is neither, points of another length, or a value that is not finite.

    >>> pareto_front([(1.0, 80.0), (2.0, 90.0), (2.0, 85.0)], ("min", "max"))
    [True, True, False]
    """
    if not directions or any(name not in DIRECTIONS for name in directions):
        raise ValueError(f"directions: got {list(directions)}; allowed: one or more of {' | '.join(DIRECTIONS)}")
    if any(len(point) != len(directions) for point in points):
        raise ValueError(f"points: got {[len(point) for point in points]} values; allowed: {len(directions)} each")
    signs = np.array([1.0 if name == "min" else -1.0 for name in directions])
    values = np.asarray(points, dtype=np.float64).reshape(len(points), len(directions)) * signs
    if not np.isfinite(values).all():
        raise ValueError("points: got NaN or infinite values; allowed: finite ones")
    return [not _surpassed(values, place) for place in range(len(values))]


def _surpassed(values: np.ndarray, place: int) -> bool:
    """Tell whether a row is at most as large as that at ``place`` everywhere and smaller somewhere."""
    own = values[place]
    return bool(((values <= own).all(axis=1) & (values < own).any(axis=1)).any())
