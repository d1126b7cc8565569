"""Gap of the groups' losses: max_g CE_g - min_g CE_g over the groups present in the batch.

CE_g is the mean cross-entropy of group g's samples, without class weights. Source: Wørgaard & Selvan 2026,
arXiv 2602.23192.

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [100.0, 0.0]])
>>> batch = LossBatch(logits, torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2]), 3)
>>> round(loss(batch, Options(), {}).item(), 4)  # ln 2 - 0
0.6931
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.train.losses._groups import group_means

if TYPE_CHECKING:
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State


class Options(Section):
    """gap has no settings."""


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return the largest minus the smallest group mean of the cross-entropy.

    Scalar >= 0, differentiable in the logits; zero where fewer than two groups are present.
    """
    from torch.nn.functional import cross_entropy

    per_sample = cross_entropy(batch.logits, batch.labels, reduction="none")
    means, sizes = group_means(per_sample, batch.groups, batch.n_groups)
    absent = sizes == 0
    worst = means.masked_fill(absent, -float("inf")).amax()
    best = means.masked_fill(absent, float("inf")).amin()
    return worst - best
