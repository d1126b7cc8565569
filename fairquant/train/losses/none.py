"""No fairness term: zero, and zero gradient. The caller chooses to do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def loss(logits: Tensor, labels: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Return a zero scalar connected to ``logits`` (B, C), so that its gradient is zero rather than absent."""
    return logits.sum() * 0.0
