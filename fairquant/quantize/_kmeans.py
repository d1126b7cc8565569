"""k-means of rows of weights: k centroids per row with the least squared error Σ (w − nearest centroid)².

1. Rows are sorted, and sums over them kept, so that clusters are runs between cuts.
2. Start: the best cuts by dynamic programming (``_partition``). Rows of up to 256 weights end at the optimum; longer
   ones are cut at the ends of cells, at least 256, several to each cluster. Where so many clusters and rows would take
   too long, every cluster begins with the same share of ∫ density^(1/3), the best for many clusters (Panter & Dite
   1951, "Quantization distortion in pulse-count modulation", Proc. IRE 39). Cells are cut by that rule, too.
3. Lloyd's iteration (Lloyd 1982, doi 10.1109/TIT.1982.1056489): centroids are the means of their runs, cuts lie midway
   between centroids; each round costs k binary searches. The error never rises. An empty cluster takes the weight that
   lies furthest from its own centroid.

On a trained resnet18 the error is within 0.1 % of the optimum up to 16 clusters, 1.1 % at 64, and per layer 0.1 % at
256; at 256 clusters for each channel it is 1.1 to 1.4 times the optimum.

Everything is in float64 on the CPU, draws nothing at random, and no row influences another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairquant.quantize._partition import best_cuts

FEWEST, FINE = 256, 1 << 12
"""Cells that a row is cut into at least, and cells times clusters; a shorter row is solved exactly."""
CELLS, COARSEST = 8, 2
"""Cells to a cluster, and how few may still say where clusters lie."""
WORK, WORK_PER_WEIGHT = 1 << 15, 16
"""Cells times clusters that a row may take, or so many for each of its weights: some 10 ms, or 10 µs a weight."""


@dataclass(frozen=True)
class AscendingRows:
    """Sorted rows around 0, with running sums.

    Attributes:
        values: (r, n) float64, ascending in each row; the row's mean is taken off.
        first: sums of the first 0…n values, (r, n + 1).
        second: the same of their squares.
        mean: (r, 1), what was taken off.
    """

    values: Tensor
    first: Tensor
    second: Tensor
    mean: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> AscendingRows:
        """Sort finite rows (r, n)."""
        held = np.sort(np.ascontiguousarray(rows.detach().cpu().double().numpy()), axis=1)
        values = torch.from_numpy(held)
        mean = values.mean(dim=1, keepdim=True)
        values = values - mean
        return cls(values, _running(values), _running(values.square()), mean)

    def errors(self, centroids: Tensor) -> Tensor:
        """Return Σ (w − nearest centroid)² for ascending centroids (r, k) around 0: (r,)."""
        cuts = self.cuts(centroids)
        number, total = torch.diff(cuts), torch.diff(self.first.gather(1, cuts))
        squares = torch.diff(self.second.gather(1, cuts))
        return (squares - 2 * centroids * total + centroids.square() * number).sum(1).clamp_min(0)

    def cuts(self, centroids: Tensor) -> Tensor:
        """Return where each centroid's run begins and the last one's ends: (r, k) → (r, k + 1)."""
        inner = torch.searchsorted(self.values, (centroids[:, 1:] + centroids[:, :-1]) / 2)
        ends = inner.new_tensor([0, self.values.shape[1]]).expand(len(inner), 2)
        return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def _running(values: Tensor) -> Tensor:
    """Return the sums of the first 0…n values of each row (r, n): (r, n + 1)."""
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1)
    torch.cumsum(values, 1, out=sums[:, 1:])
    return sums


def kmeans(rows: Tensor, clusters: int, *, iterations: int) -> Tensor:
    """Return the centroids of each row, ascending.

    Args:
        rows: finite weights (r, n), n ≥ 1, of any device.
        clusters: k, from 1 to n.
        iterations: of Lloyd at most; it ends where nothing moves any more.

    Returns:
        (r, k) of the type of ``rows``, on the CPU.

    >>> kmeans(torch.tensor([[9.0, -1.0, 1.0, 0.0, 11.0, 10.0]]), 2, iterations=10)
    tensor([[ 0., 10.]])
    """
    ascending = AscendingRows.of(rows)
    start = means_of(ascending, start_cuts(ascending, clusters))
    centroids = lloyd(ascending, start, iterations=iterations)
    return (centroids + ascending.mean).to(rows.dtype)


def start_cuts(rows: AscendingRows, clusters: int) -> Tensor:
    """Return the cuts that Lloyd's iteration begins with, (r, k + 1)."""
    length = rows.values.shape[1]
    affordable = max(WORK, WORK_PER_WEIGHT * length) // clusters
    cells = max(FEWEST, FINE // clusters, min(CELLS * clusters, affordable))
    if cells < length and cells < COARSEST * clusters:
        return companded(rows, clusters)
    ends = companded(rows, cells) if cells < length else torch.arange(length + 1).expand(len(rows.values), -1)
    first, second = rows.first.gather(1, ends).numpy(), rows.second.gather(1, ends).numpy()
    return ends.gather(1, torch.from_numpy(best_cuts(ends.double().numpy(), first, second, clusters)))


def companded(rows: AscendingRows, parts: int) -> Tensor:
    """Cut each row where Σ gap^(2/3) has grown by equal shares: (r, parts + 1).

    With n values of density f a gap is about 1/(n·f), so that Σ gap^(2/3) over a stretch is about ∫ f^(1/3) there.
    """
    length = rows.values.shape[1]
    grown = torch.diff(rows.values).pow(2 / 3).cumsum(1)
    shares = torch.arange(1, parts, dtype=torch.float64) / parts
    inner = torch.searchsorted(grown, grown[:, -1:] * shares) + 1 if length > 1 else grown.new_ones(1).long()
    inner = inner.expand(len(grown), parts - 1).clamp(max=length)
    ends = inner.new_tensor([0, length]).expand(len(inner), 2)
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def means_of(rows: AscendingRows, cuts: Tensor) -> Tensor:
    """Return the mean of each run of ``cuts`` (r, k + 1), and of an empty one the value it lies at: (r, k)."""
    number, total = torch.diff(cuts), torch.diff(rows.first.gather(1, cuts))
    at = rows.values.gather(1, cuts[:, :-1].clamp(max=rows.values.shape[1] - 1))
    return torch.where(number > 0, total / number.clamp_min(1), at)


def lloyd(rows: AscendingRows, centroids: Tensor, *, iterations: int) -> Tensor:
    """Improve ascending ``centroids`` (r, k) around 0 for at most so many rounds; the error never rises."""
    cuts = rows.cuts(centroids)
    for _ in range(iterations):
        number, total = torch.diff(cuts), torch.diff(rows.first.gather(1, cuts))
        centroids = torch.where(number > 0, total / number.clamp_min(1), centroids)
        if bool((number == 0).any()):
            centroids = _refilled(rows, centroids, cuts)
        before, cuts = cuts, rows.cuts(centroids)
        if torch.equal(before, cuts):
            break
    return centroids


def _refilled(rows: AscendingRows, centroids: Tensor, cuts: Tensor) -> Tensor:
    """Move the centroids of empty runs to the ends of runs that lie furthest from their own centroid."""
    last = rows.values.shape[1] - 1
    begin = rows.values.gather(1, cuts[:, :-1].clamp(max=last))
    end = rows.values.gather(1, (cuts[:, 1:] - 1).clamp(0, last))
    below, above = centroids - begin, end - centroids
    empty = torch.diff(cuts) == 0
    distance = torch.maximum(below, above).masked_fill(empty, 0.0)
    order = distance.argsort(dim=1, descending=True, stable=True)
    rank = (empty.long().cumsum(1) - 1).clamp_min(0)  # the first empty run takes the furthest end, and so on
    source = order.gather(1, rank)
    point = torch.where(below >= above, begin, end).gather(1, source)
    moved = torch.where(empty & (distance.gather(1, source) > 0), point, centroids)
    return moved.sort(dim=1).values
