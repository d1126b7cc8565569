"""What every mode that trains adds to the cross-entropy: the fairness loss, and distillation.

Objective: CE + quantize.fairness_weight · fairness loss + quantize.distill.weight · distillation.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from fairquant import plugins

if TYPE_CHECKING:
    from torch import nn

    from fairquant.modes._job import QuantizeJob
    from fairquant.train.terms import LossTerm


def training_terms(job: QuantizeJob) -> tuple[list[LossTerm], nn.Module | None]:
    """Return the terms of ``job`` (those of weight 0 are left out) and the teacher that they need, or None.

    Call it while ``job.model`` is still the full-precision model: the teacher is a copy of it.
    """
    from fairquant.train import distill
    from fairquant.train.terms import LossTerm

    section, terms = job.section, []
    if section.fairness_weight:
        module = plugins.load("loss", section.fairness_loss)
        options = module.Options(**section.losses.get(section.fairness_loss, {}))
        terms.append(LossTerm.of(module, weight=section.fairness_weight, options=options))
    if section.distill.weight:
        terms.append(LossTerm.of(distill, weight=section.distill.weight, options=section.distill))
    needed = any(term.needs_teacher for term in terms)
    return terms, copy.deepcopy(job.model).eval().requires_grad_(False) if needed else None
