"""Rows of budget curves with chosen numbers."""

from __future__ import annotations

from typing import Any

from fairquant.report.curves import CurveRow


def row(method: str = "uniform", budget: float = 2.0, seed: int = 0, **changes: Any) -> CurveRow:
    """A point: full precision has 90 % overall and 80 % in the worst group, "dark"; ``worst`` sets the accuracy after.

    The other group keeps its 95 %, so that gap and overall accuracy follow.
    """
    worst = changes.pop("worst", 0.7)
    values: dict[str, Any] = {
        "task": "faces by tone, resnet18",
        "seed": seed,
        "method": method,
        "tuned": False,
        "budget": budget,
        "settings": "reducer=max 'assign.bits=[2,4,8]'",
        "classifier": "0123456789ab",
        "packed_mb": budget / 10,
        "fp32_mb": 3.2,
        "avg_bits": budget,
        "test_worst_group_before": "dark",
        "test_worst_group": "dark",
        "test_gap_before": 0.15,
        "test_gap_after": 0.95 - worst,
        "test_eodd_before": 0.2,
        "test_eodd_after": None,
        "harmed": (),
        "overall_change_low": -0.1,
        "overall_change_high": 0.1,
        "worst_change_low": worst - 0.8 - 0.02,
        "worst_change_high": worst - 0.8 + 0.02,
        "seconds": 1.5,
    }
    for split in ("test", "val"):
        values[f"{split}_overall_before"], values[f"{split}_overall_after"] = 0.9, worst + 0.1
        values[f"{split}_worst_before"], values[f"{split}_worst_after"] = 0.8, worst
        values[f"{split}_group_before"] = {"light": 0.95, "dark": 0.8}
        values[f"{split}_group_after"] = {"light": 0.95, "dark": worst}
        values[f"{split}_loss_change"] = {"light": -0.001, "dark": 0.25}
    return CurveRow(**(values | changes))
