"""How sure the numbers are: percentile bootstrap intervals of two models' metrics on the same samples.

Samples are drawn anew with replacement and every metric is computed again (Efron 1979, Ann. Statist. 7:1-26); the
interval spans the middle ``confidence`` of the resamples' values (Efron & Tibshirani 1993, ch. 13). It is paired: one
resample serves both models, so that the interval of the change is not widened by what both find difficult.

Every metric here derives from counts of (group, true class, class before, class after). Drawing n samples with
replacement and counting them is drawing those counts from a multinomial distribution, exactly; so no sample is ever
touched, and the work grows with the number of occupied cells, not with the number of samples.

Stratified by group: a resample keeps the size of every group. The sizes say how the test set was put together, not
how well the model serves anybody (they are ancillary), so the metrics of a group are judged given its size; and a
group of five would otherwise be absent from every 150th resample, which changes what a gap means. The interval of the
overall accuracy is therefore one for this mix of groups. True classes are not fixed: how often a group has a class is
part of what a sample of its members tells.

A gap is a maximum minus a minimum, never negative, and noise only ever widens it: where the groups are nearly equal
the interval of a gap lies above zero, and may lie above the gap itself. It shows how far the gap is known, and is no
test of "no gap"; the interval of the *change* has this bias on both sides, where it largely cancels. Percentile
intervals of few samples are a little narrow: in simulations the 95 % interval of a group's change of accuracy held the
true change in 93.7 % of cases with 150 samples, in 95.2 % with 600.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fairquant.errors import ConfigError, DataError
from fairquant.evaluate.change import require_same_samples
from fairquant.evaluate.gaps import NAMED
from fairquant.evaluate.groups import Floats, GroupTable, Ints, ratio
from fairquant.evaluate.summary import metric_keys, positive_index
from fairquant.predictions import SplitPredictions

LOG = logging.getLogger(__name__)
CHUNK = 2**20
"""How many numbers an array of a chunk of resamples may hold: 8 MB, whatever the number of classes."""

Path = tuple[str, ...]
Values = dict[Path, Floats]
"""A metric's place in the result -> its value in each resample, (R,); NaN where undefined."""


@dataclass(frozen=True)
class _Cells:
    """The M occupied cells of (group, true class, class before, class after) and how many samples each holds."""

    group: Ints
    truth: Ints
    guesses: tuple[Ints, Ints]
    counts: Ints
    n_groups: int
    n_classes: int

    @property
    def sizes(self) -> Ints:
        """Samples of each group, (G,)."""
        return np.bincount(self.group, weights=self.counts, minlength=self.n_groups).astype(np.int64)


@dataclass(frozen=True)
class _Tally:
    """What one model's metrics need of R resamples, arrays (G, K, R): samples by group and class."""

    truth: Ints
    predicted: Ints
    right: Ints
    sizes: Ints


