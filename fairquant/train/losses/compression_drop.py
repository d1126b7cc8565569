"""Compression-drop constraint: no group may lose more accuracy to the compression than all samples together lose.

For every group g, with fp the full-precision model (the teacher) and acc the true 0-1 accuracies,

    (acc_fp,g − acc_g) − (acc_fp − acc) ≤ tolerance.

0-1 accuracy has no gradient, so the multipliers see it and the weights see a surrogate, the proxy-Lagrangian of
Cotter, Jiang, Gupta, Wang, Narayan, You & Sridharan 2019, "Optimization with non-differentiable constraints with
applications to fairness, recall, churn, and other goals", JMLR 20. In each step:

1. Both models' right and wrong answers on the batch go into sums that fade by ``memory`` per step, for all groups
   alike, so that a group is compared with all samples of the same steps: lost_g (samples the teacher had right less
   those the student has right) and n_g (samples). lost_g / n_g is the drop of group g as an exponential moving average
   weighted by samples, without bias at the start; a group absent from a batch keeps its average.
2. violation_g = lost_g / n_g − Σ_h lost_h / Σ_h n_h − tolerance, and by projected gradient ascent

       m_g ← min(1, max(0, m_g + step · n_g / (n_g + K) · violation_g)),   K = 50 samples.

   The factor slows down groups of which the memory holds few samples and changes no sign: over 50 samples the standard
   error of a drop is around 5 points, and integrating that noise would drive rare groups' multipliers at random.
3. term = Σ_g m_g · CE_g over the groups present in the batch; CE_g is the mean cross-entropy of g's samples, without
   class weights, since the accuracies have none.

Why Σ m_g CE_g, though the constraint's surrogate is (CE_g − CE_fp,g) − (CE − CE_fp) − tolerance: the teacher's losses
and the tolerance are constants, and with M = λ Σ_g m_g (λ = quantize.fairness_weight) the objective is

    CE + λ Σ_g m_g CE_g = (1 + M) · [CE + Σ_g μ_g (CE_g − CE)],   μ_g = λ m_g / (1 + M),

the surrogate's Lagrangian with multipliers μ, times a factor that Adam's steps do not depend on. Σ_g μ_g < 1 always,
so no group's cross-entropy ever has a negative weight: making the others worse is no way to meet the constraint.
0 ≤ m_g ≤ 1 keeps the multipliers from winding up; λ says how much a group's cross-entropy may weigh at most, and
λ · step is how fast its weight answers (too fast, and groups take turns at being harmed). Once the constraint holds
with something to spare, m_g falls to 0, and without it the plain objective is left.

What it cannot see. The accuracies are those on the augmented training batches, where the student's dropout and batch
statistics are active; what that costs all groups alike cancels. A teacher that knows the training set by heart has
acc_fp,g ≈ 1 in every group, and the constraint then says that no group's training error may exceed the average one,
which is still the harm that low widths do. But once the student knows it by heart too, every drop is 0, m no longer
rises and a harm that shows on unseen samples alone goes unnoticed. Validation samples would show it (Cotter et al.
2019, "Training well-generalizing classifiers for fairness metrics and other data-dependent constraints", ICML) but
select the epoch here, and are few in rare groups. Augmentation keeps training accuracies off 1; the proof of harm or
none are the paired tests on the test split.

>>> import torch
>>> from fairquant.train.terms import LossBatch
>>> right, wrong = [1.0, 0.0], [0.0, 1.0]
>>> labels, groups = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
>>> student, teacher = torch.tensor([right, right, right, wrong]), torch.tensor([right] * 4)
>>> state = start(2, Options(), torch.device("cpu"))
>>> value = loss(LossBatch(student, labels, groups, 2, teacher=teacher), Options(step=1.0), state)
>>> [round(m, 4) for m in state["multipliers"].tolist()]  # group 1 lost 1/2, all 1/4: 2 / 52 · (1/2 − 1/4)
[0.0, 0.0096]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config import Section
from fairquant.config.base import Real, number
from fairquant.train.losses._groups import group_means

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fairquant.train.terms import LossBatch, State

TEACHER = True
FEW = 50.0
"""K: with so many samples in memory a group's multiplier moves at half speed."""
LARGEST = 1.0
"""No multiplier exceeds it."""


class Options(Section):
    """How strictly groups are protected.

    Attributes:
        tolerance: by how much a group's drop may exceed that of all samples, as a share: 0.01 is one point.
        step: learning rate of the multipliers; a violation of v adds step · v per step.
        memory: factor by which the past fades per step; 1 / (1 − memory) steps are remembered.
    """

    tolerance: Real = number(0.0, ge=0, le=1)
    step: Real = number(0.2, gt=0)
    memory: Real = number(0.98, ge=0, lt=1)


def start(n_groups: int, options: Options, device: torch.device) -> State:
    """Return nothing seen and no group protected: ``lost``, ``seen`` and ``multipliers``, each (G,) float32 of 0."""
    import torch

    return {name: torch.zeros(n_groups, device=device) for name in ("lost", "seen", "multipliers")}


def loss(batch: LossBatch, options: Options, state: State) -> Tensor:
    """Return Σ_g m_g · CE_g with multipliers moved by this batch; they get no gradient.

    Scalar >= 0. Raises ``UserError`` for a batch without teacher.
    """
    from torch.nn.functional import cross_entropy

    per_sample = cross_entropy(batch.logits, batch.labels, reduction="none")
    means, sizes = group_means(per_sample, batch.groups, batch.n_groups)
    _ascend(batch, sizes, options, state)
    return (state["multipliers"].clone() * means).sum()  # a copy: the next step moves the multipliers in place


def _ascend(batch: LossBatch, sizes: Tensor, options: Options, state: State) -> None:
    """Let the memory take in the batch and the multipliers follow the violations."""
    import torch

    lost, seen, multipliers = state["lost"], state["seen"], state["multipliers"]
    with torch.no_grad():
        had, has = (logits.argmax(dim=1) == batch.labels for logits in (batch.teacher_logits, batch.logits))
        lost.mul_(options.memory).index_add_(0, batch.groups, had.to(lost.dtype) - has.to(lost.dtype))
        seen.mul_(options.memory).add_(sizes)
        allowed = lost.sum() / seen.sum() + options.tolerance
        moved = options.step * (lost - allowed * seen) / (seen + FEW)
        multipliers.add_(moved).clamp_(0.0, LARGEST)
