"""What the evaluate stage writes: the quantized model against the full-precision one on the same samples."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairquant.artifacts import CsvWriter, write_text
from fairquant.config.schema import EvaluateSection
from fairquant.errors import ArtifactError
from fairquant.evaluate import gaps
from fairquant.evaluate.audit import Grouping, audit
from fairquant.evaluate.bootstrap import intervals
from fairquant.evaluate.calibration import calibration
from fairquant.evaluate.change import compare
from fairquant.evaluate.groups import defined
from fairquant.evaluate.harm import harm
from fairquant.evaluate.loss import excessive_loss
from fairquant.evaluate.mitigation import mitigated
from fairquant.evaluate.summary import flat_gaps, metric_keys, pair, positive_index, summarise
from fairquant.predictions import Predictions, SplitPredictions


def evaluation(
    before: Predictions,
    after: Predictions,
    *,
    section: EvaluateSection,
    groupings: Sequence[Grouping] = (),
    postprocess: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what compression changed, as a nested dict for metrics/evaluate.json.

    Args:
        before: the full-precision model's predictions of ``val`` and ``test``.
        after: the quantized model's predictions of the same samples.
        section: what is computed and how.
        groupings: further groupings of the samples (``audit.groupings``).
        postprocess: options of each method of post-processing, by its name.

    Returns:
        ``compare_split`` of the test split, each row of ``group`` with ``counted``; ``interval`` of these values
        (``bootstrap.intervals``; absent without resamples); ``harm`` and ``harmed_groups``; ``excessive_loss``;
        ``audit``; AUC and calibration error in the rows of ``quantized.group``; and ``overall``, ``worst_group`` and
        ``gap`` of the validation split under ``val``: what may be looked at when choosing between settings. Which
        groups are large enough to count is decided on the test split, for both. With post-processing also
        ``postprocess`` (``mitigation.mitigated``).

    Raises:
        ArtifactError: the two were not made on the same samples, classes and groups.
        ConfigError: ``section.positive_class`` is not a class, or there is post-processing of other than two classes.
    """
    if (before.classes, before.groups) != (after.classes, after.groups):
        raise ArtifactError("predictions before and after: got other classes or groups; allowed: the same (dvc repro)")
    members = before["test"].groups
    options: dict[str, Any] = {"classes": before.classes, "groups": before.groups}
    with gaps.each_warning_once():
        options["counted"] = gaps.large_enough(members, groups=before.groups, minimum=section.min_group_size)
        options |= {"parity": section.parity, "positive_class": section.positive_class}
        test, val = (compare_split(before[split], after[split], **options) for split in ("test", "val"))
        _mark_counted(test["group"], options["counted"])
        test |= _statistics(before["test"], after["test"], section=section, **options)
        test["audit"] = audit(
            before["test"], after["test"], groupings=groupings, classes=before.classes, section=section
        )
        _add_calibration(test["quantized"]["group"], after, section.positive_class)
        if postprocess:
            models = {"before": before, "after": after}
            test["postprocess"] = mitigated(models, methods=postprocess, section=section, counted=options["counted"])
    return test | {"val": {key: val[key] for key in ("overall", "worst_group", "gap") if key in val}}


def compare_split(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    parity: bool = True,
    positive_class: str | None = None,
    counted: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return what compression changed, on one split.

    Args:
        before: predictions of the full-precision model.
        after: predictions of the quantized model on the same samples.
        classes: K class names.
        groups: G group names.
        parity: False leaves out the gaps between groups.
        positive_class: see ``summary.summarise``.
        counted: see ``summary.summarise``.

    Returns:
        ``overall`` and ``worst_group`` accuracy {before, after, change}; ``gap`` {before, after}, each with every gap
        by name; ``group`` by name {n, before, after, change, flips}; ``flips`` {count, share}: predictions that
        differ; and ``quantized``, the full summary of ``after``. ``worst_group`` compares the worst group before
        with the worst group after, whichever they are.

    Raises:
        ArtifactError: the two were not made on the same samples.
    """
    change = compare(before, after, groups=groups)
    options: dict[str, Any] = {"classes": classes, "groups": groups, "parity": parity, "counted": counted}
    old, new = (summarise(part, positive_class=positive_class, **options) for part in (before, after))
    result: dict[str, Any] = {
        "overall": pair(old["overall_acc"], new["overall_acc"]),
        "worst_group": pair(old["worst_acc"], new["worst_acc"]),
    }
    if parity:
        result["gap"] = {"before": flat_gaps(old), "after": flat_gaps(new)}
    result["group"] = {
        key: {"n": int(change.counts[g])}
        | pair(defined(change.before[g]), defined(change.after[g]))
        | {"flips": int(change.flips[g])}
        for g, key in enumerate(metric_keys(groups))
    }
    flips, n = int(change.flips.sum()), int(change.counts.sum())
    result["flips"] = {"count": flips, "share": flips / n if n else None}
    return result | {"quantized": new}


def write_plots(folder: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write the tables behind the plots of ``evaluation``'s result ``metrics`` into ``folder``.

    ``accuracy_before.csv`` and ``accuracy_after.csv`` (group, accuracy, low, high), ``gap.csv`` (metric, model, value,
    low, high; the header alone without parity). Rows of undefined values are left out; ``low`` and ``high``, the
    interval of the value, are empty where there is none.
    """
    target = Path(folder)
    models = {"full precision": "before", "quantized": "after"}
    interval = metrics.get("interval", {})
    groups, bounds = metrics["group"], interval.get("group", {})
    for when in models.values():
        rows = [
            [group, values[when], *_ends(bounds.get(group), when)]
            for group, values in groups.items()
            if values[when] is not None
        ]
        _write_csv(target / f"accuracy_{when}.csv", ["group", "accuracy", "low", "high"], rows)
    found, bounds = metrics.get("gap", {}), interval.get("gap", {})
    rows = [
        [metric, model, found[when][metric], *_ends(bounds.get(metric), when)]
        for metric in found.get("before", {})
        for model, when in models.items()
        if found[when][metric] is not None
    ]
    _write_csv(target / "gap.csv", ["metric", "model", "value", "low", "high"], rows)


def _statistics(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    section: EvaluateSection,
    groups: Sequence[str],
    **options: Any,
) -> dict[str, Any]:
    """Return what says how sure the change is and whom it harms."""
    result: dict[str, Any] = {}
    if section.bootstrap.resamples:
        result["interval"] = intervals(before, after, groups=groups, **options, **section.bootstrap.model_dump())
    result |= harm(compare(before, after, groups=groups), significance=section.significance)
    return result | {"excessive_loss": excessive_loss(before, after, groups=groups, counted=options["counted"])}


def _mark_counted(rows: Mapping[str, dict[str, Any]], counted: Sequence[bool]) -> None:
    """Note in each group's row whether it counts in worst group and gaps; one without samples cannot."""
    for row, enough in zip(rows.values(), counted, strict=True):
        row["counted"] = enough and row["n"] > 0


def _add_calibration(rows: Mapping[str, dict[str, Any]], predictions: Predictions, positive_class: str | None) -> None:
    classes, groups = predictions.classes, predictions.groups
    positive = positive_index(positive_class, classes)
    for key, values in calibration(predictions["test"], classes=classes, groups=groups, positive=positive).items():
        rows[key].update(values)


def _ends(interval: Mapping[str, Any] | None, when: str) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (interval[when]["low"], interval[when]["high"])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(header)
    writer.writerows([f"{item:.6g}" if isinstance(item, float) else item for item in row] for row in rows)
    write_text(path, out.getvalue())
