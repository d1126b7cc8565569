"""weighted: the Δ with the least importance-weighted squared error Σ f·(ŵ − w)², trained by LSQ's gradient from there.

What a quantized weight costs is its error times its sensitivity: with f a diagonal of the Fisher matrix or Hessian the
sum is the predicted rise of the loss (Choi et al. 2017, arXiv 1612.01543, and Kim et al. 2023, arXiv 2306.07629, weigh
clusters of weights so; the search is that of ``mse``, Nagel et al. 2021, arXiv 2106.08295). At 1 bit Δ = Σ f|w| / Σ f.

f is the importance, raised to 0.1 % of the mean of its row: what showed no importance on the samples measured on may
have some on others, and must not be rounded to just anything. Without importance, or where that of a row is all zero,
f = 1. Importance is at hand where widths are assigned; the step sizes are handed on from there, as tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.quantize.scales._least_squares import least_squares, least_squares_ladder
from fairquant.quantize.scales._slots import floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

REFRESH = "learned"
IMPORTANCE = True
LEAST = 1e-3
"""Smallest f, as a part of its row's mean importance."""


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float, importance: Tensor | None = None) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` is not used.

    Args:
        weight: rows (r, n).
        largest: M, (r, 1) or (r, n).
        percentile: not used.
        importance: (r, n), finite and not negative; None: all weights alike.

    >>> import torch
    >>> w, top = torch.tensor([[1.0, 1.0, 1.0, 2.0]]), torch.tensor([[1.0]])
    >>> make_scale(w, top, percentile=100)
    tensor([[1.2500]])
    >>> make_scale(w, top, percentile=100, importance=torch.tensor([[9.0, 9.0, 9.0, 1.0]]))
    tensor([[1.0357]])
    """
    return least_squares(weight, largest, None if importance is None else factors(importance))


def ladder(weight: Tensor, largest: Sequence[float], *, percentile: float, importance: Tensor | None = None) -> Tensor:
    """Return Δ (r, W) at each M of ``largest``, as ``make_scale`` does one by one."""
    return least_squares_ladder(weight, largest, None if importance is None else factors(importance))


def sign_step(weight: Tensor, *, importance: Tensor) -> Tensor:
    """Return Δ = Σ f|w| / Σ f at 1 bit, (r, 1).

    >>> import torch
    >>> sign_step(torch.tensor([[1.0, -4.0]]), importance=torch.tensor([[2.0, 1.0]]))
    tensor([[2.]])
    """
    weights = factors(importance).double()
    mean = (weights * weight.abs()).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return mean.to(weight.dtype).clamp_min(floor(weight))


def factors(importance: Tensor) -> Tensor:
    """Return f > 0 for ``importance`` (r, n) ≥ 0.

    >>> import torch
    >>> factors(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    tensor([[1.0000e-03, 2.0000e+00],
            [1.0000e+00, 1.0000e+00]])
    """
    import torch

    mean = importance.mean(1, keepdim=True, dtype=torch.float64).to(importance.dtype)
    return torch.where(mean > 0, torch.maximum(importance, mean * LEAST), 1.0)
