"""Batches of normalised images from the store, on the device, in order or shuffled by a seed.

Pixels travel as uint8 and are augmented and normalised on the device. With ``prefetch`` one background thread does so
with the next batches while the caller computes; results do not depend on it. On a GPU it works in a stream of its own
(``fairquant.data.transfer``), and nobody waits for anybody but where memory would be overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairquant.data.augment import AUGMENTATIONS, augment, draw
from fairquant.data.store import Store
from fairquant.data.transfer import transfer_to
from fairquant.parallel.collectives import rank, slices

Ints = npt.NDArray[np.int64]
AHEAD = 2
"""How many batches are prepared ahead."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples, or this process's part of their images.

    Attributes:
        images: (B, 3, H, W) float32, normalised by the training split's mean and deviation, channels-last in memory;
            where the batch is divided among processes (P, 3, H, W), this process's P ≥ 0 samples.
        labels: (B,) int64, of the whole batch.
        groups: (B,) int64, of the whole batch.
        indices: (B,) or (P,), the rows of the store of ``images``, on the CPU.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor
    indices: Ints


def n_batches(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Return how many batches ``n`` samples make.

    >>> n_batches(10, 4), n_batches(10, 4, drop_last=True)
    (3, 2)
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def iterate(
    store: Store,
    indices: Ints,
    *,
    batch_size: int,
    device: torch.device,
    shuffle_seed: int | None = None,
    augment: str = "off",
    drop_last: bool = False,
    prefetch: bool | None = None,
    numbers: Sequence[int] | None = None,
    divided: bool = False,
) -> Iterator[Batch]:
    """Yield the samples ``indices`` of ``store`` in batches.

    Args:
        store: the prepared data.
        indices: rows of the store, (N,).
        batch_size: samples per batch; the last one may be smaller.
        device: where images, labels and groups are put.
        shuffle_seed: seed of the order and of all augmentation; ``None`` keeps the order given (and, where
            augmentation is on, draws from seed 0). Use another seed each epoch.
        augment: off | light | paper, see ``fairquant.data.augment``.
        drop_last: leave out a smaller last batch.
        prefetch: prepare batches ahead in one thread; None: where another device computes, since on the CPU the
            thread takes its time from the model's (measured: 8 % slower for resnet18 at 64 px).
        numbers: which of the batches, in this order, each as it is among all; None: all of them.
        divided: of each batch, give this process only its part of the images (``collectives.slices``), which are as
            they are in the whole batch, augmentation included; a part may be empty.

    Raises:
        ValueError: an unknown ``augment`` or a batch size below 1.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment: got {augment!r}; allowed: {' | '.join(AUGMENTATIONS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; allowed: at least 1")
    generator = torch.Generator().manual_seed(shuffle_seed or 0)
    rows = np.asarray(indices, np.int64)
    if shuffle_seed is not None:
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
    make = _maker(store, rows, batch_size, device, augment, generator, divided)
    chosen = range(n_batches(len(rows), batch_size, drop_last)) if numbers is None else numbers
    ahead = device.type != "cpu" if prefetch is None else prefetch
    made = _ahead(make, chosen) if ahead else (make(number) for number in chosen)
    return _received(made)


Made = tuple[Batch, Callable[[], None]]
"""A batch, and what its user calls first, in the thread that uses it."""


def _received(made: Generator[Made]) -> Iterator[Batch]:
    with closing(made):
        for batch, receive in made:
            receive()
            yield batch


def _maker(
    store: Store,
    rows: Ints,
    batch_size: int,
    device: torch.device,
    name: str,
    generator: torch.Generator,
    divided: bool,
) -> Callable[[int], Made]:
    """Return the function from a batch's number to the batch."""
    mean = torch.tensor(store.meta["mean"], dtype=torch.float32).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(store.meta["std"], dtype=torch.float32).view(1, 3, 1, 1) * 255)
    mean, scale = mean.to(device), scale.to(device)  # there when this returns, whichever stream reads them
    draws = draw(len(rows) if name != "off" else 0, generator)
    transfer = transfer_to(device)

    def make(number: int) -> Made:
        start, stop = number * batch_size, min((number + 1) * batch_size, len(rows))
        whole = rows[start:stop]
        if divided:
            part = slices(stop - start)[rank()]
            start, stop = start + part.start, start + part.stop
        chosen = rows[start:stop]
        with transfer.batch():
            pixels = transfer.send(store.images, chosen).permute(0, 3, 1, 2)
            labels, groups = transfer.send(store.labels, whole), transfer.send(store.groups, whole)
            drawn = draws.at(start, stop)
            if name != "off":
                drawn = replace(drawn, uniform=transfer.send(drawn.uniform.numpy(), slice(None)))
            transfer.sent()
            images = augment(pixels, name, drawn).to(torch.float32)
            images = images.sub_(mean).mul_(scale).contiguous(memory_format=torch.channels_last)
            mark = transfer.ready()
        return Batch(images, labels, groups, chosen), partial(transfer.receive, mark, (images, labels, groups))

    return make


def _ahead(make: Callable[[int], Made], numbers: Sequence[int]) -> Generator[Made]:
    """Yield ``make(number)`` for each of ``numbers``, computed ahead in order by one thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: list[Future[Made]] = [pool.submit(make, number) for number in numbers[:AHEAD]]
        try:
            for place in range(len(numbers)):
                if place + AHEAD < len(numbers):
                    waiting.append(pool.submit(make, numbers[place + AHEAD]))
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
