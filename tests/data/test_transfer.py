"""The way to a GPU, walked without one: a stream whose copies happen as late as its events allow."""

import contextlib

import numpy as np
import pytest
import torch

from fairquant.data import batches, transfer
from fairquant.data.batches import iterate
from fairquant.data.transfer import StagedTransfer, Transfer, transfer_to

CPU = torch.device("cpu")


class Stream:
    """Work that waits until somebody waits for it."""

    def __init__(self, device=None):
        self.pending, self.waited = [], []

    def wait_event(self, event):
        self.waited.append(event)
        event.synchronize()


class Event:
    def __init__(self, blocking=False):
        self.stream, self.behind = None, 0

    def record(self, stream):
        self.stream, self.behind = stream, len(stream.pending)

    def synchronize(self):
        if self.stream is not None:
            for place in range(self.behind):
                self.stream.pending[place]()
                self.stream.pending[place] = lambda: None


class LateTransfer(StagedTransfer):
    """Copies when an event behind the copy is waited for, and not before."""

    def __init__(self, device):
        super().__init__(device, pin=False)

    def _copy(self, host):
        there = torch.full_like(host, -1 if host.is_signed() else 255)
        self.stream.pending.append(lambda: there.copy_(host))
        return there


@pytest.fixture
def fake_cuda(monkeypatch):
    """Put a stream that lags behind in the place of torch.cuda; returns the stream of the caller."""
    main = Stream()

    class Cuda:
        Stream, Event = Stream, Event
        stream = staticmethod(lambda _: contextlib.nullcontext())
        current_stream = staticmethod(lambda _: main)

    kept = []
    monkeypatch.setattr(transfer, "cuda", Cuda)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    main.kept = kept
    return main


def rows_of(way, source, chosen):
    with way.batch():
        found = [way.send(source, rows) for rows in chosen]
        way.sent()
        mark = way.ready()
    return found, mark


def test_a_slot_is_written_again_only_after_its_copies(fake_cuda):
    way, source = LateTransfer(CPU), np.arange(60).reshape(20, 3)
    picks = [np.array([n, 19 - n, 3]) for n in range(10)]
    sent = [rows_of(way, source, [pick, slice(2 * n, 2 * n + 2)]) for n, pick in enumerate(picks)]
    for _, mark in sent:
        way.receive(mark, [])
    for n, (pick, ((taken, cut), _)) in enumerate(zip(picks, sent, strict=True)):
        assert taken.tolist() == source[pick].tolist()
        assert cut.tolist() == source[2 * n : 2 * n + 2].tolist()


def test_without_the_wait_a_batch_would_be_overwritten(fake_cuda, monkeypatch):
    """The lagging stream does show the fault that the events prevent."""
    monkeypatch.setattr(transfer._Slot, "begin", lambda slot: setattr(slot, "_used", 0))
    way, source = LateTransfer(CPU), np.arange(10)
    sent = [rows_of(way, source, [np.array([n])]) for n in range(4)]
    way.receive(sent[-1][1], [])
    assert [int(found[0]) for found, _ in sent] != [0, 1, 2, 3]


def test_memory_is_used_again_and_grows(fake_cuda):
    way, source = LateTransfer(CPU), np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
    for size in (4, 4, 2, 2):
        rows_of(way, source, [np.arange(size)])
    places = [slot._memory[0].data_ptr() for slot in way._slots]
    rows_of(way, source, [np.arange(3)])
    assert [slot._memory[0].data_ptr() for slot in way._slots] == places, "a smaller batch fits"
    (found,), mark = rows_of(way, source, [np.arange(9)])
    way.receive(mark, [found])
    assert found.dtype == torch.uint8 and found.tolist() == source[:9].tolist()
    assert fake_cuda.kept[-1][0] is found and fake_cuda.kept[-1][1] is fake_cuda
    (empty,), mark = rows_of(way, source, [np.zeros(0, np.int64)])
    assert empty.shape == (0, 2, 2)


def test_the_receiver_waits_on_the_device_for_the_last_work(fake_cuda):
    way = LateTransfer(CPU)
    (found,), mark = rows_of(way, np.arange(5.0), [np.array([1, 2])])
    assert found.tolist() == [-1, -1], "nobody has waited yet"
    way.receive(mark, [found])
    assert fake_cuda.waited == [mark] and mark.stream is way.stream
    assert found.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("prefetch", [True, False])
def test_batches_that_are_staged_are_the_plain_ones(tmp_path, make_store, fake_cuda, monkeypatch, prefetch):
    store = make_store(tmp_path / "prepared", n_per_group=30)
    given = {"batch_size": 8, "device": CPU, "shuffle_seed": 3, "prefetch": prefetch}
    plain = list(iterate(store, store.indices("train"), **given))
    monkeypatch.setattr(batches, "transfer_to", EagerTransfer)
    staged = list(iterate(store, store.indices("train"), **given))
    for one, two in zip(plain, staged, strict=True):
        assert torch.equal(one.images, two.images) and one.images.stride() == two.images.stride()
        assert torch.equal(one.labels, two.labels) and torch.equal(one.groups, two.groups)
        assert one.indices.tolist() == two.indices.tolist()
    assert len(fake_cuda.waited) == len(staged) and len(fake_cuda.kept) == 3 * len(staged)


class EagerTransfer(StagedTransfer):
    """What is computed from a copy on the host needs it at once; a stream would keep the order itself."""

    def __init__(self, device):
        super().__init__(device, pin=False)

    def _copy(self, host):
        return host.clone()


def test_only_cuda_is_staged(fake_cuda, monkeypatch):
    monkeypatch.setattr(transfer, "SLOTS", 0)  # page-locked memory needs a GPU
    assert type(transfer_to(CPU)) is Transfer and type(transfer_to(torch.device("mps"))) is Transfer
    assert type(transfer_to(torch.device("cuda", 1))) is StagedTransfer
