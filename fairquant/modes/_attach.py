"""The step all modes share: quantizers on the job's model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairquant.modes._job import QuantizeJob, QuantizeResult
from fairquant.train.history import History

if TYPE_CHECKING:
    from fairquant.allocate.bitmap import BitMap


def attach(job: QuantizeJob, bits: BitMap) -> QuantizeResult:
    """Attach quantizers of widths ``bits`` to the job's model on its device; nothing is trained."""
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
    return QuantizeResult(job.model, History(groups=tuple(job.store.group_names)))
