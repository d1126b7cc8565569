"""kmeans: the assigned widths as codebooks of 2^b centroids instead of grids (Deep Compression, arXiv 1510.00149).

Weights are clustered layer by layer, or channel by channel (``quantize.codebook.per``); with ``quantize.codebook.tune``
the centroids, and what is not quantized, are then trained with cross-entropy + λ · fairness loss while every weight
keeps its code. Whatever predicted losses chose the widths by were those of grids.
"""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._terms import training_terms
from fairquant.modes._train import train


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Cluster at the assigned widths, then train the centroids; the epoch with the best validation accuracy is kept.

    Raises ``UserError`` for widths without a codebook: 9 to 16, and those of single weights.
    """
    from dataclasses import replace

    section = job.section.codebook
    terms, teacher = training_terms(job) if section.tune else ([], None)  # before quantizers are attached
    result = attach(job, replace(job.bits, codebook=section.per, steps={}))
    if not section.tune:
        return result
    return QuantizeResult(result.model, train(job, result.model, terms, teacher))