def intervals(
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    parity: bool,
    positive_class: str | None,
    resamples: int,
    confidence: float,
    seed: int,
    counted: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Return a percentile bootstrap interval of every metric of both models and of its change.

    Args:
        before: predictions of the full-precision model.
        after: predictions of the quantized model on the same samples.
        classes: K class names.
        groups: G group names.
        parity: False leaves out the gaps between groups.
        positive_class: see ``summary.summarise``.
        resamples: how many, >= 1; 1,000 or more for intervals at 95 %.
        confidence: share of the resamples inside, in (0, 1).
        seed: of the resamples; the order of the groups does not matter to them.
        counted: (G,), False for groups that do not count in the worst group and the gaps; None counts all.

    Returns:
        ``overall`` and ``worst_group`` accuracy, ``gap`` by name, accuracy of ``group`` by name, each
        {before, after, change}, each {low, high}. The worst group is determined anew in each resample. A resample in
        which a metric is undefined is left out; with fewer than half of them left, low and high are null, and one
        warning names all such metrics.

    Raises:
        ArtifactError: the two were not made on the same samples.
        ConfigError: ``resamples``, ``confidence`` or ``positive_class`` is out of range.
        DataError: a label or group has no name, or ``counted`` is not one per group.

    Example:
        >>> logits = np.eye(2, dtype=np.float32)[[0, 1, 1, 1]]
        >>> part = SplitPredictions(logits, np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), np.arange(4))
        >>> settings = {"parity": False, "positive_class": None, "resamples": 200, "confidence": 0.95, "seed": 0}
        >>> result = intervals(part, part, classes=["a", "b"], groups=["x", "y"], **settings)
        >>> result["group"]["x"]["before"], result["group"]["y"]["before"], result["group"]["y"]["change"]
        ({'low': 1.0, 'high': 1.0}, {'low': 0.0, 'high': 1.0}, {'low': 0.0, 'high': 0.0})
    """
    require_same_samples(before, after)
    _check(resamples, confidence, counted, len(groups))
    positive = positive_index(positive_class, classes)
    cells = _joint(before, after, classes, groups)
    counts_in_gaps = np.ones(len(groups), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    by_model: tuple[list[Values], list[Values]] = ([], [])
    random = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, CHUNK // max(len(cells.counts), len(groups) * len(classes), 1))
    for start in range(0, resamples, chunk):
        drawn = _draw(cells, groups, random, min(chunk, resamples - start))
        for tally, values in zip(_tallies(cells, drawn), by_model, strict=True):
            part = _accuracies(tally, groups, counts_in_gaps)
            values.append(part | _gaps(tally, counts_in_gaps, positive) if parity else part)
    old, new = (_join(values) for values in by_model)
    return _tree(old, new, confidence)


def _check(resamples: int, confidence: float, counted: Sequence[bool] | None, n_groups: int) -> None:
    if resamples < 1:
        raise ConfigError(f"evaluate.bootstrap.resamples: got {resamples}; allowed: >= 1 for intervals")
    if not 0 < confidence < 1:
        raise ConfigError(f"evaluate.bootstrap.confidence: got {confidence}; allowed: > 0 and < 1")
    if counted is not None and len(counted) != n_groups:
        raise DataError(f"metrics: got {len(counted)} marks of groups that count; allowed: {n_groups}, one per group")


def _joint(before: SplitPredictions, after: SplitPredictions, classes: Sequence[str], groups: Sequence[str]) -> _Cells:
    guesses = before.predicted, after.predicted
    for guess in guesses:  # refuses numbers without a name
        GroupTable.count(before.labels, guess, before.groups, classes=classes, groups=groups)
    shape = (len(groups), *(len(classes),) * 3)
    codes = np.ravel_multi_index((before.groups, before.labels, *guesses), shape)
    occupied, counts = np.unique(codes, return_counts=True)
    group, truth, old, new = (np.asarray(axis, np.int64) for axis in np.unravel_index(occupied, shape))
    return _Cells(group, truth, (old, new), counts.astype(np.int64), len(groups), len(classes))


def _draw(cells: _Cells, groups: Sequence[str], random: np.random.Generator, resamples: int) -> Ints:
    """Draw the cells' counts ``resamples`` times, (M, R); groups in the order of their names, not of their numbers."""
    drawn = np.empty((len(cells.counts), resamples), dtype=np.int64)
    for g in sorted(range(len(groups)), key=groups.__getitem__):
        member = np.flatnonzero(cells.group == g)
        if member.size:
            counts = cells.counts[member]
            drawn[member] = random.multinomial(counts.sum(), counts / counts.sum(), size=resamples).T
    return drawn


def _tallies(cells: _Cells, drawn: Ints) -> tuple[_Tally, _Tally]:
    """Sum the drawn cells by group and true class, by group and predicted class, and those predicted right."""
    truth = _sum(cells, cells.truth, drawn)
    before, after = (
        _Tally(truth, _sum(cells, guess, drawn), _sum(cells, guess, drawn, guess == cells.truth), cells.sizes)
        for guess in cells.guesses
    )
    return before, after


