"""percentile: Δ = P_p(|w|) / M with the p-th percentile of a row's |w|, linearly interpolated (Li et al. 2019, CVPR).

Weights beyond the percentile are clipped. 100 is absmax. The percentile is that of the whole channel, also where its
weights have widths of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fairquant.quantize.scales._slots import floor

if TYPE_CHECKING:
    from torch import Tensor

REFRESH = "epoch"


def make_scale(weight: Tensor, largest: Tensor, *, percentile: float) -> Tensor:
    """Return Δ of the shape of ``largest`` for rows ``weight`` (r, n); ``percentile`` in (0, 100].

    >>> import torch
    >>> make_scale(torch.tensor([[0.0, -1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0]]), percentile=60.0)
    tensor([[2.4000]])
    """
    magnitude = weight.abs()
    position = (weight.shape[1] - 1) * percentile / 100
    below = math.floor(position)
    clip = magnitude.kthvalue(below + 1, dim=1, keepdim=True).values
    if position > below:
        above = magnitude.kthvalue(below + 2, dim=1, keepdim=True).values
        clip = clip + (above - clip) * (position - below)
    return (clip / largest).clamp_min(floor(weight))
