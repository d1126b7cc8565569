"""The table of samples, read without holding it: as text a row takes hundreds of bytes, and there may be millions.

What every stage needs becomes arrays while the file is read; a column of text is read when somebody asks for it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairquant import artifacts
from fairquant.errors import ArtifactError

Ints = npt.NDArray[np.int64]
NEEDED = ("id", "label", "group", "split")
SPLITS = ("train", "val", "test")
ROWS = 8192
"""Rows that are text at one time."""
SHARED = 4096
"""Different values of a column that equal rows share."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What every stage needs of N samples: 36 bytes each.

    Attributes:
        labels: (N,) int64.
        groups: (N,) int64.
        splits: (N,) of "train" | "val" | "test".
        columns: every column as text, by name.
    """

    labels: Ints
    groups: Ints
    splits: npt.NDArray[np.str_]
    columns: Columns


class Columns(Mapping[str, Sequence[str]]):
    """Columns of a csv file, each read when it is first asked for and kept from then on."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Take the file and what its header says."""
        self._path, self._names = path.absolute(), tuple(names)
        self._read: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> tuple[str, ...]:
        """Return the column's N values; raises ``KeyError`` for an unknown name."""
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            place, known = self._names.index(name), dict[str, str]()
            parts = islice(_parts(self._path), 1, None)
            self._read[name] = tuple(_shared(row[place], known) for rows in parts for row in rows)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the file's order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of columns."""
        return len(self._names)


def _shared(value: str, known: dict[str, str]) -> str:
    """Return an equal value of an earlier row where there was one."""
    return known.setdefault(value, value) if len(known) < SHARED else known.get(value, value)


def read_samples(path: Path) -> Samples:
    """Read the samples.csv that the prepare stage writes.

    Raises:
        ArtifactError: it is absent or damaged.
        ValueError, OverflowError: a label or group is no number that a class or group may have.
    """
    parts = _parts(path)
    (header,) = next(parts)
    places = [header.index(name) for name in ("label", "group", "split")]
    labels, groups, splits = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, "<U5")]
    for rows in parts:
        label, group, split = ([row[place] for row in rows] for place in places)
        unknown = sorted(set(split).difference(SPLITS))
        if unknown:
            raise ArtifactError(
                f"{path}: got the split {unknown[0]!r}; allowed: {' | '.join(SPLITS)}; {artifacts.anew(path)}"
            )
        labels.append(np.array(list(map(int, label)), np.int64))
        groups.append(np.array(list(map(int, group)), np.int64))
        splits.append(np.array(split, "<U5"))
    return Samples(np.concatenate(labels), np.concatenate(groups), np.concatenate(splits), Columns(path, header))


def _parts(path: Path) -> Iterator[list[list[str]]]:
    """Yield the header, as a list of one row, then the rows, ``ROWS`` at a time."""
    try:
        with artifacts.opening(path), path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _require(path, header, all(name in header for name in NEEDED))
            yield [header]
            while rows := list(islice(reader, ROWS)):
                _require(path, header, set(map(len, rows)) == {len(header)})
                yield rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not valid csv ({error}); {artifacts.anew(path)}") from None


def _require(path: Path, header: list[str], fits: bool) -> None:
    if not fits:
        raise ArtifactError(
            f"{path}: got the columns {header}; allowed: the samples.csv of the prepare stage; {artifacts.anew(path)}"
        )
