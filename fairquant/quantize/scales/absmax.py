"""absmax: Δ = max|w| / M, so that nothing is clipped (Jacob et al. 2018, arXiv 1712.05877, symmetric form).

Asymmetric: the grid runs from the smallest to the largest weight (min–max) and holds 0.

Where the weights of a channel have widths of their own, all share the channel's range: Δ differs by M alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.quantize.scales._affine import grid_over
from fairquant.quantize.scales._slots import floor, row_max

if TYPE_CHECKING:
    from torch import Tensor

REFRESH = "step"
CLIPS = False


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_scale(torch.tensor([[0.5, -2.0], [0.0, 0.0]]), torch.tensor([[1.0], [7.0]]), percentile=100)[0]
    tensor([2.])
    """
    return (row_max(weight) / largest).clamp_min_(floor(weight))


def make_grid(weight: Tensor, levels: Tensor, *, percentile: float) -> tuple[Tensor, Tensor]:
    """Return Δ and zero points of the shape of ``levels`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_grid(torch.tensor([[0.5, -0.25]]), torch.tensor([[3.0]]), percentile=100)
    (tensor([[0.2500]]), tensor([[1.]]))
    """
    return grid_over(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), levels)
