"""Perturbations relative to the weight: how maps that hold w² are read back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def squared_ratio(delta: Floats, weight: Floats) -> Floats:
    """Return (δ/w)² per weight, 0 where both are 0.

    The map of a weight that is 0 says nothing about moving it, so ``delta`` must be 0 there (as it is for every
    symmetric quantizer); else ``ValueError``.

    >>> squared_ratio(np.float32([0.5, 0]), np.float32([2, 0])).tolist()
    [0.0625, 0.0]
    """
    zero = weight == 0
    moved = int(np.count_nonzero(delta[zero]))
    if moved:
        raise ValueError(f"delta: got {moved} non-zero values on weights that are 0; allowed: 0 there")
    return np.square(np.divide(delta, weight, out=np.zeros_like(weight), where=~zero))
