"""Observers that keep two numbers: the running extremes, and their moving average."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fairquant.quantize.observers._base import Observer


class MinMax(Observer):
    """low = min and high = max over all that was seen."""

    TRAINS: ClassVar[bool] = True

    def take(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Widen the range to hold the extremes of ``values``."""
        self.widen(low, high)


class MovingAverage(Observer):
    """low ← low + c·(min x − low), high ← high + c·(max x − high); the first tensor sets both."""

    TRAINS: ClassVar[bool] = True

    def __init__(self, momentum: float) -> None:
        """Move by the share ``momentum`` = c in (0, 1] with every tensor."""
        super().__init__()
        self.momentum = momentum

    def take(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        """Move the range towards the extremes of ``values``."""
        first = torch.isposinf(self.low)
        for kept, new in ((self.low, low), (self.high, high)):
            kept.copy_(torch.where(first, new, kept + self.momentum * (new - kept)))

    def extra_repr(self) -> str:
        """Say how fast the range moves."""
        return f"momentum={self.momentum:g}"
