"""fair_static_qat: the assigned widths, fine-tuned with cross-entropy + λ · fairness loss (arXiv 2602.23192).

The weights are quantized in every forward pass (quantization-aware training, Jacob et al. 2018, arXiv 1712.05877) and
trained in full precision; the widths stay as assigned.
"""

from __future__ import annotations

from fairquant import plugins
from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize at the assigned widths, then fine-tune; the epoch with the best validation accuracy is kept."""
    from fairquant.quantize.attach import refresh_scales
    from fairquant.train.loop import LossTerm, fit

    model = attach(job, job.bits).model
    section = job.section.model_copy(update={"epochs": min(job.section.epochs, 1)}) if job.debug else job.section
    fairness = LossTerm(section.fairness_weight, plugins.load("loss", section.fairness_loss).loss)
    history = fit(
        model,
        job.store,
        section=section,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        terms=[fairness] if section.fairness_weight else [],
        checkpoint_dir=job.checkpoint_dir,
        on_epoch_start=lambda _: refresh_scales(model),
    )
    return QuantizeResult(model, history)
