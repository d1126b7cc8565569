"""uniform: one bit-width for every unit, ``assign.uniform_bits``; importance plays no part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.config.schema import AssignSection


def allocate(
    importance: npt.NDArray[np.floating[Any]], sizes: npt.NDArray[np.int64], section: AssignSection
) -> npt.NDArray[np.uint8]:
    """Return ``section.uniform_bits`` for each unit: (U,) → (U,).

    >>> allocate(np.zeros(3), np.ones(3, dtype=np.int64), AssignSection(uniform_bits=4)).tolist()
    [4, 4, 4]
    """
    return np.full(importance.shape, section.uniform_bits, dtype=np.uint8)
