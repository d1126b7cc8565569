"""mse: the Δ with the least squared error Σ(ŵ − w)² on a grid of clipping ratios c: Δ = c · max|w| / M.

Searched for every row, and for every width of a row where weights have widths of their own; c = 1 is on the grid, so
that the error never exceeds that of absmax (the "MSE" range setting of Nagel et al. 2021, arXiv 2106.08295).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.quantize.scales._slots import Slots, floor, row_max

if TYPE_CHECKING:
    from torch import Tensor

REFRESH = "epoch"
RATIOS = tuple(0.01 ** (step / 63) for step in range(64))
"""64 clipping ratios from 1 down to 0.01, evenly spaced in their logarithm (7 % apart)."""


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` is not used.

    >>> import torch
    >>> make_scale(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.4]]), torch.tensor([[1.0]]), percentile=100).item() < 1.2
    True
    """
    import torch

    slots = Slots.of(largest)
    clip = row_max(weight)
    table = (clip / slots.largest).clamp_min(floor(weight))
    best, error = table, torch.full_like(table, torch.inf, dtype=torch.float64)
    for ratio in RATIOS:
        candidate = (table * ratio).clamp_min(floor(weight))
        delta = slots.spread(candidate)
        rounded = torch.div(weight, delta).round_()
        torch.clamp(rounded, min=-largest, max=largest, out=rounded)
        miss = slots.total(rounded.mul_(delta).sub_(weight).square_())
        better = miss < error
        best, error = torch.where(better, candidate, best), torch.where(better, miss, error)
    return slots.spread(best)
