"""The best cut of a sorted row into k runs: the clustering of least squared error, by dynamic programming.

In one dimension the clusters of an optimal k-means are runs of the sorted values, so that with D_c(j) the least error
of the first j values in c clusters,

    D_c(j) = min_i D_{c−1}(i) + cost(i, j),   cost(i, j) = Σ w² − (Σ w)² / (j − i)   over the values i…j

finds the optimum (Wang & Song 2011, "Ckmeans.1d.dp", The R Journal 3/2, doi 10.32614/RJ-2011-015). The best i grows
with j, so positions are done coarse to fine, each one looking only between the answers of its neighbours: O(k n log n),
all rows at once. Cuts may be restricted to the ends of cells of several values, which makes n the number of cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
AT_ONCE = 1 << 20
"""Positions of all rows and clusters that are held at a time: about 40 MiB of temporaries."""


def best_cuts(count: Floats, first: Floats, second: Floats, clusters: int) -> Ints:
    """Return where the best clusters begin and end, as positions among the cells.

    Args:
        count: how many values the first 0…m cells hold, (r, m + 1), ascending from 0.
        first: their sums, (r, m + 1); near 0 in the mean, since differences of squares are taken.
        second: the sums of their squares.
        clusters: k ≥ 1; where k exceeds m some clusters are empty.

    Returns:
        (r, k + 1), ascending from 0 to m in each row.

    >>> values = np.array([-4.0, -3.0, 0.0, 0.0, 7.0])
    >>> sums = [np.concatenate([[0.0], np.cumsum(part)])[None] for part in (np.ones(5), values, values**2)]
    >>> best_cuts(*sums, 3).tolist()
    [[0, 2, 4, 5]]
    """
    rows = max(1, AT_ONCE // (count.shape[1] * clusters))
    blocks = [slice(start, start + rows) for start in range(0, len(count), rows)]
    return np.concatenate([_cuts(count[block], first[block], second[block], clusters) for block in blocks])


def _cuts(count: Floats, first: Floats, second: Floats, clusters: int) -> Ints:
    """Return the cuts of rows that are few enough to hold everything at once."""
    last = count.shape[1] - 1
    least = second - first**2 / np.maximum(count, 1)  # D_1
    answers = []
    for _ in range(1, clusters):
        least, answer = _one_more(least, count, first, second)
        answers.append(answer)
    cuts = np.full((len(count), clusters + 1), last)
    cuts[:, 0] = 0
    for number, answer in zip(range(clusters - 1, 0, -1), reversed(answers), strict=True):
        cuts[:, number] = np.take_along_axis(answer, cuts[:, number + 1, None], axis=1)[:, 0]
    return cuts


def _one_more(least: Floats, count: Floats, first: Floats, second: Floats) -> tuple[Floats, Ints]:
    """Return D_c and the best i for every j, from D_{c−1}: (r, m + 1) each."""
    last = least.shape[1] - 1
    answer, result = np.zeros(least.shape, dtype=np.int64), np.zeros(least.shape)
    before = least - second
    stride = 1 << max(0, last.bit_length() - 1)
    while stride:
        places = np.arange(stride, last + 1, 2 * stride)  # between them everything coarser is done
        beyond = np.where(places + stride <= last, answer[:, np.minimum(places + stride, last)], last)
        low, high = answer[:, places - stride], np.minimum(beyond, places)
        answer[:, places], least_here = _search(before, count, first, places, low, high)
        result[:, places] = least_here + second[:, places]
        stride //= 2
    return result, answer


def _search(
    before: Floats, count: Floats, first: Floats, places: Ints, low: Ints, high: Ints
) -> tuple[Ints, npt.NDArray[Any]]:
    """Return the i in low…high of least D_{c−1}(i) − Σ_{≤i} w² − (Σ_{i…j} w)²/(j − i) for each j, and that least."""
    width = before.shape[1]
    length = (high - low + 1).reshape(-1)
    ends = np.cumsum(length)
    starts = ends - length
    offset = np.repeat(np.arange(len(before)) * width, len(places))
    of_row = np.arange(ends[-1]) + np.repeat(low.reshape(-1) + offset - starts, length)
    run = np.repeat(first[:, places].reshape(-1), length) - first.reshape(-1)[of_row]
    number = np.repeat(count[:, places].reshape(-1), length) - count.reshape(-1)[of_row]
    error = before.reshape(-1)[of_row] - run * run / np.maximum(number, 1)
    least = np.minimum.reduceat(error, starts)
    found = np.minimum.reduceat(np.where(error == np.repeat(least, length), of_row, before.size), starts) - offset
    return found.reshape(low.shape), least.reshape(low.shape)
