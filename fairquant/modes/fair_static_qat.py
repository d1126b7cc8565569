"""fair_static_qat: the assigned widths, fine-tuned with cross-entropy + λ · fairness loss (arXiv 2602.23192).

The weights are quantized in every forward pass (quantization-aware training, Jacob et al. 2018, arXiv 1712.05877) and
trained in full precision; the widths stay as assigned.
"""

from __future__ import annotations

from fairquant.modes._attach import attach_folding
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._terms import training_terms
from fairquant.modes._train import train


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize at the assigned widths, then fine-tune; the epoch with the best validation accuracy is kept.

    Where batch norm is folded while training, the model that comes out is a plainly folded one.
    """
    from fairquant.quantize.folded import settle_folding
    from fairquant.train.refresh import RefreshScales

    terms, teacher = training_terms(job)  # before quantizers are attached
    model = attach_folding(job, job.bits).model
    history = train(job, model, terms, teacher, hooks=RefreshScales(model))
    settle_folding(model)
    return QuantizeResult(model, history)
