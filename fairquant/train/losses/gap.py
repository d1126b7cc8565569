"""Gap of the groups' losses [A]: max_g CE_g - min_g CE_g over the groups present in the batch.

CE_g is the mean cross-entropy of group g's samples. Source: Wørgaard & Selvan 2026, arXiv 2602.23192.

>>> import torch
>>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [100.0, 0.0]])
>>> round(loss(logits, torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2]), 3).item(), 4)  # ln 2 - 0
0.6931
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def loss(logits: Tensor, labels: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Return the largest minus the smallest group mean of the cross-entropy.

    Args:
        logits: float (B, C).
        labels: int64 (B,) in [0, C).
        groups: int64 (B,) in [0, ``n_groups``).
        n_groups: number of groups of the data set; those absent from the batch are left out.

    Returns:
        Scalar >= 0, differentiable in ``logits``; zero where fewer than two groups are present.
    """
    from torch.nn.functional import cross_entropy

    per_sample = cross_entropy(logits, labels, reduction="none")
    totals = per_sample.new_zeros(n_groups).index_add(0, groups, per_sample)
    counts = per_sample.new_zeros(n_groups).index_add(0, groups, per_sample.new_ones(len(groups)))
    means = totals / counts.clamp(min=1)
    absent = counts == 0
    worst = means.masked_fill(absent, -float("inf")).amax()
    best = means.masked_fill(absent, float("inf")).amin()
    return worst - best
