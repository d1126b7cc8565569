"""What the processes of a run tell each other. With one process every function returns at once what it was given.

The processes are those of torch's default process group, whoever started them (``fairquant.parallel.launch``, torchrun,
Slurm, a test). Every process calls the same functions in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

T = TypeVar("T")
BUCKET = 2**25
"""Elements that travel together."""


def world_size() -> int:
    """Return the number of processes, 1 where no group was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among all, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return rank() == 0


def share(count: int) -> range:
    """Return which of the numbers 0 … ``count`` − 1 are this process's: its rank and every W-th after it.

    >>> share(3)  # one process
    range(0, 3)
    """
    return range(rank(), count, world_size())


def slices(count: int) -> list[slice]:
    """Return each process's part of ``count`` rows, contiguous, in order, sizes different by at most 1.

    >>> slices(5)  # one process
    [slice(0, 5, None)]
    """
    size = world_size()
    return [slice(count * r // size, count * (r + 1) // size) for r in range(size)]


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over the processes; they have one dtype and device.

    All processes end with the same bits.
    """
    if world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors so that a group has about ``BUCKET`` elements: few messages, little memory."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.numel() > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(tensor)
        room -= tensor.numel()
    return buckets


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by the first process's; they are of any dtype."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)


@torch.no_grad()
def largest(values: Tensor) -> Tensor:
    """Return the largest of each floating value over the processes; NaN where one has NaN, whatever the backend does.

    >>> largest(torch.tensor([1.0, 2.0]))  # one process
    tensor([1., 2.])
    """
    if world_size() == 1:
        return values
    broken = values.isnan()
    both = torch.stack([values.masked_fill(broken, -torch.inf), broken.to(values.dtype)])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return both[0].masked_fill(both[1] > 0, torch.nan)


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all processes, in their order.

    What is computed from the result is computed by every process alike, so its gradient is that of the whole; going
    back, each process takes the gradient of its own rows, times the number of processes. Gradients of parameters that
    are then *averaged* over the processes are those one process would have had, whether they reach a parameter through
    the rows or directly.

    Args:
        rows: (counts[rank], ...).
        counts: rows of each process.

    Returns:
        (sum(counts), ...), differentiable in ``rows``.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, tuple(counts))
    return gathered


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        me = rank()
        ctx.mine = slice(sum(counts[:me]), sum(counts[: me + 1]))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.mine] * world_size(), None  # type: ignore[attr-defined]


def gather_objects(value: T) -> list[T]:
    """Return every process's ``value``, in their order; values can be pickled."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """Return the first process's ``value``, which can be pickled; the others' are not looked at."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_first() else None]
    dist.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.barrier()
