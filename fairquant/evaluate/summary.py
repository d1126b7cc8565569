"""All metrics of one split as a nested dict of plain numbers; every value stands under its group's or class's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairquant.errors import ConfigError, DataError
from fairquant.evaluate import gaps
from fairquant.evaluate.groups import GroupTable, defined
from fairquant.predictions import SplitPredictions

BINARY_RATES = ("selection_rate", "tpr", "fpr", "tnr")
GAPS = ("eopp1", "eopp0", "eodd", "dp_difference", "equal_opportunity", "equalized_odds", "predictive_equality")
"""Gaps that stand beside those of accuracy, where they were computed."""


def summarise(
    predictions: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    parity: bool = True,
    positive_class: str | None = None,
    counted: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return the metrics of one split; what is undefined is None, with one warning that names it.

    Args:
        predictions: logits, labels and groups of the split.
        classes: K class names.
        groups: G group names.
        parity: False leaves out every gap between groups.
        positive_class: class of the binary metrics, one-vs-rest; None means the second of two classes, and no
            binary metrics with more.
        counted: which of the G groups count in average, worst group and gaps (``gaps.large_enough``); None means all.

    Returns:
        ``overall_acc``, ``avg_acc``, ``worst_acc``, ``worst_group``, ``acc_gap``, ``eopp1``, ``eopp0``, ``eodd``,
        with a positive class ``dp_difference``, ``dp_ratio``, ``equal_opportunity``, ``equalized_odds``,
        ``predictive_equality``; ``group`` and ``class`` by name. Shares are in [0, 1].

    Raises:
        ConfigError: ``positive_class`` is not a class.
        DataError: a label or group has no name.
    """
    positive = positive_index(positive_class, classes)
    table = GroupTable.count(
        predictions.labels, predictions.predicted, predictions.groups, classes=classes, groups=groups
    )
    return summarise_table(table, positive=positive, parity=parity, counted=counted)


def summarise_table(
    table: GroupTable, *, positive: int | None, parity: bool = True, counted: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Return ``summarise``'s metrics of counts; ``positive`` is the number of the positive class, if there is one."""
    counting = table.only(counted)
    worst = gaps.worst_group(counting)
    summary: dict[str, Any] = {
        "overall_acc": defined(table.overall_accuracy),
        "avg_acc": gaps.avg_accuracy(counting),
        "worst_acc": None if worst is None else float(np.nanmin(counting.accuracy)),
        "worst_group": worst,
    }
    if parity:
        summary |= _parity(counting, positive)
    summary["group"] = _groups(table, positive)
    summary["class"] = _classes(table)
    return summary


def flat_gaps(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return every gap of a ``summarise`` result with parity, by name."""
    return dict(summary["acc_gap"]) | {name: summary[name] for name in GAPS if name in summary}


def positive_index(positive_class: str | None, classes: Sequence[str]) -> int | None:
    """Return the positive class's number, or None where there is none."""
    if positive_class is None:
        return 1 if len(classes) == 2 else None
    if positive_class not in classes:
        raise ConfigError(f"evaluate.positive_class: got {positive_class!r}; allowed: null | {' | '.join(classes)}")
    return list(classes).index(positive_class)


def metric_keys(names: Sequence[str]) -> list[str]:
    """Return names fit to be keys of a metrics file: DVC separates levels with ``.``, so it becomes ``·``.

    >>> metric_keys(["female × <60", "0.5-1.0"])
    ['female × <60', '0·5-1·0']
    """
    keys = [name.replace(".", "·") for name in names]
    if len(set(keys)) != len(keys):
        twice = next(name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1)
        raise DataError(f"names: got {twice!r} in two spellings; allowed: names that differ by more than '.' and '·'")
    return keys


def pair(before: float | None, after: float | None) -> dict[str, float | None]:
    """Return a value of two models and its change; None where one is undefined.

    >>> pair(0.5, 0.75), pair(None, 0.75)["change"]
    ({'before': 0.5, 'after': 0.75, 'change': 0.25}, None)
    """
    change = None if before is None or after is None else after - before
    return {"before": before, "after": after, "change": change}


def _parity(table: GroupTable, positive: int | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "acc_gap": {"avg_minus_worst": gaps.avg_minus_worst(table), "max_minus_min": gaps.max_minus_min(table)},
        "eopp1": gaps.eopp1(table),
        "eopp0": gaps.eopp0(table),
        "eodd": gaps.eodd(table),
    }
    if positive is not None:
        values |= {
            "dp_difference": gaps.dp_difference(table, positive),
            "dp_ratio": gaps.dp_ratio(table, positive),
            "equal_opportunity": gaps.equal_opportunity(table, positive),
            "equalized_odds": gaps.equalized_odds(table, positive),
            "predictive_equality": gaps.predictive_equality(table, positive),
        }
    return values


def _groups(table: GroupTable, positive: int | None) -> dict[str, Any]:
    columns = {"accuracy": table.accuracy}
    if positive is not None:
        columns |= {rate: getattr(table, rate)[:, positive] for rate in BINARY_RATES}
    for rate, values in columns.items():
        cells = [f"group {table.groups[g]!r}" for g in np.flatnonzero(np.isnan(values))]
        gaps.warn_undefined(f"group {rate}", rate, cells, "null")
    rows = {}
    for g, key in enumerate(metric_keys(table.groups)):
        rates = {rate: defined(values[g]) for rate, values in columns.items()}
        rows[key] = {"n": round(float(table.counts[g]))} | rates
    return rows


def _classes(table: GroupTable) -> dict[str, Any]:
    accuracy, counts = table.class_accuracy, table.class_counts
    cells = [f"class {table.classes[k]!r}" for k in np.flatnonzero(counts == 0)]
    gaps.warn_undefined("class accuracy", "accuracy", cells, "null")
    keys = metric_keys(table.classes)
    return {key: {"n": round(float(counts[k])), "accuracy": defined(accuracy[k])} for k, key in enumerate(keys)}
