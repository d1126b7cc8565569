"""uniform: one width for every layer but the protected ones, without training; the baseline of every comparison."""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.modes._widths import whole_layers


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize at ``section.uniform_bits``; protected and sensitive layers keep their width.

    Step sizes are one per layer where the assigned widths are per_tensor, else one per out channel. Raises
    ``ConfigError`` for a protection that matches no layer.
    """
    return attach(job, whole_layers(job, lambda _: job.section.uniform_bits))
