"""The percentiles of everything seen, from a histogram of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairquant.quantize.observers._counts import Counts

SIDE = 1 << 14
"""Bins on either side of 0: a bin is at most max |x| / 2^13 wide."""


class Percentile(Counts):
    """Bounds of percentiles, each at most a bin outwards of ``numpy.percentile`` of all values."""

    def __init__(self, percentile: float, *, symmetric: bool) -> None:
        """Keep ``percentile`` % of the values: the least |x| (symmetric), or the middle of x."""
        super().__init__(SIDE)
        self.percentile, self.symmetric = percentile, symmetric

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the percentiles, within the extremes seen; not for every step, as it waits for the device."""
        edges, counts = self.filled(zeros=True)
        if len(counts) == 0:
            return self.low, self.high
        if self.symmetric:
            high = upper_bound(*folded(edges, counts), self.percentile)
            low = -high
        else:
            upper = (100 + self.percentile) / 2
            high = upper_bound(edges, counts, upper)
            low = -upper_bound(-edges.flip(0), counts.flip(0), upper)
        return torch.tensor(low).to(self.low), torch.tensor(high).to(self.high)

    def extra_repr(self) -> str:
        """Say where values are cut."""
        return f"percentile={self.percentile:g}, {super().extra_repr()}"


def folded(edges: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the histogram of |x|: its bins, in order of their upper edges, each as wide as before.

    >>> folded(torch.tensor([-2.0, -1.0, 0.0, 0.5]), torch.tensor([7, 5, 3]))
    (tensor([0.0000, 0.5000, 1.0000, 2.0000]), tensor([3, 5, 7]))
    """
    upper = torch.maximum(edges[1:].abs(), edges[:-1].abs())
    order = upper.argsort(stable=True)
    return torch.cat([edges.new_zeros(1), upper[order]]), counts[order]


def upper_bound(edges: Tensor, counts: Tensor, percentile: float) -> float:
    """Return a bound of the percentile of ``counts`` values in bins, linearly interpolated between ranks as in numpy.

    Each of the two values between which numpy interpolates is taken to be at the upper edge of its bin, so the bound
    is not below the percentile, and above it by at most the width of a bin.

    >>> upper_bound(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), 75.0)
    2.5
    """
    reached = counts.cumsum(0)
    position = (int(reached[-1]) - 1) * percentile / 100
    below = math.floor(position)
    ranks = torch.tensor([below, math.ceil(position)])
    lower, upper = edges[1:][torch.searchsorted(reached, ranks, right=True)].tolist()
    return float(lower + (upper - lower) * (position - below))
