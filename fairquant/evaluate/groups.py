"""Counts of a split by group, with the names of groups and classes; every metric derives from them.

One-vs-rest for class k in group g, from the confusion counts n[g, true, predicted]:
    TPR = TP / (TP + FN)    FPR = FP / (FP + TN)    TNR = 1 - FPR    selection rate = (TP + FP) / n
A rate whose denominator is zero is NaN here; whoever reports it turns it into null with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairquant.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupTable:
    """Confusion counts of every group.

    Attributes:
        groups: G names.
        classes: K names.
        confusion: int64 (G, K, K), number of samples by [group, true class, predicted class]; float64 where the
            predictions are drawn by lot: the numbers to be expected.

    Example:
        >>> table = GroupTable.count([0, 1, 1], [0, 1, 0], [0, 0, 1], classes=["a", "b"], groups=["x", "y"])
        >>> table.named(table.accuracy)
        {'x': 1.0, 'y': 0.0}
    """

    groups: tuple[str, ...]
    classes: tuple[str, ...]
    confusion: Ints | Floats

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
        cells = (member * n_classes + truth) * n_classes + guess
        counts = np.bincount(cells, minlength=n_groups * n_classes * n_classes)
        confusion = counts.astype(np.int64, copy=False).reshape(n_groups, n_classes, n_classes)
        return cls(tuple(groups), tuple(classes), confusion)

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
            >>> GroupTable.expected([1, 1, 0], [0.5, 1.0, 0.25], [0, 0, 0], **options).confusion.tolist()
            [[[0.75, 0.25], [0.5, 1.5]]]
        """
        truth, member = _codes("labels", labels, 2), _codes("groups", group, len(groups))
        cells, shape = member * 2 + truth, (len(groups), 2)
        total = np.bincount(cells, minlength=2 * len(groups)).reshape(shape)
        drawn = np.bincount(cells, np.asarray(chance, np.float64), minlength=2 * len(groups)).reshape(shape)
        columns = (total - drawn, drawn) if positive else (drawn, total - drawn)
        return cls(tuple(groups), tuple(classes), np.stack(columns, axis=2))

    def only(self, chosen: Sequence[bool] | None) -> GroupTable:
        """Return the table of the ``chosen`` groups (G,); of all where that is None.

        >>> table = GroupTable.count([0, 1], [0, 1], [0, 1], classes=["a", "b"], groups=["x", "y"])
        >>> table.only([False, True]).groups
        ('y',)
        """
        if chosen is None:
            return self
        rows = [g for g, wanted in zip(range(len(self.groups)), chosen, strict=True) if wanted]
        return GroupTable(tuple(self.groups[g] for g in rows), self.classes, self.confusion[rows])

    def named(self, values: Floats | Ints) -> dict[str, float | None]:
        """Return per-group ``values`` (G,) by group name; NaN becomes None."""
        return named(self.groups, values)

    @property
    def counts(self) -> Ints:
        """Samples of each group, (G,)."""
        counts: Ints = self.confusion.sum(axis=(1, 2))
        return counts

    @property
    def accuracy(self) -> Floats:
        """Share of right predictions in each group, (G,)."""
        return ratio(np.trace(self.confusion, axis1=1, axis2=2), self.counts)

    @property
    def overall_accuracy(self) -> float:
        """Share of right predictions among all samples."""
        return float(ratio(np.trace(self.confusion.sum(axis=0)), self.confusion.sum()))

    @property
    def class_counts(self) -> Ints:
        """Samples of each true class, (K,)."""
        counts: Ints = self.confusion.sum(axis=(0, 2))
        return counts

    @property
    def class_accuracy(self) -> Floats:
        """Share of right predictions among the samples of each true class, (K,)."""
        return ratio(np.diagonal(self.confusion.sum(axis=0)), self.class_counts)

    @property
    def selection_rate(self) -> Floats:
        """Share of each group's samples predicted as each class, (G, K)."""
        return ratio(self.confusion.sum(axis=1), self.counts[:, None])

    @property
    def tpr(self) -> Floats:
        """True positive rate of each class one-vs-rest in each group, (G, K)."""
        return ratio(np.diagonal(self.confusion, axis1=1, axis2=2), self.confusion.sum(axis=2))

    @property
    def fpr(self) -> Floats:
        """False positive rate of each class one-vs-rest in each group, (G, K)."""
        false_positives = self.confusion.sum(axis=1) - np.diagonal(self.confusion, axis1=1, axis2=2)
        return ratio(false_positives, self.counts[:, None] - self.confusion.sum(axis=2))

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


def _codes(what: str, values: npt.ArrayLike, n: int) -> Ints:
    codes = np.asarray(values, dtype=np.int64)
    if codes.size and (codes.min() < 0 or codes.max() >= n):
        raise DataError(f"metrics: got {what} from {codes.min()} to {codes.max()}; allowed: 0 to {n - 1}")
    return codes
