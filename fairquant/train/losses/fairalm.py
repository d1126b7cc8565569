"""FairALM: an augmented Lagrangian holds the groups' conditional mean losses equal.

Lokhande, Akash, Ravi & Singh 2020, "FairALM: Augmented Lagrangian method for training fair models with little regret"
(ECCV, arXiv 2004.01355), algorithm 2. For two groups with conditional means μ_0 and μ_1 of the loss, the constraint
μ_0 − μ_1 = 0, its multiplier λ (0 at first) and the dual step η = ``step``, each step does

    minimise   CE + (λ + η) μ_0 − (λ − η) μ_1,        then   λ ← λ + η (μ_0 − μ_1).

The penalty η (μ_0 + μ_1) bounds the quadratic term of the augmented Lagrangian from above without its square; the
factor ``penalty`` of it is 1 as published, 0 leaves a plain Lagrangian. The dual step takes the means that the primal
step was computed from, one forward pass for both, as the authors' experiments do.

Which means. The published constraint is on the positives' losses (difference in equality of opportunity). Here μ_gk is
the mean cross-entropy of the samples of class k in group g, and every class has a constraint and a multiplier of its
own: with the positive class alone this is the published one, with all classes it is equalized odds.

More groups. Each pair a, b of groups has the constraint μ_a − μ_b = 0; the Lagrangian is the pairs' one, averaged over
the partners of a group. All that the pairs' multipliers do to group g is then one number per class, ν_g = mean of
λ_gb over its partners b, and

    term = Σ_k Σ_g (ν_gk + penalty · η) μ_gk,         ν_gk ← ν_gk + η (μ_gk − mean_{b≠g} μ_bk).

With two groups ν_0 = λ = −ν_1, which is the published update to the letter. Σ_g ν_gk stays 0. A group without samples
of class k in a batch has no μ_gk: it adds nothing to the term, is nobody's partner and keeps its multiplier; where only
one group has class k its multiplier rests too.

A multiplier of a group served better than the others falls below 0, and its loss is then pushed up: the constraint is
equality, at any price. Nothing bounds the multipliers; ``step`` · steps · gap is what they reach, and
quantize.fairness_weight scales the term.

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> even, sure = [0.0, 0.0], [100.0, 0.0]  # cross-entropies ln 2 and 0
>>> batch = LossBatch(torch.tensor([even, sure]), torch.tensor([0, 0]), torch.tensor([0, 1]), 2)
>>> options = Options(step=0.5)
>>> state = start(2, options, torch.device("cpu"))
>>> [round(loss(batch, options, state).item(), 4) for _ in range(2)]  # (λ + .5) ln 2 with λ = 0, then .5 ln 2
[0.3466, 0.5868]
>>> [round(value, 4) for value in state["multipliers"][:, 0].tolist()]  # ± 2 · .5 ln 2
[0.6931, -0.6931]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.config.base import Real, number
from fairquant.train.losses._rates import class_rates, of_classes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State


class Options(Section):
    """How fast the multipliers move.

    Attributes:
        step: η, learning rate of the multipliers: a gap of v nats adds η · v per step.
        penalty: factor of the augmented term η Σ μ; 1 is as published, 0 leaves it out.
    """

    step: Real = number(0.01, gt=0)
    penalty: Real = number(1.0, ge=0)


def start(n_groups: int, options: Options, device: torch.device) -> State:
    """Return the multipliers ν, (G, 0) until the first batch tells the number of classes: then (G, K) of 0, float32."""
    import torch

    return {"multipliers": torch.zeros(n_groups, 0, device=device)}


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return Σ_k Σ_g (ν_gk + penalty · step) μ_gk, then let the multipliers take a dual step; they get no gradient.

    Scalar, of either sign once a multiplier is negative; differentiable in the logits. Class weights do not enter:
    each mean is over one class.
    """
    import torch
    from torch.nn.functional import cross_entropy

    n_classes = batch.logits.shape[1]
    if state["multipliers"].shape[1] != n_classes:
        state["multipliers"] = batch.logits.new_zeros(batch.n_groups, n_classes, dtype=torch.float32)
    samples = of_classes(batch.labels, batch.logits)
    per_sample = cross_entropy(batch.logits, batch.labels, reduction="none")
    means, sizes = class_rates(per_sample[:, None].expand_as(samples), samples, batch.groups, batch.n_groups)
    weights = state["multipliers"] + options.penalty * options.step  # a new tensor: the dual step is taken in place
    _ascend(state["multipliers"], means.detach(), sizes > 0, options.step)
    return (weights * means).sum()  # an undefined mean is 0


def _ascend(multipliers: Tensor, means: Tensor, known: Tensor, step: float) -> None:
    """Add step · (mean less the mean of the other groups' means) where both are known, all (G, K)."""
    partners = known.sum(dim=0) - 1
    others = (means.sum(dim=0) - means) / partners.clamp_min(1)
    multipliers.add_(step * (means - others).masked_fill(~known | (partners < 1), 0.0))
