"""uniform: one width for every layer but the protected ones, without training; the baseline of every comparison."""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize at ``section.uniform_bits``; layers of ``protect`` keep its width.

    Step sizes are one per layer where the assigned widths are per_tensor, else one per out channel: a width for every
    single weight says nothing when all are equal. Raises ``ConfigError`` for a protection that matches no layer.
    """
    import numpy as np

    from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
    from fairquant.allocate.protect import protected_widths
    from fairquant.models.layers import quantizable_layers

    shapes = {name: tuple(m.get_parameter("weight").shape) for name, m in quantizable_layers(job.model).items()}
    held = protected_widths(job.protect, list(shapes), job.roles)
    granularity: Granularity = "per_tensor" if job.bits.granularity == "per_tensor" else "per_channel"
    widths = {
        name: np.full(unit_shape(granularity, shape), held.get(name, job.section.uniform_bits), dtype=np.uint8)
        for name, shape in shapes.items()
    }
    return attach(job, BitMap(granularity, widths))
