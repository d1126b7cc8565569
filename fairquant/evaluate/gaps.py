"""Differences between groups. Every function takes a ``GroupTable`` and returns a float, or None where undefined.

A rate is undefined in a group without samples (accuracy, selection rate), positives (TPR) or negatives (FPR, TNR).
Such a group is left out of the gap, and one warning names it; with fewer than two groups left the gap is None.
Sources: [A] Wørgaard & Selvan 2026, arXiv 2602.23192 (EOpp1, EOpp0, EOdd over classes); Hardt, Price & Srebro 2016
(equal opportunity, equalized odds); Feldman et al. 2015 (ratio, "disparate impact"); Corbett-Davies et al. 2017
(predictive equality). The binary family agrees with fairlearn wherever both are defined.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from fairquant.evaluate.groups import Floats, GroupTable, defined

LOG = logging.getLogger(__name__)
NAMED = 5
"""How many groups or cells a warning names before it counts the rest."""

LACKING = {
    "accuracy": "samples",
    "selection_rate": "samples",
    "tpr": "positives",
    "fpr": "negatives",
    "tnr": "negatives",
}


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Log each warning once inside the context: two models on the same samples lack the same positives."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = len(seen)
        seen.add(record.getMessage())
        return len(seen) > known

    LOG.addFilter(is_new)
    try:
        yield
    finally:
        LOG.removeFilter(is_new)


def large_enough(members: npt.ArrayLike, *, groups: Sequence[str], minimum: int) -> tuple[bool, ...]:
    """Return which groups count in worst group and gaps: those with ``minimum`` samples or more.

    One warning names the smaller ones. A group without any sample counts: its rates are undefined, and whoever asks
    for them says so.

    Args:
        members: (N,) group of each sample, in [0, G).
        groups: G names.
        minimum: samples, >= 1 (evaluate.min_group_size).

    Example:
        >>> large_enough([0, 0, 1], groups=["x", "y", "z"], minimum=1)
        (True, True, True)
    """
    counts = np.bincount(np.asarray(members, np.int64), minlength=len(groups)).tolist()
    enough = tuple(not 0 < n < minimum for n in counts)
    cells = [f"{name!r} ({n})" for name, n, large in zip(groups, counts, enough, strict=True) if not large]
    if cells:
        message = "evaluate.min_group_size: fewer than %d samples in %s; left out of worst group and gaps"
        LOG.warning(message, minimum, _some(cells))
    return enough


def avg_accuracy(table: GroupTable) -> float | None:
    """Unweighted mean of the groups' accuracies, over groups with samples."""
    accuracy = table.accuracy[table.counts > 0]
    return float(accuracy.mean()) if accuracy.size else None


def worst_group(table: GroupTable) -> str | None:
    """Name of the group of lowest accuracy (the first of equals)."""
    present = table.counts > 0
    return table.groups[int(np.argmin(np.where(present, table.accuracy, np.inf)))] if present.any() else None


def avg_minus_worst(table: GroupTable) -> float | None:
    """Accuracy gap: mean of the groups' accuracies minus the lowest, >= 0."""
    if _spread("acc_gap.avg_minus_worst", "accuracy", table.accuracy[:, None], table) is None:
        return None
    accuracy = table.accuracy[table.counts > 0]
    return float(accuracy.mean() - accuracy.min())


def max_minus_min(table: GroupTable) -> float | None:
    """Accuracy gap: highest minus lowest group accuracy, >= 0."""
    gaps = _spread("acc_gap.max_minus_min", "accuracy", table.accuracy[:, None], table)
    return None if gaps is None else float(gaps[0])


def eopp1(table: GroupTable) -> float | None:
    """EOpp1 [A]: mean over classes of max_g TPR - min_g TPR, one-vs-rest."""
    return _class_mean(_spread("eopp1", "tpr", table.tpr, table))


def eopp0(table: GroupTable) -> float | None:
    """EOpp0 [A]: mean over classes of max_g TNR - min_g TNR, one-vs-rest."""
    return _class_mean(_spread("eopp0", "tnr", table.tnr, table))


