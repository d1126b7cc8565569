"""balanced: importance relative to what a group's weights are worth in all, I = max_g I_g / share_g.

share_g = ΣI_g / Σ_g ΣI_g with sums over all weights of the model, so that a group with small gradients everywhere is
not outvoted by one with large gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairquant.config import Section
from fairquant.errors import UserError
from fairquant.reduce._arrays import Floats, blocks, per_group


class Options(Section):
    """balanced has no settings."""


def reduce(
    importance: Floats,
    options: Options,
    *,
    groups: Sequence[str],
    totals: npt.NDArray[np.float64] | None = None,
) -> Floats:
    """Return max_g I_g/share_g: (G, *weight) → (*weight), importance ≥ 0.

    ``totals`` (G,) are the model's ΣI_g, None those of this array. A group whose total is 0 has no claim on any
    weight and contributes 0. A negative total raises ``UserError``.

    >>> maps = np.array([[1, 2], [3, 6]], dtype=np.float32)  # shares 0.25 and 0.75
    >>> reduce(maps, Options(), groups=["a", "b"]).tolist()
    [4.0, 8.0]
    """
    flat = per_group(importance, groups)
    sums = flat.sum(axis=1, dtype=np.float64) if totals is None else np.asarray(totals, dtype=np.float64)
    per_share = _one_over_share(sums, groups)
    reduced = np.empty(flat.shape[1], dtype=np.float32)
    for block in blocks(len(reduced)):
        reduced[block] = (flat[:, block] * per_share).max(axis=0)
    return reduced.reshape(importance.shape[1:])


def objective(options: Options, totals: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
    """Return (1, 1/share_g): the worst of the groups' losses relative to their shares of ``totals``.

    Ones where all totals are 0: then so is every loss.

    >>> objective(Options(), np.array([3.0, 1.0]))
    (1.0, array([1.33333333, 4.        ]))
    """
    scale = _one_over_share(totals, [str(index) for index in range(len(totals))])[:, 0]
    return 1.0, scale if scale.any() else np.ones(len(totals))


def _one_over_share(totals: npt.NDArray[np.float64], groups: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return 1/share_g as a (G, 1) column, 0 for a group whose total is 0."""
    for name, total in zip(groups, totals.tolist(), strict=True):
        if total < 0:
            raise UserError(f"balanced: got total importance {total:g} of group {name!r}; allowed: not negative")
    column = np.zeros((len(totals), 1))
    np.divide(totals.sum(), totals, out=column[:, 0], where=totals > 0)
    return column
