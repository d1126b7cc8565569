"""Gradients averaged over the processes while backward still runs: data-parallel training.

Gradients travel in buckets, about in the order backward finishes them, each as soon as its last gradient is there (Li
et al. 2020, "PyTorch Distributed: experiences on accelerating data parallel training", arXiv 2006.15704). Unlike in
torch's DistributedDataParallel, which settles its buckets in the first steps it sees and must be told of parameters
that take no part, buckets follow from the parameters alone: these may have no gradient (a head that is not used) or
stop having one (``requires_grad`` turned off while training), the model is not wrapped, and a resumed run adds up in
the very order of an undisturbed one. All processes run the same graph, so the same parameters have gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fairquant.parallel.collectives import world_size

BUCKET = 25 * 2**20
"""Bytes of gradients that travel together."""
Strategy = Literal["ddp", "ddp_bf16"]


@dataclass(frozen=True, eq=False)
class _Journey:
    """A bucket under way: the sum so far, which parameters it is of, and what to wait for."""

    work: Any
    total: Tensor
    parameters: list[nn.Parameter]


class GradientAverage:
    """Averages what backward leaves in ``grad`` of some parameters; does nothing where there is one process."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, strategy: Strategy = "ddp") -> None:
        """Watch those of ``parameters`` that are trained, until ``close``.

        Args:
            parameters: of the model, in its order, the same on every process.
            strategy: ddp adds up the gradients as they are, ddp_bf16 rounded to bfloat16: half the bytes, and a sum
                with 8 significant bits.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad] if world_size() > 1 else []
        self.strategy = strategy
        self.buckets = _in_buckets(trained)
        self._place = {id(parameter): number for number, bucket in enumerate(self.buckets) for parameter in bucket}
        self._missing: list[int] = []  # gradients that each bucket waits for; empty between steps
        self._journeys: list[_Journey] = []
        self._had: list[nn.Parameter] = []  # a gradient in the step before
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for parameter in trained
        ]

    @torch.no_grad()
    def finish(self, *, idle: bool = False) -> None:
        """After backward: send what is left, and put the averages into ``grad``, laid out as their parameters are.

        ``idle`` says that this process had no rows of the batch: some gradients are then absent that are 0, which is
        known from the step before.
        """
        if idle:
            for parameter in self._had:
                if parameter.grad is None and parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        for number in range(len(self._journeys), len(self.buckets)):
            self._send(number)
        for journey in self._journeys:
            if journey.work is not None:
                journey.work.wait()
                _take_over(journey)
        self._had = [parameter for journey in self._journeys for parameter in journey.parameters]
        self._missing, self._journeys = [], []

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
        self.buckets, self._hooks = [], []

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        """Count a gradient, and send the buckets that are complete: in their order, as all processes do."""
        if not self._missing:
            self._missing = [sum(p.requires_grad for p in bucket) for bucket in self.buckets]
        self._missing[self._place[id(parameter)]] -= 1
        while len(self._journeys) < len(self.buckets) and self._missing[len(self._journeys)] == 0:
            self._send(len(self._journeys))

    def _send(self, number: int) -> None:
        parameters = [parameter for parameter in self.buckets[number] if parameter.grad is not None]
        if not parameters:
            self._journeys.append(_Journey(None, torch.empty(0), parameters))
            return
        total = torch.cat([_line(p.grad, p) for p in parameters if p.grad is not None])
        if self.strategy == "ddp_bf16":
            total = total.to(torch.bfloat16)
        total.div_(world_size())  # before the sum, which then overflows where one process's would
        self._journeys.append(_Journey(dist.all_reduce(total, async_op=True), total, parameters))


def _in_buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters of one dtype and device, last first: about the order in which backward reaches them."""
    buckets: list[list[nn.Parameter]] = []
    room, kind = 0, None
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or kind != (parameter.dtype, parameter.device):
            buckets.append([])
            room, kind = BUCKET, (parameter.dtype, parameter.device)
        buckets[-1].append(parameter)
        room -= size
    return buckets


def _order(parameter: Tensor) -> list[int]:
    """Return the dimensions in the order memory holds them, outermost first; the same on every process."""
    return sorted(range(parameter.dim()), key=parameter.stride, reverse=True)


def _line(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return ``gradient`` as one row in the order of ``parameter``'s memory, whatever its own is."""
    return gradient.permute(_order(parameter)).reshape(-1)


def _take_over(journey: _Journey) -> None:
    """Let each ``grad`` be its part of the average."""
    parts = torch.split(journey.total, [parameter.numel() for parameter in journey.parameters])
    for parameter, part in zip(journey.parameters, parts, strict=True):
        order = _order(parameter)
        shaped = part.view([parameter.shape[d] for d in order])
        back = shaped.permute([order.index(d) for d in range(len(order))])
        parameter.grad = back.to(parameter.dtype)
