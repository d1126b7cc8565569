"""The step all modes share: quantizers on the job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.config.quantization import OFF
from fairquant.modes._activations import ActivationPlan
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.train.history import History

if TYPE_CHECKING:
    from fairquant.allocate.bitmap import BitMap


def attach(job: QuantizeJob, bits: BitMap, *, activation_bits: int = OFF, dynamic: bool = False) -> QuantizeResult:
    """Attach quantizers of widths ``bits`` to the job's model on its device, folded where asked; nothing is trained.

    Activations follow, calibrated on the rounded model: at the width asked for, or ``activation_bits`` where none is.
    """
    plan = ActivationPlan.of(job, default=activation_bits, dynamic=dynamic)
    _round(job, fold(job, bits))
    return QuantizeResult(plan.apply(job.model), History(groups=tuple(job.store.group_names)))


def _round(job: QuantizeJob, bits: BitMap) -> None:
    from fairquant.train.rounding import round_model

    round_model(
        job.model,
        bits,
        store=job.store,
        section=job.section,
        device=job.device,
        precision=job.precision,
        seed=job.seed,
    )


def fold(job: QuantizeJob, bits: BitMap) -> BitMap:
    """Fold the job's batch norm into its layers, where asked; return ``bits`` with step sizes that fit."""
    from fairquant.quantize.folded import fold_for_rounding

    return fold_for_rounding(job.model, bits) if job.section.batch_norm == "fold" else bits


def attach_folding(job: QuantizeJob, bits: BitMap) -> QuantizeResult:
    """Attach as ``attach`` does; batch norm is folded in every pass until ``settle_folding``, where asked."""
    from fairquant.quantize.folded import fold_in_training

    if job.section.batch_norm != "fold_train":
        return attach(job, bits)
    plan = ActivationPlan.of(job)
    with fold_in_training(job.model, bits) as fitting:
        _round(job, fitting)
    return QuantizeResult(plan.apply(job.model), History(groups=tuple(job.store.group_names)))
