"""What every reducer does to its input: check it, see it as (G, N), walk it in blocks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fairquant.errors import UserError

Floats = npt.NDArray[np.float32]
BLOCK = 1 << 14
"""Weights per block: nine groups of float32 in one block take 576 KiB."""


def per_group(importance: Floats, groups: Sequence[str]) -> Floats:
    """Return ``importance`` (G, *weight) as a (G, N) view; raise ``UserError`` on other shapes, NaN or infinity."""
    if importance.ndim < 1 or len(importance) != len(groups) or not groups:
        raise UserError(
            f"importance: got an array of shape {importance.shape} for {len(groups)} groups; "
            "allowed: one map per group along the first axis"
        )
    flat = importance.reshape(len(groups), -1)
    for name, row in zip(groups, flat, strict=True):
        low, high = (float(row.min()), float(row.max())) if row.size else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            found = "NaN" if math.isnan(low) else "infinity"
            raise UserError(f"importance of group {name!r}: got {found}; allowed: finite numbers")
    return flat


def blocks(length: int) -> Iterator[slice]:
    """Yield slices of at most ``BLOCK`` that cover ``range(length)`` in order."""
    for start in range(0, length, BLOCK):
        yield slice(start, min(start + BLOCK, length))
