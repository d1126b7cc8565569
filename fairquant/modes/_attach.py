"""The step all modes share: quantizers on the job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.train.history import History

if TYPE_CHECKING:
    from fairquant.allocate.bitmap import BitMap


def attach(job: QuantizeJob, bits: BitMap) -> QuantizeResult:
    """Attach quantizers of widths ``bits`` to the job's model on its device; nothing is trained."""
    import torch

    from fairquant.quantize.attach import quantize_model

    job.model.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    quantize_model(job.model, bits, scale=job.section.scale, percentile=job.section.percentile)
    return QuantizeResult(job.model.eval(), History(groups=tuple(job.store.group_names)))
