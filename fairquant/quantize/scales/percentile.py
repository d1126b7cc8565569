"""percentile: Δ = P_p(|w|) / M with the p-th percentile of a row's |w|, linearly interpolated (Li et al. 2019, CVPR).

Weights beyond the percentile are clipped. 100 is absmax. The percentile is that of the whole channel, also where its
weights have widths of their own. Asymmetric: the range runs from the (100 − p)/2-th to the (100 + p)/2-th percentile of
w, so that p % of the weights lie in it as well, and is widened to hold 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fairquant.quantize.scales._affine import grid_over
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


def make_grid(weight: Tensor, levels: Tensor, *, percentile: float) -> tuple[Tensor, Tensor]:
    """Return Δ and zero points of the shape of ``levels`` for rows ``weight`` (r, n); ``percentile`` in (0, 100].

    >>> import torch
    >>> make_grid(torch.tensor([[-1.0, 0.0, 1.0, 2.0, 3.0]]), torch.tensor([[3.0]]), percentile=50.0)
    (tensor([[0.6667]]), tensor([[0.]]))
    """
    tail = (100 - percentile) / 2
    return grid_over(_percentile(weight, tail), _percentile(weight, 100 - tail), levels)


def _clip(weight: Tensor, percentile: float) -> Tensor:
    """Return P_p(|w|) of every row, (r, 1)."""
    return _percentile(weight.abs(), percentile)


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """Return P_p of every row of ``values`` (r, n), linearly interpolated: (r, 1)."""
    position = (values.shape[1] - 1) * percentile / 100
    below = math.floor(position)
    found = values.kthvalue(below + 1, dim=1, keepdim=True).values
    if position > below:
        above = values.kthvalue(below + 2, dim=1, keepdim=True).values
        found = found + (above - found) * (position - below)
    return found
