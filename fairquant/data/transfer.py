"""Arrays on their way to the device.

To a GPU they go through page-locked memory, in a stream of their own: rows are gathered into one of a few slots, which
the copies start from; a slot is written again only after an event behind its copies has passed, so nothing is
overwritten while it travels. What is computed from the copies in the same stream (augmentation, normalisation) overlaps
with the model's own work; the stream that takes the batch waits for another event, on the device, never on the host.
To every other device an array is copied when it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, cuda

Ints = npt.NDArray[np.int64]
SLOTS = 2
"""Batches in page-locked memory: one is gathered while the other travels."""


class Transfer:
    """Copies that are done when the call returns."""

    def __init__(self, device: torch.device) -> None:
        """Take the device that everything goes to."""
        self.device = device

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Hold what one batch is sent and computed in."""
        yield

    def send(self, source: npt.NDArray[Any], rows: Ints | slice) -> Tensor:
        """Return ``source[rows]`` on the device; called inside ``batch``."""
        return torch.from_numpy(source[rows]).to(self.device)

    def sent(self) -> None:
        """Be told that all of the batch has been sent; what is computed from it may follow."""

    def ready(self) -> Any:
        """Return what stands for all work on the batch so far."""

    def receive(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        """Make ``tensors`` safe to use for the caller; ``mark`` is what ``ready`` returned after the last of them."""


class StagedTransfer(Transfer):
    """Copies to a CUDA device that nobody waits for; one thread sends, another may receive."""

    def __init__(self, device: torch.device, *, pin: bool = True) -> None:
        """Open a stream on ``device``; ``pin=False`` takes ordinary memory, for tests without a GPU."""
        super().__init__(device)
        self.stream = cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(pin) for _ in range(SLOTS)]
        self._turn = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Wait until the next slot is free, then let everything inside run in the stream."""
        self._turn = (self._turn + 1) % SLOTS
        self._slots[self._turn].begin()
        with cuda.stream(self.stream):
            yield

    def send(self, source: npt.NDArray[Any], rows: Ints | slice) -> Tensor:
        """Gather ``source[rows]`` into the slot and start its copy."""
        return self._copy(self._slots[self._turn].gather(source, rows))

    def sent(self) -> None:
        """Mark where the slot may be written again."""
        self._slots[self._turn].copied.record(self.stream)

    def ready(self) -> Any:
        """Return an event behind all work in the stream so far."""
        event = cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def receive(self, mark: Any, tensors: Sequence[Tensor]) -> None:
        """Let the caller's stream wait for ``mark``, and keep the memory of ``tensors`` until it has used them."""
        stream = cuda.current_stream(self.device)
        stream.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(stream)

    def _copy(self, host: Tensor) -> Tensor:
        return host.to(self.device, non_blocking=True)


class _Slot:
    """Page-locked memory of one batch, and the event behind the copies that start from it."""

    def __init__(self, pin: bool) -> None:
        self.pin = pin
        self.copied = cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the host sleeps, it does not spin
        self._memory: list[Tensor] = []
        self._used = 0

    def begin(self) -> None:
        """Wait for the copies of the slot's last batch; at once where there was none."""
        self.copied.synchronize()
        self._used = 0

    def gather(self, source: npt.NDArray[Any], rows: Ints | slice) -> Tensor:
        """Return ``source[rows]`` in memory of this slot: the n-th array of every batch in the same place."""
        if isinstance(rows, slice):
            source = source[rows]
            rows = np.arange(len(source))
        place, self._used = self._used, self._used + 1
        if place == len(self._memory):
            self._memory.append(torch.empty(0))
        held = self._memory[place]
        dtype = torch.from_numpy(np.empty(0, source.dtype)).dtype
        if len(held) < len(rows) or held.shape[1:] != source.shape[1:] or held.dtype != dtype:
            held = torch.empty((len(rows), *source.shape[1:]), dtype=dtype, pin_memory=self.pin)
            self._memory[place] = held
        out = held[: len(rows)]
        np.take(source, rows, axis=0, out=out.numpy(), mode="clip")  # "raise" would copy twice; rows are the store's
        return out


def transfer_to(device: torch.device) -> Transfer:
    """Return the way to ``device``."""
    return StagedTransfer(device) if device.type == "cuda" else Transfer(device)
