"""lsq: Δ is learned with the weights (LSQ, Esser et al. 2020, arXiv 1902.08153), starting at 2·mean|w| / √M.

One Δ per row, or per width of a row where weights have widths of their own. Its gradient is scaled by 1/√(N·M) with N
the number of weights that share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.quantize.scales._slots import Slots, floor

if TYPE_CHECKING:
    from torch import Tensor

REFRESH = "learned"


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return the starting Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_scale(torch.tensor([[1.0, -3.0]]), torch.tensor([[4.0]]), percentile=100)
    tensor([[2.]])
    """
    import torch

    slots = Slots.of(largest)
    mean = slots.total(weight.abs()) / slots.total(torch.ones_like(weight)).clamp_min_(1)
    table = (2 * mean / slots.largest.double().sqrt()).to(weight.dtype)
    return slots.spread(table.clamp_min_(floor(weight)))
