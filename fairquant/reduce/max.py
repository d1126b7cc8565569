"""max: a weight is worth what it is worth to the group that needs it most, I = max_g I_g."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairquant.config import Section
from fairquant.reduce._arrays import Floats, per_group


class Options(Section):
    """max has no settings."""


def reduce(
    importance: Floats,
    options: Options,
    *,
    groups: Sequence[str],
    totals: npt.NDArray[np.float64] | None = None,
) -> Floats:
    """Return the largest importance over groups: (G, *weight) → (*weight); ``totals`` is not used.

    >>> reduce(np.array([[1, 5], [3, 2]], dtype=np.float32), Options(), groups=["a", "b"]).tolist()
    [3.0, 5.0]
    """
    reduced: Floats = per_group(importance, groups).max(axis=0)
    return reduced.reshape(importance.shape[1:])


def objective(options: Options, totals: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
    """Return (1, ones): the loss of the worst group.

    >>> objective(Options(), np.array([3.0, 1.0]))
    (1.0, array([1., 1.]))
    """
    return 1.0, np.ones(len(totals))