def _sum(cells: _Cells, column: Ints, drawn: Ints, where: npt.NDArray[np.bool_] | None = None) -> Ints:
    """Sum ``drawn`` (M, R), only the cells of ``where``, by group and class ``column`` into (G, K, R)."""
    member = np.arange(len(column)) if where is None else np.flatnonzero(where)
    row = cells.group[member] * cells.n_classes + column[member]
    shape = (cells.n_groups * cells.n_classes, len(column))
    total = sparse.csr_array((np.ones(len(member), np.int64), (row, member)), shape=shape) @ drawn
    return np.asarray(total, dtype=np.int64).reshape(cells.n_groups, cells.n_classes, drawn.shape[1])


def _accuracies(tally: _Tally, groups: Sequence[str], counted: npt.NDArray[np.bool_]) -> Values:
    right = tally.right.sum(axis=1)
    accuracy = ratio(right, tally.sizes[:, None])
    worst: Floats = np.fmin.reduce(accuracy[counted], axis=0, initial=np.nan)
    values: Values = {("overall",): ratio(right.sum(axis=0), tally.sizes.sum()), ("worst_group",): worst}
    return values | {("group", key): accuracy[g] for g, key in enumerate(metric_keys(groups))}


def _gaps(tally: _Tally, counted: npt.NDArray[np.bool_], positive: int | None) -> Values:
    """Return every gap of ``gaps`` that the evaluation reports, by the same definitions, R resamples at once."""
    present = counted & (tally.sizes > 0)
    truth, predicted, right = tally.truth[present], tally.predicted[present], tally.right[present]
    sizes = tally.sizes[present][:, None, None]
    accuracy = ratio(right.sum(axis=1), sizes[:, 0])
    spread = _spread(accuracy)
    lowest: Floats = np.fmin.reduce(accuracy, axis=0, initial=np.nan)
    tpr = _spread(ratio(right, truth))
    fpr = _spread(ratio(predicted - right, sizes - truth))  # TNR = 1 - FPR spreads as far
    values = {
        "avg_minus_worst": np.where(np.isnan(spread), np.nan, ratio(accuracy.sum(axis=0), len(accuracy)) - lowest),
        "max_minus_min": spread,
        "eopp1": _class_mean(tpr),
        "eopp0": _class_mean(fpr),
        "eodd": _class_mean(tpr + fpr),
    }
    if positive is not None:
        values |= {
            "dp_difference": _spread(ratio(predicted[:, positive], sizes[:, 0])),
            "equal_opportunity": tpr[positive],
            "equalized_odds": np.maximum(tpr[positive], fpr[positive]),  # NaN where either is
            "predictive_equality": fpr[positive],
        }
    return {("gap", name): value for name, value in values.items()}


def _spread(values: Floats) -> Floats:
    """Return max - min over the first axis, the groups, where a value is defined; NaN below two of them."""
    high: Floats = np.fmax.reduce(values, axis=0, initial=np.nan)
    low: Floats = np.fmin.reduce(values, axis=0, initial=np.nan)
    return np.where((~np.isnan(values)).sum(axis=0) >= 2, high - low, np.nan)


def _class_mean(gaps: Floats) -> Floats:
    """Return the mean over the first axis, the classes, where a gap is defined; NaN where none is."""
    return ratio(np.nansum(gaps, axis=0), (~np.isnan(gaps)).sum(axis=0))


def _join(chunks: Sequence[Values]) -> Values:
    return {path: np.concatenate([chunk[path] for chunk in chunks]) for path in chunks[0]}


def _tree(old: Values, new: Values, confidence: float) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    undefined: list[str] = []
    for path, before in old.items():
        columns = {"before": before, "after": new[path], "change": new[path] - before}
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = {name: _percentiles(values, confidence) for name, values in columns.items()}
        if any(interval["low"] is None for interval in node[path[-1]].values()):
            undefined.append(" ".join([path[0], *map(repr, path[1:])]))
    if undefined:
        more = f" and {len(undefined) - NAMED} more" if len(undefined) > NAMED else ""
        where = ", ".join(undefined[:NAMED])
        LOG.warning("interval: undefined in over half of the resamples: %s%s; null", where, more)
    return tree


def _percentiles(values: Floats, confidence: float) -> Mapping[str, float | None]:
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values):
        return {"low": None, "high": None}
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}
