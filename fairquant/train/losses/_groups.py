"""Means over the groups of a batch, without a Python loop and without waiting for the accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def group_means(values: Tensor, groups: Tensor, n_groups: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each group's (weighted) mean of ``values`` and its size.

    Args:
        values: (B,), may carry a graph.
        groups: (B,) int64 in [0, ``n_groups``).
        n_groups: G.
        weights: (B,) > 0; None for equal weights.

    Returns:
        Means (G,), 0 for a group absent from the batch; sizes (G,), the sum of the weights or the number of samples.

    >>> import torch
    >>> means, sizes = group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)
    >>> means.tolist(), sizes.tolist()
    ([2.0, 0.0, 5.0], [2.0, 0.0, 1.0])
    """
    parts = values.new_ones(len(groups)) if weights is None else weights
    totals = values.new_zeros(n_groups).index_add(0, groups, values if weights is None else weights * values)
    sizes = values.new_zeros(n_groups).index_add(0, groups, parts)
    return totals / sizes.masked_fill(sizes == 0, 1.0), sizes
