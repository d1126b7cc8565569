"""ptq_dynamic: the assigned widths, and activations on a grid that each input brings along; nothing is trained.

No calibration: a tensor's range is that of the batch being computed, so that a sample's result depends on the others in
its batch (as in dynamic quantization at run time, where a batch is most often one request).
"""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes.ptq_static import BITS


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize weights at the assigned widths and activations at ``quantize.activations.bits``, ranges as they come."""
    return attach(job, job.bits, activation_bits=BITS, dynamic=True)
