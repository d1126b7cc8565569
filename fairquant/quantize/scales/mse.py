"""mse: the Δ with the least squared error Σ(ŵ − w)² (the "MSE" range setting of Nagel et al. 2021, arXiv 2106.08295).

Searched for every row, and for every width of a row where weights have widths of their own, over clipping ratios c,
Δ = c · max|w| / M, and refined (``_least_squares``); the error never exceeds that of absmax. Asymmetric: over both ends
of the range (``_affine_search``); the error exceeds neither that of min–max nor the symmetric one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

REFRESH = "epoch"


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_scale(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.4]]), torch.tensor([[1.0]]), percentile=100)
    tensor([[1.0800]])
    """
    from fairquant.quantize.scales._least_squares import least_squares

    return least_squares(weight, largest)


def ladder(weight: Tensor, largest: Sequence[float], *, percentile: float, importance: Tensor | None = None) -> Tensor:
    """Return Δ (r, W) at each M of ``largest``; ``percentile`` and ``importance`` are not used.

    >>> import torch
    >>> ladder(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.4]]), [1.0, 3.0], percentile=100)
    tensor([[1.0800, 0.4880]])
    """
    from fairquant.quantize.scales._least_squares import least_squares_ladder

    return least_squares_ladder(weight, largest)


def make_grid(weight: Tensor, levels: Tensor, *, percentile: float) -> tuple[Tensor, Tensor]:
    """Return Δ and zero points of the shape of ``levels`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_grid(torch.tensor([[0.0, 1.0, 1.0, 2.0, 3.1]]), torch.tensor([[3.0]]), percentile=100)
    (tensor([[1.0200]]), tensor([[0.]]))
    """
    from fairquant.quantize.scales._affine_search import least_squares_grids

    return least_squares_grids(weight, levels)
