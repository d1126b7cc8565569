"""The per-class study of "unfairness in model quantization" [B]: rows, φ, and the csv they are kept in.

One point is a classifier trained on one kind of data, quantized one way at one width; it has a row per class, a row per
group and one of all test samples. With J(k) the mean cross-entropy of class k,

    excessive loss R(k) = J_after(k) − J_before(k)        φ = max over classes k, l of |R(k) − R(l)|

(``fairquant.evaluate.loss``; Tran et al. 2022, arXiv 2205.13574). Accuracies are in [0, 1], losses in nats.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fairquant.artifacts import CsvWriter
from fairquant.errors import ArtifactError
from fairquant.evaluate.change import compare
from fairquant.evaluate.loss import group_loss
from fairquant.predictions import SplitPredictions

KINDS = ("class", "group", "all")
ALL = "all"
Key = tuple[str, str, int, str, int]


@dataclass(frozen=True)
class StudyRow:
    """One class, group, or all samples, of one point.

    Attributes:
        task: data set, label, groups and model, in words.
        data: the training set: as_is | fair | unfair.
        seed: of the classifier and everything after it.
        method: ptq | qat.
        bits: of weights and activations.
        kind: class | group | all.
        name: of the class or group.
        n: test samples.
        accuracy_before: in full precision; None without samples, as everywhere below.
        accuracy_after: quantized.
        loss_before: mean cross-entropy in full precision.
        loss_after: quantized.
        settings: what ``dvc exp run -S`` gets.
    """

    task: str
    data: str
    seed: int
    method: str
    bits: int
    kind: str
    name: str
    n: int
    accuracy_before: float | None
    accuracy_after: float | None
    loss_before: float | None
    loss_after: float | None
    settings: str

    @property
    def key(self) -> Key:
        """The point it belongs to."""
        return self.task, self.data, self.seed, self.method, self.bits

    @property
    def excess(self) -> float | None:
        """The excessive loss R."""
        if self.loss_before is None or self.loss_after is None:
            return None
        return self.loss_after - self.loss_before


COLUMNS = tuple(item.name for item in fields(StudyRow))
READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float | None": (lambda text: float(text) if text else None, "a number, or nothing"),
}


def point_rows(
    key: Key,
    before: SplitPredictions,
    after: SplitPredictions,
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    settings: str,
) -> list[StudyRow]:
    """Return the rows of a point: classes, groups, then all; the last row says that the point is complete.

    Raises ``ArtifactError`` where the two were not made on the same samples.
    """
    found = []
    parts = (("class", before.labels, classes), ("group", before.groups, groups), (ALL, before.labels * 0, (ALL,)))
    for kind, codes, names in parts:
        old, new = replace(before, groups=codes), replace(after, groups=codes)
        change = compare(old, new, groups=names)
        columns = (change.before, change.after, group_loss(old, groups=names), group_loss(new, groups=names))
        for k, name in enumerate(names):
            values = tuple(None if math.isnan(column[k]) else float(column[k]) for column in columns)
            found.append(_made((*key, kind, name, int(change.counts[k]), *values, settings)))
    return found


def _made(values: Sequence[Any]) -> StudyRow:
    return StudyRow(**dict(zip(COLUMNS, values, strict=True)))


def spread(values: Iterable[float | None]) -> float | None:
    """Return max − min of what is defined; None with fewer than two numbers.

    >>> spread([0.25, None, 1.0]), spread([0.25])
    (0.75, None)
    """
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else None


@dataclass(frozen=True)
class PointSummary:
    """What a point comes down to: accuracies after, and before, and φ over classes and over groups."""

    overall: float | None
    overall_before: float | None
    worst_class: float | None
    worst_class_before: float | None
    phi_class: float | None
    phi_group: float | None

    @classmethod
    def of(cls, rows: Sequence[StudyRow]) -> PointSummary:
        """Summarise the rows of one point."""
        by_kind = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
        [whole] = by_kind[ALL]
        after = [row.accuracy_after for row in by_kind["class"] if row.accuracy_after is not None]
        before = [row.accuracy_before for row in by_kind["class"] if row.accuracy_before is not None]
        phi = {kind: spread(row.excess for row in by_kind[kind]) for kind in ("class", "group")}
        return cls(
            whole.accuracy_after, whole.accuracy_before, min(after, default=None), min(before, default=None),
            phi["class"], phi["group"],
        )  # fmt: skip


def by_point(rows: Iterable[StudyRow]) -> dict[Key, list[StudyRow]]:
    """Return point → its rows, points in the order of the rows."""
    found: dict[Key, list[StudyRow]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return found


def header_line() -> str:
    """Return the csv's first line, with its end."""
    return _line(COLUMNS)


def row_line(row: StudyRow) -> str:
    """Return ``row`` as one csv line, with its end."""
    values = (getattr(row, name) for name in COLUMNS)
    return _line(["" if value is None else repr(value) if isinstance(value, float) else str(value) for value in values])


def read_rows(path: str | Path) -> list[StudyRow]:
    """Read the rows of complete points; what a kill left half-written is left out.

    Raises ``ArtifactError``: a missing file, other columns, a cell that cannot be read, or a point that is there twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; allowed: a file that `python -m scripts.study` wrote") from None
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole), strict=False))
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ArtifactError(f"{path}: got other columns; allowed: a file that `python -m scripts.study` writes")
    rows = [_row(cells, f"{path}, line {number}") for number, cells in enumerate(lines[1:], start=2)]
    complete = {row.key for row in rows if row.kind == ALL}
    kept = [row for row in rows if row.key in complete]
    places = [(*row.key, row.kind, row.name) for row in kept]
    if len(set(places)) < len(places):
        raise ArtifactError(f"{path}: got a point twice; allowed: each once")
    return kept


def _row(cells: Sequence[str], where: str) -> StudyRow:
    if len(cells) != len(COLUMNS):
        raise ArtifactError(f"{where}: got {len(cells)} cells; allowed: {len(COLUMNS)}")
    values = []
    for item, text in zip(fields(StudyRow), cells, strict=True):
        reader, words = READERS[str(item.type)]
        try:
            values.append(reader(text))
        except ValueError:
            raise ArtifactError(f"{where}, {item.name}: got {text[:60]!r}; allowed: {words}") from None
    return _made(values)


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    CsvWriter(out).writerow(cells)
    return out.getvalue()
