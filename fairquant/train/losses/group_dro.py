"""Group DRO: the groups' losses weighted by an adversary that turns to the groups served worst.

Algorithm 1 of Sagawa, Koh, Hashimoto & Liang 2020, "Distributionally robust neural networks for group shifts"
(arXiv 1911.08731), with q_g = 1/G at the start. In each step, for the groups g present in the batch,

    q_g ← q_g · exp(η · CE_g),   q ← q / Σ_h q_h,   term = Σ_g q_g · CE_g,

η = ``step``. CE_g is the task's own loss in group g, so class weights enter it as they enter the mean cross-entropy:
CE_g = Σ_{i in g} w_{y_i} ℓ_i / Σ_{i in g} w_{y_i}. A group absent from the batch adds nothing; its q changes by the
normalisation alone. The logarithm of q is what is kept, so that no weight is ever lost to underflow. The published
algorithm minimises the term alone; here it is added to the mean cross-entropy (quantize.fairness_weight).

>>> import math, torch
>>> from fairquant.train.terms import LossBatch
>>> batch = LossBatch(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
>>> state = start(2, Options(step=1.0), torch.device("cpu"))
>>> round(loss(batch, Options(step=1.0), state).item(), 4)  # q = (2, 1) / 3 after exp(ln 2) and exp(0): 2/3 · ln 2
0.4621
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.config.base import Real, number
from fairquant.train.losses._groups import group_means

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State


class Options(Section):
    """``step``: η, the learning rate of the groups' weights; a group worse by 1 nat gains a factor e^η per step."""

    step: Real = number(0.05, gt=0)


def start(n_groups: int, options: Options, device: torch.device) -> State:
    """Return equal weights, as logarithms: ``log_weights`` (G,), float32."""
    import torch

    return {"log_weights": torch.full((n_groups,), -math.log(n_groups), dtype=torch.float32, device=device)}


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return Σ_g q_g · CE_g with q moved by this batch; q itself gets no gradient.

    Scalar >= 0, at most the largest CE_g.
    """
    import torch
    from torch.nn.functional import cross_entropy

    per_sample = cross_entropy(batch.logits, batch.labels, reduction="none")
    weights = None if batch.class_weights is None else batch.class_weights[batch.labels]
    means, _ = group_means(per_sample, batch.groups, batch.n_groups, weights)
    log_weights = state["log_weights"]
    with torch.no_grad():
        log_weights.add_(options.step * means)
        log_weights.sub_(log_weights.logsumexp(dim=0))
    return (log_weights.exp() * means).sum()
