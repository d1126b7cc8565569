"""What the groups' predicted losses are worth together: the worst weighted mean that no group may dominate too much.

``value(T) = max { Σ_g λ_g·scale_g·T_g : λ ≥ 0, Σ_g λ_g = 1, λ_g ≤ cap }``

cap = 1/G is the mean over groups, cap = 1 the worst group, and 1/((1 − α)·G) the conditional value at risk at level α,
the mean of the worst 1 − α share (dual form: Rockafellar & Uryasev 2002, Journal of Banking & Finance 26). A scale of
1/share_g compares groups by their loss relative to what they have at stake; a group with nothing at stake has scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Objective:
    """A convex objective over groups: ``scale`` (G,) ≥ 0, not all 0, and ``cap``, the largest weight of a group.

    ``cap`` lies in [1/G, 1]: below, no weights would sum to 1. Raises ``ValueError`` otherwise, and for a scale that is
    negative or not finite.
    """

    scale: Floats
    cap: float

    def __post_init__(self) -> None:
        """Check and freeze the values."""
        scale = np.array(self.scale, dtype=np.float64)
        if scale.ndim != 1 or not np.isfinite(scale).all() or (scale < 0).any() or not scale.any():
            raise ValueError(f"scale: got {self.scale!r}; allowed: finite numbers >= 0, one per group, not all 0")
        if not 1.0 / len(scale) <= self.cap * (1 + 1e-12) or not self.cap <= 1:
            raise ValueError(f"cap: got {self.cap!r}; allowed: 1/{len(scale)} (one over the groups) to 1")
        scale.flags.writeable = False
        object.__setattr__(self, "scale", scale)

    @classmethod
    def tail(cls, n_groups: int, cap: float, scale: npt.ArrayLike | None = None) -> Objective:
        """Return the objective of ``n_groups`` groups, whose scales are 1 unless given.

        The cap is limited to [1/G, 1], so that 1/((1 − α)·G) may be handed over for every α < 1.

        >>> Objective.tail(3, cap=2 / 3).value([6.0, 1.0, 3.0])  # (6 + 3/2)/1.5
        5.0
        """
        ones = np.ones(n_groups) if scale is None else np.asarray(scale, dtype=np.float64)
        if ones.shape != (n_groups,):
            raise ValueError(f"scale: got shape {ones.shape}; allowed: ({n_groups},), one per group")
        return cls(ones, min(max(float(cap), 1.0 / n_groups), 1.0))

    @property
    def is_mean(self) -> bool:
        """Whether every group always has weight 1/G, so that the objective is linear in the totals."""
        return self.cap * len(self.scale) <= 1 + 1e-12

    @property
    def tail_weights(self) -> Floats:
        """The weights (G,) of the scaled totals from the largest to the smallest: cap, cap, the rest, then 0.

        >>> Objective.tail(4, cap=0.4).tail_weights.round(2).tolist()
        [0.4, 0.4, 0.2, 0.0]
        """
        reached = np.minimum(np.arange(len(self.scale) + 1) * self.cap, 1.0)
        weights: Floats = np.diff(reached)
        weights[-1] += 1.0 - reached[-1]
        return weights

    def value(self, totals: npt.ArrayLike) -> Any:
        """Return the objective of totals (..., G): a float for one row of totals, else (...).

        >>> Objective.tail(2, cap=1).value([[1.0, 3.0], [4.0, 2.0]]).tolist()
        [3.0, 4.0]
        """
        scaled = np.asarray(totals, dtype=np.float64) * self.scale
        values = -np.sort(-scaled, axis=-1) @ self.tail_weights
        return float(values) if values.ndim == 0 else values
