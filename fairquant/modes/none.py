"""none: every layer at 32 bits; the quantized model is the full-precision one, bit for bit."""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Return the job's model with quantizers that change nothing."""
    from fairquant.allocate.bitmap import BitMap

    return attach(job, BitMap.filled(dict.fromkeys(job.bits.layers, ()), 32))
