"""What the evaluate stage writes: the quantized model against the full-precision one on the same samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairquant.artifacts import write_text
from fairquant.errors import ArtifactError
from fairquant.evaluate import gaps
from fairquant.evaluate.change import compare
from fairquant.evaluate.groups import defined
from fairquant.evaluate.summary import metric_keys, summarise
from fairquant.predictions import Predictions, SplitPredictions

GAPS = ("eopp1", "eopp0", "eodd", "dp_difference", "equal_opportunity", "equalized_odds", "predictive_equality")


def evaluation(
    before: Predictions, after: Predictions, *, parity: bool = True, positive_class: str | None = None
) -> dict[str, Any]:
    """Return what compression changed, as a nested dict for metrics/evaluate.json.

    Args:
        before: the full-precision model's predictions of ``val`` and ``test``.
        after: the quantized model's predictions of the same samples.
        parity: False leaves out the gaps between groups.
        positive_class: see ``summary.summarise``.

    Returns:
        ``compare_split`` of the test split, with ``overall``, ``worst_group`` and ``gap`` of the validation split
        under ``val``: what may be looked at when choosing between settings.

    Raises:
        ArtifactError: the two were not made on the same samples, classes and groups.
    """
    if (before.classes, before.groups) != (after.classes, after.groups):
        raise ArtifactError("predictions before and after: got other classes or groups; allowed: the same (dvc repro)")
    names: dict[str, Any] = {"classes": before.classes, "groups": before.groups}
    options: dict[str, Any] = {"parity": parity, "positive_class": positive_class}
    with gaps.each_warning_once():
        test, val = (compare_split(before[split], after[split], **names, **options) for split in ("test", "val"))
    return test | {"val": {key: val[key] for key in ("overall", "worst_group", "gap") if key in val}}


def compare_split(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    parity: bool = True,
    positive_class: str | None = None,
) -> dict[str, Any]:
    """Return what compression changed, on one split.

    Args:
        before: predictions of the full-precision model.
        after: predictions of the quantized model on the same samples.
        classes: K class names.
        groups: G group names.
        parity: False leaves out the gaps between groups.
        positive_class: see ``summary.summarise``.

    Returns:
        ``overall`` and ``worst_group`` accuracy {before, after, change}; ``gap`` {before, after}, each with every gap
        by name; ``group`` by name {n, before, after, change, flips}; ``flips`` {count, share}: predictions that
        differ; and ``quantized``, the full summary of ``after``. ``worst_group`` compares the worst group before
        with the worst group after, whichever they are.

    Raises:
        ArtifactError: the two were not made on the same samples.
    """
    change = compare(before, after, groups=groups)
    names: dict[str, Any] = {"classes": classes, "groups": groups, "parity": parity, "positive_class": positive_class}
    old, new = summarise(before, **names), summarise(after, **names)
    result: dict[str, Any] = {
        "overall": _pair(old["overall_acc"], new["overall_acc"]),
        "worst_group": _pair(old["worst_acc"], new["worst_acc"]),
    }
    if parity:
        result["gap"] = {"before": _gaps(old), "after": _gaps(new)}
    result["group"] = {
        key: {"n": int(change.counts[g])}
        | _pair(defined(change.before[g]), defined(change.after[g]))
        | {"flips": int(change.flips[g])}
        for g, key in enumerate(metric_keys(groups))
    }
    flips, n = int(change.flips.sum()), int(change.counts.sum())
    result["flips"] = {"count": flips, "share": flips / n if n else None}
    return result | {"quantized": new}


def write_plots(folder: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write the tables behind the plots of ``evaluation``'s result ``metrics`` into ``folder``.

    ``accuracy_before.csv`` and ``accuracy_after.csv`` (group, accuracy), ``gap.csv`` (metric, model, value; the header
    alone without parity). Undefined values are left out.
    """
    target = Path(folder)
    models = {"full precision": "before", "quantized": "after"}
    for when in models.values():
        rows = [[group, values[when]] for group, values in metrics["group"].items()]
        _write_csv(target / f"accuracy_{when}.csv", ["group", "accuracy"], rows)
    rows = [
        [metric, model, metrics["gap"][when][metric]]
        for metric in metrics.get("gap", {}).get("before", {})
        for model, when in models.items()
    ]
    _write_csv(target / "gap.csv", ["metric", "model", "value"], rows)


def _gaps(summary: Mapping[str, Any]) -> dict[str, float | None]:
    return dict(summary["acc_gap"]) | {name: summary[name] for name in GAPS if name in summary}


def _pair(before: float | None, after: float | None) -> dict[str, float | None]:
    change = None if before is None or after is None else after - before
    return {"before": before, "after": after, "change": change}


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(
        [f"{item:.6g}" if isinstance(item, float) else item for item in row] for row in rows if None not in row
    )
    write_text(path, out.getvalue())
