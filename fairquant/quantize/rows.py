"""Weights seen as rows (one row per output channel) in the order they lie in memory, and the blocks they are read in.

A convolution weight may be contiguous or channels_last; a step size never changes inside a row, so the order within a
row is free, and keeping the order of the memory makes every row view copy-free.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 18
"""Weights per block on a CPU (1 MiB of float32): a block and its result stay in the cache of one core."""


def inner_order(weight: Tensor) -> tuple[int, ...]:
    """Return the dimensions after the first, outermost in memory first; those of length 1 give way to others.

    >>> import torch
    >>> inner_order(torch.zeros(4, 3, 2, 2)), inner_order(torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    ((1, 2, 3), (2, 3, 1))
    """
    strides, shape = weight.stride(), weight.shape
    return tuple(sorted(range(1, weight.dim()), key=lambda d: (-strides[d], shape[d] == 1, d)))


def as_rows(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """View ``tensor`` (out, …) as (out, n) with the inner dimensions in ``order``; copies if memory differs."""
    return tensor.permute(0, *order).reshape(tensor.shape[0], -1)


def from_rows(rows: Tensor, like: Tensor, order: tuple[int, ...]) -> Tensor:
    """Undo ``as_rows``: a view of ``rows`` with the shape of ``like``."""
    inverse = [0] * like.dim()
    for position, dimension in enumerate((0, *order)):
        inverse[dimension] = position
    return rows.view(like.shape[0], *(like.shape[d] for d in order)).permute(inverse)


def blocks(n_rows: int, n_columns: int, *, on_cpu: bool) -> Iterator[slice]:
    """Yield slices of rows, each of about ``BLOCK`` weights; off the CPU one slice holds everything.

    >>> list(blocks(5, BLOCK // 2, on_cpu=True))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK // max(1, n_columns)) if on_cpu else max(1, n_rows)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def part(tensor: Tensor, block: slice) -> Tensor:
    """Return the block's rows of ``tensor``; one row stands for all of them.

    >>> import torch
    >>> part(torch.ones(1, 3), slice(4, 8)).shape, part(torch.ones(9, 3), slice(4, 8)).shape
    (torch.Size([1, 3]), torch.Size([4, 3]))
    """
    return tensor if tensor.shape[0] == 1 else tensor[block]


class Workspace:
    """Memory for a result that is made anew at every step, used again once nobody else holds it.

    Fresh memory costs a page fault per 4 KiB, more than the arithmetic. Whether a tensor, a view or the autograd graph
    still holds the memory is read from the storage's reference counts; a torch that does not tell gets fresh memory.
    """

    def __init__(self) -> None:
        """Start without memory."""
        self._tensor: Tensor | None = None
        self._alone: tuple[int, int] | None = None

    def take(self, like: Tensor) -> Tensor:
        """Return a tensor with the shape, type and device of ``like`` and any content."""
        held = self._tensor
        same = held is not None and (held.shape, held.dtype, held.device) == (like.shape, like.dtype, like.device)
        if held is None or not same or self._alone is None or _holders(held) != self._alone:
            self._tensor = held = torch.empty_like(like)
            self._alone = _holders(held)
        return held


def _holders(tensor: Tensor) -> tuple[int, int] | None:
    """Return how often the memory of ``tensor`` is held: by tensors, and by Python; None where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    storage = tensor.untyped_storage()
    return None if count is None else (int(count(storage._cdata)), sys.getrefcount(storage))
