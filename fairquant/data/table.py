"""Source tables: csv read by the csv module, text kept exactly as it is, every defective row named."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fairquant.data.raw import Problem
from fairquant.errors import DataError

_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Row:
    """One data row: its number (1 is the first data row) and its values by column."""

    number: int
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A csv file: columns, well-formed rows, and problems for the rows that are not."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    problems: list[Problem]

    def missing(self, columns: Sequence[str]) -> list[Problem]:
        """Return one fatal problem for each of ``columns`` that the table lacks."""
        have = ", ".join(name if name == name.strip() else repr(name) for name in self.columns)
        return [
            Problem(
                "missing column",
                0,
                column,
                f"{self.path.name} has no column {column!r}; its columns: {have}",
                table=self.path.name,
                fatal=True,
            )
            for column in dict.fromkeys(columns)
            if column not in self.columns
        ]


def read_table(path: Path, *, layout: str, shrink: Callable[[Row], Row] | None = None) -> Table:
    """Read a csv file with a header row, line by line.

    Args:
        path: the file; a UTF-8 byte order mark is skipped.
        layout: the layout expected, in words; part of the error when the file is absent.
        shrink: called with each well-formed row as it is read; what it returns is kept instead, so that a table
            with huge fields is never held as text.

    Raises:
        DataError: the file is absent, is not csv at all, or has no header or no rows.
    """
    problems: list[Problem] = []
    rows: list[Row] = []
    with _open(path, layout) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next((line for line in reader if line), [])
            _check_header(path, header)
            for number, values in enumerate((line for line in reader if line), start=1):
                problem = _row_problem(path, number, values, len(header))
                if problem is None:
                    row = Row(number, dict(zip(header, values, strict=True)))
                    rows.append(row if shrink is None else shrink(row))
                else:
                    problems.append(problem)
        except csv.Error as error:
            raise DataError(f"{path}: not valid csv at line {reader.line_num} ({error})") from None
    if not rows and not problems:
        raise DataError(f"{path}: got a header and no rows; allowed: at least one row")
    return Table(path, tuple(header), rows, problems)


def _open(path: Path, layout: str) -> TextIO:
    """Open as UTF-8, keeping undecodable bytes as lone surrogates so that their rows can be named."""
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"{path}: not found; expected {layout}") from None
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); expected {layout}") from None


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: got an empty file; allowed: csv with a header row")
    if any(_NOT_UTF8.search(name) or "\0" in name for name in header):
        raise DataError(f"{path}: not UTF-8 text; save it as csv in UTF-8")
    other = [sign for sign in (";", "\t", "|") if len(header) == 1 and sign in header[0]]
    if other:
        raise DataError(f"{path}: got fields separated by {other[0]!r}; allowed: by ','")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: got the column {twice[0]!r} more than once; allowed: each column once")


def _row_problem(path: Path, number: int, values: list[str], width: int) -> Problem | None:
    shown = printable(",".join(values))
    if any(_NOT_UTF8.search(value) for value in values):
        return Problem("not UTF-8", number, shown, "the row is not UTF-8 text", table=path.name)
    if any("\0" in value for value in values):
        return Problem("NUL byte", number, shown, "the row holds a NUL byte, the file is damaged", table=path.name)
    if not any(value.strip() for value in values):
        return Problem("empty row", number, shown, "every field of the row is empty", table=path.name)
    if len(values) != width:
        message = f"the row has {len(values)} fields, the header {width}"
        return Problem("wrong number of fields", number, shown, message, table=path.name)
    return None


def printable(text: str) -> str:
    """Return ``text`` with undecodable bytes written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
