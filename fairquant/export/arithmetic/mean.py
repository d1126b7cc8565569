"""The mean over trailing dimensions with the float32 summation order of onnxruntime's ReduceMean on CPU.

onnxruntime does not fuse ReduceMean between a DQ and a Q: it sums the floating numbers, and where the two grids have
one scale the mean often falls exactly between two codes, so that the order of summation decides. The order, found by
comparing bits: a row of n numbers is cut into a head before the first multiple of four in memory, vectors of four, and
a tail. The vectors are summed element by element in two alternating chains (a vector left over joins the first), the
chains are added, the four numbers as (0 + 2) + (1 + 3), then head and tail one by one; the sum is divided by n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

VECTOR = 4


def mean_in_order(x: Tensor, dims: Sequence[int], *, keepdim: bool) -> Tensor:
    """Return the mean of float32 ``x`` over ``dims``: in onnxruntime's order where they are the last ones.

    >>> mean_in_order(torch.tensor([[2.0**24, 1, 1, 1, -(2.0**24)]]), [1], keepdim=False)  # exactly 0.6
    tensor([0.4000])
    """
    axes = sorted(dim % x.ndim for dim in dims)
    if axes != list(range(x.ndim - len(axes), x.ndim)):
        return x.mean(dim=axes, keepdim=keepdim)
    count = math.prod(x.shape[axes[0] :])
    rows = x.reshape(-1, count)
    means = torch.empty(len(rows))
    for first in range(min(VECTOR, len(rows))):
        means[first::VECTOR] = _sums(rows[first::VECTOR], head=min(-first * count % VECTOR, count))
    means /= count
    return means.reshape(x.shape[: axes[0]] + (1,) * (len(axes) if keepdim else 0))


def _sums(rows: Tensor, *, head: int) -> Tensor:
    """Return the sum of each row of ``rows`` (R, n) whose vectors begin at the number ``head``."""
    count = rows.shape[1]
    vectors = rows[:, head : head + (count - head) // VECTOR * VECTOR].reshape(len(rows), -1, VECTOR).unbind(1)
    if not vectors:
        return _one_by_one(rows[:, 0], rows[:, 1:])
    total = vectors[0]
    if len(vectors) > 1:
        even = len(vectors) // 2 * 2
        other = vectors[1]
        for place in range(2, even, 2):
            total, other = total + vectors[place], other + vectors[place + 1]
        total = total + other
        if even < len(vectors):
            total = total + vectors[even]
    result = (total[:, 0] + total[:, 2]) + (total[:, 1] + total[:, 3])
    result = _one_by_one(result, rows[:, :head])
    return _one_by_one(result, rows[:, head + len(vectors) * VECTOR :])


def _one_by_one(result: Tensor, numbers: Tensor) -> Tensor:
    for column in numbers.unbind(1):
        result = result + column
    return result
