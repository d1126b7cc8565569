"""ptq_static: the assigned widths, and activations on grids found in calibration; nothing is trained.

Post-training quantization (Nagel et al. 2021, arXiv 2106.08295, section 3): weights are rounded first, then every
activation's range is observed on training images (``quantize.calibration``: all batches are used, drawn at random,
balanced over the groups, or with more of the worst-served one).
"""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult

BITS = 8
"""Width of activations where ``quantize.activations.bits`` is null."""


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize weights at the assigned widths and activations at ``quantize.activations.bits``."""
    return attach(job, job.bits, activation_bits=BITS)
