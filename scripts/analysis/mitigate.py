"""Post-processing of a measured point: decisions by group, fitted on its validation predictions alone.

Every number is the expectation over the decisions that are drawn by lot (``fairquant.evaluate.mitigation``), so there
are no losses, no intervals and no tests over samples; nothing is measured on the validation split, which the method
has seen.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fairquant.config import Config
from fairquant.evaluate.gaps import large_enough
from fairquant.evaluate.mitigation import mitigated
from fairquant.predictions import Predictions
from fairquant.report.curves import ByGroup, CurveRow

UNMEASURED: dict[str, Any] = {
    **{f"val_{what}_after": None for what in ("overall", "worst")},
    **{f"{what}_change_{end}": None for what in ("overall", "worst") for end in ("low", "high")},
    **{name: {} for name in ("val_group_after", "test_loss_change", "val_loss_change", "predicted")},
    "harmed": (),
}
"""Columns that post-processing leaves empty."""


def postprocessed(name: str, row: CurveRow, after: Predictions, config: Config) -> CurveRow:
    """Return the row of ``row``'s model with post-processor ``name``.

    Args:
        name: a plug-in of kind ``postprocess``.
        row: the point that is post-processed; size, settings and full precision stay.
        after: its predictions on val and test.
        config: options, positive class and smallest group.

    Raises:
        ConfigError: other than two classes.
    """
    start = time.perf_counter()
    section, groups = config.evaluate, after.groups
    counted = large_enough(after["test"].groups, groups=groups, minimum=section.min_group_size)
    methods = {name: config.options("postprocess", name)}
    found = mitigated({"after": after}, methods=methods, section=section, counted=counted)[name]["after"]
    accuracy: ByGroup = {group: values["accuracy"] for group, values in found["group"].items()}
    known = [(value, group) for (group, value), large in zip(accuracy.items(), counted, strict=True)
             if large and value is not None]  # fmt: skip
    gap = found.get("gap", {})
    return replace(
        row,
        **UNMEASURED,
        test_overall_after=found["overall"],
        test_worst_after=found["worst_group"],
        test_worst_group=min(known, key=lambda item: item[0])[1] if known else "",
        test_gap_after=gap.get("max_minus_min"),
        test_eodd_after=gap.get("eodd"),
        test_group_after=accuracy,
        seconds=round(time.perf_counter() - start, 3),
    )
