"""Sums over the weights of a row that share a width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def floor(weight: Tensor) -> float:
    """Return the smallest step size: positive, and with a finite reciprocal, also for a row of zeros."""
    import torch

    return torch.finfo(weight.dtype).tiny


def row_max(weight: Tensor) -> Tensor:
    """Return max |w| of every row, (r, 1), without a temporary of the weight's size; one kernel on a GPU."""
    import torch

    if not weight.is_cpu:  # there the norm of a row is many times slower than two reductions
        largest: Tensor = torch.linalg.vector_norm(weight, ord=float("inf"), dim=1, keepdim=True)
        return largest
    return torch.maximum(weight.amax(1, keepdim=True), weight.amin(1, keepdim=True).neg_())


@dataclass(frozen=True)
class Slots:
    """Which weights of a row share a width: ``index`` (r, n) into ``values`` (s,), or None when a row has one width."""

    index: Tensor | None
    largest: Tensor
    """M per slot: (r, 1) or (1, s)."""

    @classmethod
    def of(cls, largest: Tensor) -> Slots:
        """Find the slots of M (r, 1) or (r, n)."""
        import torch

        if largest.shape[1] == 1:
            return cls(None, largest)
        values, index = torch.unique(largest, return_inverse=True)
        return cls(index, values[None])

    def total(self, values: Tensor) -> Tensor:
        """Sum ``values`` (r, n) by slot, in float64: (r, s)."""
        import torch

        if self.index is None:
            return values.sum(1, keepdim=True, dtype=torch.float64)
        table = torch.zeros(values.shape[0], self.largest.shape[1], dtype=torch.float64, device=values.device)
        return table.scatter_add_(1, self.index, values.double())

    def spread(self, table: Tensor) -> Tensor:
        """Give every weight the value of its slot: (r, s) → (r, n), or (r, 1) as it is."""
        return table if self.index is None else table.gather(1, self.index)