def eodd(table: GroupTable) -> float | None:
    """EOdd [A]: mean over classes of (TPR gap + FPR gap), one-vs-rest."""
    tpr = _spread("eodd", "tpr", table.tpr, table)
    fpr = _spread("eodd", "fpr", table.fpr, table)
    return None if tpr is None or fpr is None else _class_mean(tpr + fpr)


def dp_difference(table: GroupTable, positive: int) -> float | None:
    """Demographic parity difference: max_g - min_g of the share predicted ``positive``."""
    return _binary("dp_difference", "selection_rate", table, positive)


def dp_ratio(table: GroupTable, positive: int) -> float | None:
    """Demographic parity ratio (disparate impact): min_g / max_g of the share predicted ``positive``, in [0, 1]."""
    rates = table.selection_rate[:, positive]
    if _binary("dp_ratio", "selection_rate", table, positive) is None:
        return None
    if np.nanmax(rates) == 0:
        LOG.warning("dp_ratio: undefined, no group is predicted %r; null", table.classes[positive])
        return None
    return float(np.nanmin(rates) / np.nanmax(rates))


def equal_opportunity(table: GroupTable, positive: int) -> float | None:
    """Equal opportunity difference: max_g - min_g of the true positive rate."""
    return _binary("equal_opportunity", "tpr", table, positive)


def predictive_equality(table: GroupTable, positive: int) -> float | None:
    """Predictive equality difference: max_g - min_g of the false positive rate."""
    return _binary("predictive_equality", "fpr", table, positive)


def equalized_odds(table: GroupTable, positive: int) -> float | None:
    """Equalized odds difference: the larger of the TPR and the FPR difference."""
    tpr = _binary("equalized_odds", "tpr", table, positive)
    fpr = _binary("equalized_odds", "fpr", table, positive)
    return None if tpr is None or fpr is None else max(tpr, fpr)


def warn_undefined(metric: str, rate: str, cells: Sequence[str], consequence: str, *, unnamed: int = 0) -> None:
    """Log one line that names where ``rate`` is undefined: ``cells`` and ``unnamed`` more; nothing without cells."""
    if cells:
        where = _some(cells, unnamed)
        LOG.warning("%s: %s undefined (no %s) in %s; %s", metric, rate, LACKING[rate], where, consequence)


def _some(cells: Sequence[str], unnamed: int = 0) -> str:
    rest = unnamed + max(len(cells) - NAMED, 0)
    return ", ".join(cells[:NAMED]) + (f" and {rest} more" if rest else "")


def _binary(metric: str, rate: str, table: GroupTable, positive: int) -> float | None:
    gaps = _spread(metric, rate, getattr(table, rate)[:, [positive]], table)
    return None if gaps is None else defined(gaps[0])


def _spread(metric: str, rate: str, values: Floats, table: GroupTable) -> Floats | None:
    """Return max - min over the groups where ``values`` (G, columns) is defined, NaN below two; None if all NaN."""
    known = ~np.isnan(values)
    by_class = values.shape[1] == len(table.classes) > 1
    places = np.argwhere(~known)  # groups × classes of them: only those that are named become text
    cells = [
        f"group {table.groups[g]!r}" + (f" class {table.classes[k]!r}" if by_class else "") for g, k in places[:NAMED]
    ]
    warn_undefined(metric, rate, cells, "left out of the gap", unnamed=len(places) - len(cells))
    high = np.where(known, values, -np.inf).max(axis=0, initial=-np.inf)
    low = np.where(known, values, np.inf).min(axis=0, initial=np.inf)
    enough = known.sum(axis=0) >= 2
    if not enough.any():
        LOG.warning("%s: undefined, fewer than two groups have a %s; null", metric, rate)
        return None
    gaps: Floats = np.subtract(high, low, out=np.full(high.shape, np.nan), where=enough)
    return gaps


def _class_mean(gaps: Floats | None) -> float | None:
    """Mean over the classes whose gap is defined."""
    if gaps is None or np.isnan(gaps).all():
        return None
    return float(np.nanmean(gaps))
