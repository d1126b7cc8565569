"""Further groupings of the test samples: what compression did to groups the model was not compressed for.

A grouping is a column of the samples table, or the intersection of several: "sex × age_group" has the groups
"female × <60", "female × ≥60", ... Subgroups can lose where each single attribute shows nothing (Kearns et al. 2018,
"Preventing Fairness Gerrymandering").
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairquant.config.schema import EvaluateSection
from fairquant.data.groups import group_name
from fairquant.data.raw import natural_key
from fairquant.errors import ConfigError
from fairquant.evaluate.bootstrap import intervals
from fairquant.evaluate.change import GroupChange, compare
from fairquant.evaluate.gaps import large_enough
from fairquant.evaluate.groups import Floats, Ints, defined
from fairquant.evaluate.summary import metric_keys, pair
from fairquant.predictions import SplitPredictions

LOG = logging.getLogger(__name__)

OWN_COLUMNS = ("id", "label", "group", "split")
"""Columns of the samples table that are no attribute: names of samples, numbers and the split."""

UNKNOWN = "unknown"
"""The group of samples without a value."""

MOST_GROUPS = 500
"""A column with more values than this (a file name, a patient) is a mistake."""


@dataclass(frozen=True)
class Grouping:
    """One way to group all N samples of the store.

    Attributes:
        name: the columns, "sex × age_group".
        groups: names of the groups, value by value in natural order.
        members: int64 (N,), group of each row of the store.
    """

    name: str
    groups: tuple[str, ...]
    members: Ints


def groupings(wanted: Sequence[Sequence[str]], columns: Mapping[str, Sequence[str]]) -> tuple[Grouping, ...]:
    """Return the groupings of evaluate.audit.

    Args:
        wanted: column names of each grouping.
        columns: the samples table, each column with N values; an empty value makes the group "unknown".

    Raises:
        ConfigError: a column is unknown or makes too many groups; the text names what is allowed.

    Example:
        >>> (grouping,) = groupings([("sex", "age")], {"sex": ["m", "f", "m"], "age": ["10", "9", "9"]})
        >>> grouping.name, grouping.groups, grouping.members.tolist()
        ('sex × age', ('f × 9', 'm × 9', 'm × 10'), [2, 0, 1])
    """
    allowed = [column for column in columns if column not in OWN_COLUMNS]
    for name in (column for names in wanted for column in names):
        if name not in allowed:
            raise ConfigError(f"evaluate.audit: got column {name!r}; allowed: {' | '.join(allowed)}")
    for names in wanted:
        same = [list(other) for other in wanted if _key(other) == _key(names)]
        if len(same) > 1:
            raise ConfigError(
                f"evaluate.audit: got {same[0]} and {same[1]}, both called {_key(names)!r}; allowed: different names"
            )
    return tuple(_grouping(names, columns) for names in wanted)


def audit(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    groupings: Sequence[Grouping],
    classes: Sequence[str],
    section: EvaluateSection,
) -> dict[str, Any]:
    """Return what compression changed in the groups of each grouping, by its name.

    Args:
        before: predictions of the full-precision model.
        after: predictions of the quantized model on the same samples.
        groupings: of all rows of the store that ``indices`` of the predictions point to.
        classes: K class names.
        section: its ``min_group_size``, ``bootstrap`` and ``parity`` apply.

    Returns:
        Of each grouping ``worst_group`` accuracy {before, after, change}; with parity ``gap`` {before, after}, each
        {max_minus_min}; ``group`` {n, before, after, change, low, high, counted} of each group that has samples.
        ``low`` and ``high`` bound the change, where there are resamples. Groups that are too small (``counted``
        false) are left out of worst group and gap.

    Raises:
        ArtifactError: the two were not made on the same samples.
    """
    keys = metric_keys([grouping.name for grouping in groupings])
    return {
        key: _audit(*_regrouped(grouping, before, after), classes=classes, section=section, name=key)
        for key, grouping in zip(keys, groupings, strict=True)
    }


def _key(names: Sequence[str]) -> str:
    return metric_keys([group_name(names)])[0]


def _grouping(names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Grouping:
    rows = list(zip(*([value or UNKNOWN for value in columns[name]] for name in names), strict=True))
    distinct = sorted(set(rows), key=lambda values: [natural_key(value) for value in values])
    if len(distinct) > MOST_GROUPS:
        raise ConfigError(
            f"evaluate.audit: got {group_name(names)!r} with {len(distinct)} groups; allowed: at most {MOST_GROUPS}"
        )
    place = {values: number for number, values in enumerate(distinct)}
    members = np.array([place[values] for values in rows], np.int64)
    return Grouping(group_name(names), tuple(group_name(values) for values in distinct), members)


def _regrouped(
    grouping: Grouping, before: SplitPredictions, after: SplitPredictions
) -> tuple[tuple[str, ...], SplitPredictions, SplitPredictions]:
    """Return the groups that have samples, and both predictions grouped by them."""
    present, members = np.unique(grouping.members[before.indices], return_inverse=True)
    codes = members.astype(np.int64, copy=False)
    groups = tuple(grouping.groups[number] for number in present)
    return groups, dataclasses.replace(before, groups=codes), dataclasses.replace(after, groups=codes)


def _audit(
    groups: tuple[str, ...],
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    classes: Sequence[str],
    section: EvaluateSection,
    name: str,
) -> dict[str, Any]:
    change = compare(before, after, groups=groups)
    counted = large_enough(before.groups, groups=groups, minimum=section.min_group_size)
    result: dict[str, Any] = {"worst_group": pair(_lowest(change.before, counted), _lowest(change.after, counted))}
    if section.parity:
        if sum(counted) < 2:
            LOG.warning("evaluate.audit %s: gap undefined, fewer than two groups count; null", name)
        result["gap"] = {
            when: {"max_minus_min": _spread(values, counted)}
            for when, values in (("before", change.before), ("after", change.after))
        }
    bounds = _bounds(before, after, groups=groups, classes=classes, section=section)
    return result | {"group": _rows(change, counted, bounds)}


def _rows(
    change: GroupChange, counted: Sequence[bool], bounds: Mapping[str, dict[str, float | None]]
) -> dict[str, Any]:
    return {
        key: {"n": int(change.counts[g])}
        | pair(defined(change.before[g]), defined(change.after[g]))
        | bounds.get(key, {})
        | {"counted": counted[g]}
        for g, key in enumerate(metric_keys(change.groups))
    }


def _bounds(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    groups: Sequence[str],
    classes: Sequence[str],
    section: EvaluateSection,
) -> dict[str, dict[str, float | None]]:
    """Return {low, high} of the change of each group by key; nothing without resamples."""
    if section.bootstrap.resamples == 0:
        return {}
    options: dict[str, Any] = {"parity": False, "positive_class": None, **section.bootstrap.model_dump()}
    found = intervals(before, after, classes=classes, groups=groups, **options)
    return {key: interval["change"] for key, interval in found["group"].items()}


def _lowest(values: Floats, counted: Sequence[bool]) -> float | None:
    chosen = values[list(counted)]
    return float(chosen.min()) if chosen.size else None


def _spread(values: Floats, counted: Sequence[bool]) -> float | None:
    chosen = values[list(counted)]
    return float(chosen.max() - chosen.min()) if chosen.size >= 2 else None
