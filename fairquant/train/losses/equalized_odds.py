"""Equalized odds: the gaps of the groups' soft true and false positive rates.

One-vs-rest for class k, with p_k(x) its predicted probability,

    TPR_gk = mean of p_k over the samples of class k in group g,   FPR_gk = mean of p_k over its other samples,

    term = mean_k (max_g TPR_gk − min_g TPR_gk) + mean_k (max_g FPR_gk − min_g FPR_gk),

EOdd as it is reported (``fairquant.evaluate.gaps.eodd``) with probabilities in the place of predictions. A group that
has no sample of class k in the batch has no TPR_gk: it is left out of the gap, not counted as 0, and a class that
fewer than two groups have a rate of is left out of the mean. With two classes TPR_0 = 1 − FPR_1, and the term is the
sum of the TPR gap and the FPR gap of the positive class, whichever it is. Definition: Hardt, Price & Srebro 2016,
"Equality of opportunity in supervised learning", arXiv 1610.02413.

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [0.75, 0.25]])
>>> batch = LossBatch(probabilities.log(), torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 1, 0]), 2)
>>> round(loss(batch, Options(), {}).item(), 4)  # true positives .75 - .5, false positives .25 - .25
0.25
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.train.losses._rates import class_rates, mean_gap, of_classes

if TYPE_CHECKING:
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State


class Options(Section):
    """equalized_odds has no settings."""


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return the class mean of the TPR gaps plus that of the FPR gaps.

    Scalar in [0, 2], differentiable in the logits; zero where no rate is defined in two groups. Class weights do not
    enter: a rate counts samples.
    """
    probabilities = batch.logits.softmax(dim=1)
    positives = of_classes(batch.labels, probabilities)
    gaps = (
        mean_gap(*class_rates(probabilities, samples, batch.groups, batch.n_groups))
        for samples in (positives, 1.0 - positives)
    )
    return sum(gaps, start=probabilities.new_zeros(()))
