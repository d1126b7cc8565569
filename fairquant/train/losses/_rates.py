"""Soft rates of the groups of a batch by class, and how far they lie apart; nothing here waits for the accelerator.

A soft rate is a mean of predicted probabilities where the rate itself counts predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def of_classes(labels: Tensor, like: Tensor) -> Tensor:
    """Return 1 where a sample is of a class, else 0: (B, C) of the shape and dtype of ``like``.

    ``one_hot``, which looks for labels out of range first.

    >>> import torch
    >>> of_classes(torch.tensor([1, 0]), torch.zeros(2, 3)).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    import torch

    return (labels[:, None] == torch.arange(like.shape[1], device=labels.device)).to(like.dtype)


def class_rates(values: Tensor, weights: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Return each group's weighted mean of every column of ``values``, and its weight.

    Args:
        values: (B, C), may carry a graph.
        weights: (B, C) >= 0: which samples a rate is over, the positives of class c for a true positive rate.
        groups: (B,) int64 in [0, ``n_groups``).
        n_groups: G.

    Returns:
        Rates (G, C), 0 where undefined; weights (G, C), 0 marks what is undefined.

    >>> import torch
    >>> probabilities, labels = torch.tensor([[0.75], [0.25], [0.5]]), torch.tensor([[1.0], [1.0], [0.0]])
    >>> rates, sizes = class_rates(probabilities, labels, torch.tensor([0, 0, 1]), 2)
    >>> rates.tolist(), sizes.tolist()
    ([[0.5], [0.0]], [[2.0], [0.0]])
    """
    empty = values.new_zeros(n_groups, values.shape[1])
    sizes = empty.index_add(0, groups, weights)
    return empty.index_add(0, groups, weights * values) / sizes.masked_fill(sizes == 0, 1.0), sizes


def mean_gap(rates: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean over classes of max_g - min_g of ``rates`` (G, C), each over the groups where it is defined.

    A class that fewer than two groups have a rate of has no gap and is left out; 0 where none has one.

    >>> import torch
    >>> rates = torch.tensor([[0.5, 0.5, 0.25], [0.25, 0.0, 0.5], [1.0, 0.0, 0.75]])
    >>> mean_gap(rates, torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])).item()  # (.25 + .5) / 2
    0.375
    """
    absent = sizes == 0
    high = rates.masked_fill(absent, -float("inf")).amax(dim=0)
    low = rates.masked_fill(absent, float("inf")).amin(dim=0)
    several = (~absent).sum(dim=0) >= 2
    gaps = (high - low).masked_fill(~several, 0.0)
    return gaps.sum() / several.sum().clamp_min(1)
