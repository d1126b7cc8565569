"""Gradient magnitude: I = |∂L/∂w| per batch (Wørgaard & Selvan 2026, FairQuant, arXiv 2602.23192)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fairquant.config import Section

if TYPE_CHECKING:
    from torch import Tensor


class Options(Section):
    """No settings."""


def score(derivative: Tensor, weight: Tensor) -> Tensor:
    """Return |gradient|, of the weight's shape."""
    return derivative.abs()


def predicted_increase(
    importance: npt.NDArray[np.float32], delta: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    r"""Return |g|·|δ| per weight: the first-order bound on the change of the loss under ``weight + delta``.

    ``importance`` (..., \*S) is a map of ``score`` averaged over batches; ``delta`` and ``weight`` have shape \*S.

    >>> predicted_increase(np.float32([2, 3]), np.float32([-0.5, 1]), np.float32([1, 1])).tolist()
    [1.0, 3.0]
    """
    return importance * np.abs(delta)
