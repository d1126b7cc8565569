"""baq_learnable: widths start as assigned and are trained with the weights (Wørgaard & Selvan 2026, arXiv 2602.23192).

Objective: CE + λ_f · fairness (+ distillation) + R; the task and the groups both pull at the widths of single units
(``quantize.learned_widths``), R holds the budget or pulls towards the assigned widths (``train.width_control``). The
finished model has whole widths and plain integer codes, like that of any other mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.modes._activations import ActivationPlan
from fairquant.modes._attach import fold
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._terms import training_terms
from fairquant.modes._train import train
from fairquant.modes._widths import held_widths, require_free

if TYPE_CHECKING:
    from torch import nn


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Train widths and weights together; protected layers keep theirs.

    Raises ``UserError`` for assigned widths outside [bit_min, bit_max] and ``ConfigError`` for a protection that
    matches no layer.
    """
    import torch

    from fairquant.models.layers import quantizable_layers
    from fairquant.quantize.attach import attach_learned, settle_learned
    from fairquant.train.terms import LossTerm
    from fairquant.train.width_control import WidthControl

    terms, teacher = training_terms(job)  # before quantizers are attached
    plan = ActivationPlan.of(job)
    fold(job, job.bits)
    job.model.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = list(quantizable_layers(job.model))
    held = held_widths(job, layers)
    require_free(held, layers, "baq_learnable")
    sizes = _unit_sizes(job.model, job)
    baq = job.section.baq
    attach_learned(job.model, job.bits, held=set(held), bit_min=baq.bit_min, bit_max=baq.bit_max)
    model = plan.apply(job.model)
    control = WidthControl(model, sizes, baq)
    history = train(job, model, [*terms, LossTerm(1.0, control.term)], teacher, hooks=control)
    settle_learned(model)
    return QuantizeResult(model.eval(), history)


def _unit_sizes(model: nn.Module, job: QuantizeJob) -> dict[str, int]:
    """Return how many parameters one unit of each layer has."""
    from fairquant.models.layers import quantizable_layers, weight_parameter

    layers = quantizable_layers(model)
    return {name: weight_parameter(layers[name]).numel() // widths.size for name, widths in job.bits.layers.items()}
