"""What a data set hands to ``prepare``: samples with labels, groups and lazily decoded images, and what is wrong.

Nothing here decodes an image or imports torch. A loader names the rows it could not turn into samples in
``RawDataset.problems``; everything that can be judged from a sample (files, labels, groups, ids, splits) is checked
once for all data sets in ``fairquant.data.checks``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fairquant.errors import DataError

NaturalKey = tuple[tuple[str | tuple[int, str], ...], str]
Pixels = npt.NDArray[np.uint8]
ImageSource = Path | Callable[[], Image.Image | Pixels]
"""A file, or a picklable function that returns a PIL image or a uint8 array (H, W) or (H, W, C).

An image that is opened and not yet loaded gives the same pixels as a file of its bytes (JPEG is decoded reduced).
"""


@dataclass(frozen=True)
class DataRequest:
    """What params.yaml asks of a data set; ``None`` stands for the data set's own default."""

    path: Path
    label: str | None = None
    group: tuple[str, ...] | None = None
    split_by: str | None = None
    seed: int = 0
    image_size: int = 32
    debug: bool = False
    download: bool = False


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data.

    Attributes:
        kind: what is wrong, in words ("missing file"); problems are counted by it.
        row: line of the source table, 1 for the first data row; 0 where the whole table is meant.
        value: the offending text, as it stands in the table.
        message: one sentence that says what is wrong and what is allowed.
        table: name of the source table, where a data set has several.
        fatal: whether it remains an error when bad rows are dropped.
    """

    kind: str
    row: int
    value: str
    message: str
    table: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class RawSample:
    """One row of the source.

    Attributes:
        id: the source's own name of the sample; unique.
        row: line in the source table, 1 for the first data row.
        label: class name; must be one of ``RawDataset.classes``.
        groups: one value per group column.
        split: the publisher's train | val | test, or ``None`` where the publisher gives none.
        cluster: value of the ``split_by`` column; samples that share it stay on one side.
        attributes: every other column, text exactly as it stands in the source.
        image: where the pixels come from.
        table: name of the source table, where a data set has several.
    """

    id: str
    row: int
    label: str
    groups: tuple[str, ...]
    image: ImageSource
    split: str | None = None
    cluster: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    table: str = ""

    def problem(self, kind: str, value: str, message: str) -> Problem:
        """Return a problem that points at this sample's row."""
        return Problem(kind, self.row, value, message, table=self.table)


@dataclass(frozen=True)
class RawDataset:
    """A data set before splitting and decoding.

    Attributes:
        source: what the samples were read from, without machine paths ("folder labels.csv").
        classes: class names; the position is the label's number.
        group_columns: the columns that ``RawSample.groups`` holds values of.
        samples: the samples in the source's order.
        problems: rows that could not become samples, and defects of the whole table.
        group_order: known order of the values of each group column; sorted naturally where empty.
        notes: counts worth keeping in meta.json ("ages repaired": 12).
    """

    source: str
    classes: tuple[str, ...]
    group_columns: tuple[str, ...]
    samples: Sequence[RawSample]
    problems: Sequence[Problem] = ()
    group_order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


def natural_key(text: str) -> NaturalKey:
    """Return a sort key that puts "9" before "10" and "3-9" before "10-19".

    >>> sorted(["10-19", "3-9", "more than 70", "0-2"], key=natural_key)
    ['0-2', '3-9', '10-19', 'more than 70']
    """
    parts = re.split(r"([0-9]+)", text)
    return tuple(_size(part) if index % 2 else part for index, part in enumerate(parts)), text


def _size(digits: str) -> tuple[int, str]:
    """Return a key that orders whole numbers of any length: the longer is larger, then the one that sorts later."""
    plain = digits.lstrip("0")
    return len(plain), plain


def natural_order(values: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct non-empty values in natural order."""
    return tuple(sorted({value for value in values if value.strip()}, key=natural_key))


def choose(key: str, value: str | None, allowed: Sequence[str], default: str) -> str:
    """Return ``value`` or ``default``; a value outside ``allowed`` raises ``DataError`` naming the key."""
    chosen = default if value is None else value
    if chosen not in allowed:
        raise DataError(f"{key}: got {chosen!r}; allowed: {' | '.join(allowed)}")
    return chosen


def choose_groups(
    value: tuple[str, ...] | None, allowed: Sequence[str], default: Sequence[str], key: str = "data.group"
) -> tuple[str, ...]:
    """Return the group columns asked for, each one of ``allowed`` and none twice."""
    columns = tuple(choose(key, column, allowed, "") for column in (default if value is None else value))
    if not columns or len(set(columns)) != len(columns):
        raise DataError(
            f"{key}: got {list(columns)}; allowed: one or several different columns of {' | '.join(allowed)}"
        )
    return columns
