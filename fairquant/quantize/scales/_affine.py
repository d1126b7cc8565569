"""The asymmetric grid of a range: Δ = (high − low) / L with L = 2^b − 1, zero point z = round(−low / Δ) in 0…L."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.quantize.scales._slots import floor

if TYPE_CHECKING:
    from torch import Tensor


def grid_over(low: Tensor, high: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return Δ and z (a whole float) of the grid over [low, high], widened to hold 0.

    ``low`` and ``high`` (r, 1), ``levels`` L (r, 1 | n); both results have the shape of ``levels``.

    >>> import torch
    >>> grid_over(torch.tensor([[-0.5]]), torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    (tensor([[0.5000]]), tensor([[1.]]))
    """
    import torch

    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    delta = ((high - low) / levels).clamp_min_(floor(low))
    return delta, torch.minimum((low / delta).abs_().round_(), levels)
