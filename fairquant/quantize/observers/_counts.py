"""A histogram of everything seen, in bounded memory, whose bins double in width as larger values come.

2H bins of equal width cover [−L, L), L = 2^e the least power of two above max |x|, edges at whole multiples of
W = L/H. When L doubles, bins merge in pairs, exactly: the counts are always those of one histogram of all the values
on the present edges, whatever the order they came in. W ≤ 2·max|x|/H. Edges are exact in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairquant.quantize.observers._base import Observer

BLOCK = 1 << 20
"""Values counted at once: bounds the memory of their bins' numbers."""

LEAST_EXPONENT = -100
"""All |x| < 2^−100 are told apart from 0 no further."""


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^``exponent``, exact: the int32 exponent, in [−126, 127], is written into the bits of a float32.

    >>> power_of_two(torch.tensor([-3, 0, 10], dtype=torch.int32)).tolist()
    [0.125, 1.0, 1024.0]
    """
    return ((exponent + 127) << 23).view(torch.float32)


class Counts(Observer):
    """Counts values; how the counts give a range is the subclass's.

    Attributes:
        counts: how many values are in each bin, int64 (2H,).
        zeros: how many of them are exactly 0; they are in bin H with the smallest positive ones.
        exponent: e, int32 of shape ().
    """

    counts: Tensor
    zeros: Tensor
    exponent: Tensor

    def __init__(self, side: int) -> None:
        """Start with H = ``side`` bins, a power of two, on either side of 0, all empty."""
        super().__init__()
        self.side = side
        self.register_buffer("counts", torch.zeros(2 * side, dtype=torch.int64))
        self.register_buffer("zeros", torch.zeros((), dtype=torch.int64))
        self.register_buffer("exponent", torch.tensor(LEAST_EXPONENT, dtype=torch.int32))

    def take(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Count ``values``; what is not finite is counted anywhere, and reported by ``finite``."""
        self.widen(low, high)
        self._make_room(torch.maximum(-low, high))
        factor = power_of_two(self.side.bit_length() - 1 - self.exponent)
        for block in torch.split(values, BLOCK):
            self.zeros.add_((block == 0).sum())
            bins = (block.float() * factor).floor_().to(torch.int32).add_(self.side).clamp_(0, 2 * self.side - 1)
            self.counts.index_add_(0, bins, self.counts.new_ones(()).expand_as(bins))

    def filled(self, *, zeros: bool) -> tuple[Tensor, Tensor]:
        """Return the edges (k + 1,) of the bins from the first to the last that is not empty and their counts (k,).

        On the CPU, float64 and int64; edges are within the extremes seen; k is 0 where nothing was. ``zeros=False``
        leaves out the values that are exactly 0.
        """
        counts = self.counts.cpu().clone()
        if not zeros:
            counts[self.side] -= self.zeros.cpu()
        places = counts.nonzero().flatten()
        if len(places) == 0:
            return torch.zeros(1, dtype=torch.float64), counts[:0]
        first, last = int(places[0]), int(places[-1])
        width = 2.0 ** int(self.exponent) / self.side
        edges = (torch.arange(first, last + 2, dtype=torch.float64) - self.side) * width
        return edges.clamp(float(self.low), float(self.high)), counts[first : last + 1]

    def _make_room(self, largest: Tensor) -> None:
        """Merge bins until ``largest`` = max |x|, float32, is inside; not for NaN and infinity."""
        usable = torch.isfinite(largest) & (largest > 0)
        needed = torch.frexp(torch.where(usable, largest, 0.0)).exponent.to(torch.int32)
        needed = torch.where(usable, needed, LEAST_EXPONENT)
        exponent = torch.maximum(self.exponent, needed)
        places = torch.arange(-self.side, self.side, device=self.counts.device)
        merged = (places >> (exponent - self.exponent).clamp(max=62)) + self.side
        self.counts.copy_(torch.zeros_like(self.counts).index_add_(0, merged, self.counts))
        self.exponent.copy_(exponent)

    def extra_repr(self) -> str:
        """Say how fine the histogram is."""
        return f"bins={2 * self.side}"
