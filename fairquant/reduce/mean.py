"""mean: every group counts the same, I = (1/G) Σ_g I_g."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairquant.config import Section
from fairquant.reduce._arrays import Floats, per_group


class Options(Section):
    """mean has no settings."""


def reduce(
    importance: Floats,
    options: Options,
    *,
    groups: Sequence[str],
    totals: npt.NDArray[np.float64] | None = None,
) -> Floats:
    """Return the mean importance over groups: (G, *weight) → (*weight), summed in float64; ``totals`` is not used.

    >>> reduce(np.array([[1, 5], [3, 2]], dtype=np.float32), Options(), groups=["a", "b"]).tolist()
    [2.0, 3.5]
    """
    reduced: Floats = per_group(importance, groups).mean(axis=0, dtype=np.float64).astype(np.float32)
    return reduced.reshape(importance.shape[1:])


def objective(options: Options, totals: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
    """Return (1/G, ones): the mean of the groups' losses.

    >>> objective(Options(), np.array([3.0, 1.0]))
    (0.5, array([1., 1.]))
    """
    return 1 / len(totals), np.ones(len(totals))
