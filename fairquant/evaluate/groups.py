"""Counts of a split by group, with the names of groups and classes; every metric derives from them.

One-vs-rest for class k in group g of n samples, from three counts: truth = TP + FN, predicted = TP + FP, right = TP:
    TPR = TP / (TP + FN)    FPR = FP / (n - TP - FN)    TNR = 1 - FPR    selection rate = (TP + FP) / n
A rate whose denominator is zero is NaN here; whoever reports it turns it into null with a warning. Which class was
taken for which is not kept: that would be classes × classes numbers for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairquant.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupTable:
    """Counts of every group and class, int64 (G, K); float64 where predictions are drawn by lot: those to be expected.

    Attributes:
        groups: G names.
        classes: K names.
        truth: samples of each true class.
        predicted: samples predicted as each class.
        right: samples of each class predicted as it.

    Example:
        >>> table = GroupTable.count([0, 1, 1], [0, 1, 0], [0, 0, 1], classes=["a", "b"], groups=["x", "y"])
        >>> table.named(table.accuracy)
        {'x': 1.0, 'y': 0.0}
    """

    groups: tuple[str, ...]
    classes: tuple[str, ...]
    truth: Ints | Floats
    predicted: Ints | Floats
    right: Ints | Floats

    @classmethod
    def count(
        cls,
        labels: npt.ArrayLike,
        predicted: npt.ArrayLike,
        group: npt.ArrayLike,
        *,
        classes: Sequence[str],
        groups: Sequence[str],
    ) -> GroupTable:
        """Count samples by group, true and predicted class in one pass.

        Args:
            labels: (N,) true classes in [0, K).
            predicted: (N,) predicted classes in [0, K).
            group: (N,) groups in [0, G).
            classes: K names.
            groups: G names.

        Raises:
            DataError: lengths differ or a number has no name.
        """
        n_groups, n_classes = len(groups), len(classes)
        truth = _codes("labels", labels, n_classes)
        guess = _codes("predictions", predicted, n_classes)
        member = _codes("groups", group, n_groups)
        if not len(truth) == len(guess) == len(member):
            lengths = f"{len(truth)} labels, {len(guess)} predictions, {len(member)} groups"
            raise DataError(f"metrics: got {lengths}; allowed: one of each per sample")
        shape, hit = (n_groups, n_classes), truth == guess
        columns = ((member, truth), (member, guess), (member[hit], truth[hit]))
        return cls(tuple(groups), tuple(classes), *(_tally(rows, column, shape) for rows, column in columns))

    @classmethod
    def expected(
        cls,
        labels: npt.ArrayLike,
        chance: npt.ArrayLike,
        group: npt.ArrayLike,
        *,
        positive: int,
        classes: Sequence[str],
        groups: Sequence[str],
    ) -> GroupTable:
        """Return the counts to be expected of two-class predictions that are drawn by lot.

        Args:
            labels: (N,) true classes, 0 or 1.
            chance: (N,) probability in [0, 1] that class ``positive`` is predicted.
            group: (N,) groups in [0, G).
            positive: 0 or 1.
            classes: two names.
            groups: G names.

        Example:
            >>> options = {"positive": 1, "classes": ["a", "b"], "groups": ["x"]}
            >>> GroupTable.expected([1, 1, 0], [0.5, 1.0, 0.25], [0, 0, 0], **options).predicted.tolist()
            [[1.25, 1.75]]
        """
        truth, member = _codes("labels", labels, 2), _codes("groups", group, len(groups))
        shape = (len(groups), 2)
        total = _tally(member, truth, shape)
        chosen = _tally(member, truth, shape, np.asarray(chance, np.float64))  # predicted positive, by true class
        right, predicted = total - chosen, np.empty(shape)
        right[:, positive] = chosen[:, positive]
        predicted[:, positive] = chosen.sum(axis=1)
        predicted[:, 1 - positive] = (total - chosen).sum(axis=1)
        return cls(tuple(groups), tuple(classes), total, predicted, right)

    def only(self, chosen: Sequence[bool] | None) -> GroupTable:
        """Return the table of the ``chosen`` groups (G,); of all where that is None.

        >>> table = GroupTable.count([0, 1], [0, 1], [0, 1], classes=["a", "b"], groups=["x", "y"])
        >>> table.only([False, True]).groups
        ('y',)
        """
        if chosen is None:
            return self
        rows = [g for g, wanted in zip(range(len(self.groups)), chosen, strict=True) if wanted]
        names = tuple(self.groups[g] for g in rows)
        return GroupTable(names, self.classes, self.truth[rows], self.predicted[rows], self.right[rows])

    def named(self, values: Floats | Ints) -> dict[str, float | None]:
        """Return per-group ``values`` (G,) by group name; NaN becomes None."""
        return named(self.groups, values)

    @property
    def counts(self) -> Ints:
        """Samples of each group, (G,)."""
        counts: Ints = self.truth.sum(axis=1)
        return counts

    @property
    def accuracy(self) -> Floats:
        """Share of right predictions in each group, (G,)."""
        return ratio(self.right.sum(axis=1), self.counts)

    @property
    def overall_accuracy(self) -> float:
        """Share of right predictions among all samples."""
        return float(ratio(self.right.sum(), self.truth.sum()))

    @property
    def class_counts(self) -> Ints:
        """Samples of each true class, (K,)."""
        counts: Ints = self.truth.sum(axis=0)
        return counts

    @property
    def class_accuracy(self) -> Floats:
        """Share of right predictions among the samples of each true class, (K,)."""
        return ratio(self.right.sum(axis=0), self.class_counts)

    @property
    def selection_rate(self) -> Floats:
        """Share of each group's samples predicted as each class, (G, K)."""
        return ratio(self.predicted, self.counts[:, None])

    @property
    def tpr(self) -> Floats:
        """True positive rate of each class one-vs-rest in each group, (G, K)."""
        return ratio(self.right, self.truth)

    @property
    def fpr(self) -> Floats:
        """False positive rate of each class one-vs-rest in each group, (G, K)."""
        return ratio(self.predicted - self.right, self.counts[:, None] - self.truth)

    @property
    def tnr(self) -> Floats:
        """True negative rate of each class one-vs-rest in each group, (G, K)."""
        return 1.0 - self.fpr


def named(names: Sequence[str], values: Floats | Ints) -> dict[str, float | None]:
    """Return ``values`` by name; NaN becomes None."""
    return {name: defined(value) for name, value in zip(names, values, strict=True)}


def defined(value: float | np.floating | np.integer) -> float | None:
    """Return a plain float, or None for NaN."""
    return None if np.isnan(value) else float(value)


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """Return ``part`` / ``whole``; NaN where ``whole`` is zero."""
    numerator, denominator = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    safe = np.where(denominator > 0, denominator, np.nan)
    return np.asarray(numerator / safe)


def _tally(member: Ints, column: Ints, shape: tuple[int, int], weights: Floats | None = None) -> Any:
    """Count samples, or add up their ``weights``, by group and class: ``shape`` (G, K)."""
    counts = np.bincount(member * shape[1] + column, weights, minlength=shape[0] * shape[1])
    return (counts.astype(np.int64, copy=False) if weights is None else counts).reshape(shape)


def _codes(what: str, values: npt.ArrayLike, n: int) -> Ints:
    codes = np.asarray(values, dtype=np.int64)
    if codes.size and (codes.min() < 0 or codes.max() >= n):
        raise DataError(f"metrics: got {what} from {codes.min()} to {codes.max()}; allowed: 0 to {n - 1}")
    return codes
