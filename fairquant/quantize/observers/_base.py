"""What every observer has: the extremes seen, whether all was finite, and values in the order memory holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from fairquant.parallel.collectives import largest, world_size


def in_memory_order(x: Tensor) -> Tensor:
    """Return the elements of ``x`` as one dimension, (n,); a view where ``x`` is dense, in whichever format.

    A pass over channels_last images is several times slower in any other order.

    >>> in_memory_order(torch.arange(4.0).reshape(2, 2).T).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    order = sorted(range(x.dim()), key=lambda d: x.stride(d), reverse=True)
    return x.permute(order).reshape(-1)


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return min and max of ``values`` (n ≥ 1,) as float32 of shape (); NaN where there is one."""
    low, high = torch.aminmax(values)
    return low.float(), high.float()


class Observer(nn.Module, ABC):
    """Takes tensors in and says which range they fill; see the package's contract.

    Attributes:
        low: min and
        high: max of what was seen, or what the method makes of them; ∞ and −∞ before anything was.
        finite: whether all of it was finite.
    """

    TRAINS: ClassVar[bool] = False
    low: Tensor
    high: Tensor
    finite: Tensor

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))
        self.register_buffer("finite", torch.tensor(True))

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        """Take in ``x``, floating, of any shape; an empty one says nothing.

        In training mode ``x`` is this process's part of a batch, and the extremes are those of all processes' parts.
        """
        parted = self.training and world_size() > 1
        if x.numel() == 0 and not parted:
            return
        values = in_memory_order(x.detach())
        low, high = extremes(values) if len(values) else self.low.new_tensor([torch.inf, -torch.inf]).unbind()
        if parted:
            low, high = (largest(torch.stack([-low, high])) * self.low.new_tensor([-1.0, 1.0])).unbind()
        self.finite.logical_and_(torch.isfinite(low) & torch.isfinite(high))
        self.take(values, low, high)

    @abstractmethod
    def take(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Take in ``values`` (n ≥ 1,), whose extremes are ``low`` and ``high``."""

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the low and the high end, float32 of shape ()."""
        return self.low, self.high

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Let ``low`` and ``high`` hold these extremes too; NaN spreads."""
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
