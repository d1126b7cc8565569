"""GRAPE: I = (∂L/∂w · w)² per batch, the squared first-order change of the loss when w is removed.

Source: Lin, Kim, Joo, "FairGRAPE: Fairness-aware GRAdient Pruning mEthod for Face Attribute Classification", ECCV 2022;
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.config import Section
from fairquant.importance.metrics._relative import squared_ratio

if TYPE_CHECKING:
    from torch import Tensor


class Options(Section):
    """No settings."""


def score(derivative: Tensor, weight: Tensor) -> Tensor:
    """Return (gradient · weight)², of the weight's shape."""
    return (derivative * weight).square_()


def predicted_increase(
    importance: npt.NDArray[np.float32], delta: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    r"""Return (g·δ)² per weight, recovered from the map as importance · (δ/w)².

    ``importance`` (..., \*S) is a map of ``score`` averaged over batches; ``delta`` and ``weight`` have shape \*S.
    The map of a weight that is 0 says nothing about moving it, so ``delta`` must be 0 there (as it is for every
    symmetric quantizer); else ``ValueError``.

    >>> predicted_increase(np.float32([4, 0]), np.float32([0.5, 0]), np.float32([2, 0])).tolist()
    [0.25, 0.0]
    """
    return importance * squared_ratio(delta, weight)
