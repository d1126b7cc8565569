"""Small suites with chosen numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairquant.report.suite import Run, Suite


def evaluate(overall: float, worst: float) -> dict[str, Any]:
    """metrics/evaluate.json with these accuracies after compression; full precision is 5 points better."""

    def pair(after: float) -> dict[str, float]:
        return {"before": after + 0.05, "after": after, "change": -0.05}

    best = 2 * overall - worst
    return {
        "overall": pair(overall),
        "worst_group": pair(worst),
        "gap": {when: {"max_minus_min": overall - worst, "eodd": 0.2} for when in ("before", "after")},
        "group": {"female × <60": {"n": 40, **pair(best)}, "50 % & more": {"n": 10, **pair(worst)}},
        "cost": {"packed_mb": 1.25, "ratio": 6.0, "avg_bits": {"by_parameter": 5.2}},
    }


def suite(runs: Mapping[str, Sequence[tuple[int, float, float]]], *, reference: str | None = "ref",
          reasons: Mapping[str, str] | None = None) -> Suite:  # fmt: skip
    """A suite from method → (seed, overall, worst group accuracy); methods with a reason have no runs."""
    made = tuple(
        Run(method, seed, evaluate(overall, worst)) for method, rows in runs.items() for seed, overall, worst in rows
    )
    return Suite((*runs, *(reasons or {})), made, reasons or {}, reference, {"code": "commit 0123456789ab"})
