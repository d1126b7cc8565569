"""fair_static: the assigned widths, after training (Wørgaard & Selvan 2026, arXiv 2602.23192)."""

from __future__ import annotations

from fairquant.modes._attach import attach
from fairquant.modes._job import QuantizeJob, QuantizeResult


def quantize(job: QuantizeJob) -> QuantizeResult:
    """Quantize at the assigned widths; nothing is trained."""
    return attach(job, job.bits)
