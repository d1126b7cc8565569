"""Demographic parity: the gap of the groups' soft selection rates.

With p_k(x) the predicted probability of class k and p̄_gk its mean over the samples of group g in the batch,

    term = 1/K · Σ_k (max_g p̄_gk − min_g p̄_gk)

over the groups present. With two classes p_0 = 1 − p_1, both gaps are equal, and the term is |p̄_a − p̄_b| of two
groups whichever class is the positive one. It is the demographic parity difference (Dwork, Hardt, Pitassi, Reingold &
Zemel 2012, arXiv 1104.3913: statistical parity) with probabilities in the place of predictions, which have no gradient.
Labels play no part, so groups whose true shares differ are pulled apart from their labels.

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75]])
>>> batch = LossBatch(probabilities.log(), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2]), 3)
>>> round(loss(batch, Options(), {}).item(), 4)  # .75 - (.25 + .75) / 2
0.25
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.train.losses._rates import class_rates, mean_gap

if TYPE_CHECKING:
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State


class Options(Section):
    """demographic_parity has no settings."""


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return the mean over classes of the largest minus the smallest soft selection rate.

    Scalar in [0, 1], differentiable in the logits; zero where fewer than two groups are present. Class weights do not
    enter: a rate counts samples.
    """
    import torch

    probabilities = batch.logits.softmax(dim=1)
    rates, sizes = class_rates(probabilities, torch.ones_like(probabilities), batch.groups, batch.n_groups)
    return mean_gap(rates, sizes)
