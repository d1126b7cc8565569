"""percentile: Δ = P_p(|w|) / M with the p-th percentile of a row's |w|, linearly interpolated (Li et al. 2019, CVPR).

Weights beyond the percentile are clipped. 100 is absmax. The percentile is that of the whole channel, also where its
weights have widths of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fairquant.quantize.scales._slots import floor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

REFRESH = "epoch"


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` in (0, 100].

    >>> import torch
    >>> make_scale(torch.tensor([[0.0, -1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0]]), percentile=60.0)
    tensor([[2.4000]])
    """
    return (_clip(weight, percentile) / largest).clamp_min(floor(weight))


def ladder(weight: Tensor, largest: Sequence[float], *, percentile: float, importance: Tensor | None = None) -> Tensor:
    """Return Δ (r, W) at each M of ``largest``, as ``make_scale`` does one by one; ``importance`` is not used."""
    import torch

    tops = torch.tensor(largest, dtype=weight.dtype, device=weight.device)
    return (_clip(weight, percentile) / tops).clamp_min(floor(weight))


def _clip(weight: Tensor, percentile: float) -> Tensor:
    """Return P_p(|w|) of every row, (r, 1)."""
    magnitude = weight.abs()
    position = (weight.shape[1] - 1) * percentile / 100
    below = math.floor(position)
    clip = magnitude.kthvalue(below + 1, dim=1, keepdim=True).values
    if position > below:
        above = magnitude.kthvalue(below + 2, dim=1, keepdim=True).values
        clip = clip + (above - clip) * (position - below)
    return clip
