"""What happened in each epoch of a training run, and its two files: the curve (csv) and the classic training.log.

Neither holds times: the files of two equal runs are equal byte for byte.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairquant.artifacts import CsvWriter, write_text
from fairquant.predictions import SplitPredictions

FIELDS = ("epoch", "lr", "train_loss", "val_loss", "val_accuracy", "val_worst_group_accuracy")


@dataclass(frozen=True)
class EpochRow:
    """One epoch. Accuracies are in [0, 1]; a group without validation samples has None.

    Attributes:
        epoch: 1 for the first.
        lr: learning rate of the epoch's first step.
        train_loss: mean over samples of the objective: cross-entropy (with class weights) plus the weighted terms;
            None where nothing was trained.
        val_loss: mean cross-entropy on the validation split, without class weights or terms.
        val_accuracy: overall accuracy on the validation split.
        val_worst_group_accuracy: lowest accuracy among the groups that have validation samples.
        val_group_accuracy: accuracy of each group by its name.
    """

    epoch: int
    lr: float
    train_loss: float | None
    val_loss: float
    val_accuracy: float
    val_worst_group_accuracy: float
    val_group_accuracy: Mapping[str, float | None]

    @classmethod
    def measure(
        cls,
        part: SplitPredictions,
        groups: Sequence[str],
        *,
        epoch: int,
        lr: float,
        train_loss: float | None,
        val_loss: float,
    ) -> EpochRow:
        """Make the row of an epoch from the predictions ``part`` (N >= 1) of the validation split."""
        right = part.predicted == part.labels
        counts = np.bincount(part.groups, minlength=len(groups))
        correct = np.bincount(part.groups[right], minlength=len(groups))
        accuracy = {g: float(c / n) if n else None for g, c, n in zip(groups, correct, counts, strict=True)}
        worst = min(value for value in accuracy.values() if value is not None)
        return cls(epoch, lr, train_loss, val_loss, float(right.mean()), worst, accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``EpochRow(**row.to_dict())`` gives the row back."""
        return asdict(self) | {"val_group_accuracy": dict(self.val_group_accuracy)}


@dataclass(frozen=True)
class History:
    """All epochs of a run, in order, and which epoch's weights were kept (0 = nothing was trained)."""

    groups: tuple[str, ...] = ()
    rows: tuple[EpochRow, ...] = ()
    best_epoch: int = 0

    @property
    def best(self) -> EpochRow | None:
        """The row of the epoch whose weights were kept."""
        return next((row for row in self.rows if row.epoch == self.best_epoch), None)

    def summary(self) -> dict[str, float | int | None]:
        """Return the kept epoch and its validation accuracy, overall and of the worst group, in [0, 1]."""
        best = self.best
        return {
            "best_epoch": self.best_epoch,
            "val_accuracy": None if best is None else best.val_accuracy,
            "val_worst_group_accuracy": None if best is None else best.val_worst_group_accuracy,
        }

    def write_curve(self, path: str | Path) -> None:
        """Write one csv line per epoch; each group has a column ``val_accuracy <group>``."""
        out = io.StringIO()
        writer = CsvWriter(out)
        writer.writerow([*FIELDS, *(f"val_accuracy {group}" for group in self.groups)])
        for row in self.rows:
            values = [getattr(row, name) for name in FIELDS] + [row.val_group_accuracy[group] for group in self.groups]
            writer.writerow(["" if value is None else f"{value:.6g}" for value in values])
        write_text(path, out.getvalue())

    def write_log(self, path: str | Path) -> None:
        """Write the classic training.log: one line per epoch, the groups indented below it."""
        lines = [line for row in self.rows for line in _log_lines(row)]
        best = self.best
        end = "nothing was trained" if best is None else f"kept epoch {best.epoch}: {_summary(best)}"
        write_text(path, "\n".join([*lines, end]) + "\n")


def _summary(row: EpochRow) -> str:
    return (
        f"val loss {row.val_loss:.4f}, val accuracy {row.val_accuracy:.4f}, "
        f"worst group {row.val_worst_group_accuracy:.4f}"
    )


def describe(row: EpochRow, epochs: int | None = None) -> str:
    """Return one line about an epoch, for people."""
    of = f"/{epochs}" if epochs else ""
    trained = "not trained" if row.train_loss is None else f"lr {row.lr:.3g}, train loss {row.train_loss:.4f}"
    return f"epoch {row.epoch}{of}: {trained}, {_summary(row)}"


def _log_lines(row: EpochRow) -> list[str]:
    lines = [describe(row)]
    for group, accuracy in row.val_group_accuracy.items():
        lines.append(f"    {group}: " + ("no validation samples" if accuracy is None else f"{accuracy:.4f}"))
    return lines
