"""The csv while it grows: a line per point, appended and synced at once; what a kill left half-written is cut off."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fairquant.artifacts import write_text
from fairquant.errors import UserError
from fairquant.report.curves import CurveRow, Key, describe_key, header_line, parse_rows, read_rows, row_line
from scripts.curves.points import Point


class Sheet:
    """One csv file. ``rows`` are the complete ones, in the order of the file."""

    def __init__(self, path: Path) -> None:
        """Read ``path``, or begin it; an incomplete last line is removed from the file.

        Raises ``ArtifactError`` for a file that is none of ours.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.read_bytes() if path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        if not whole and not header_line().encode().startswith(found):
            parse_rows(found.decode("utf-8", "replace"), source=str(path))  # refuses it, with the reason
        if not whole or len(whole) < len(found):
            write_text(path, whole.decode("utf-8") or header_line())
        self.rows = read_rows(path)

    def append(self, row: CurveRow) -> None:
        """Add ``row`` at the end; it is on the disk when this returns."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(row_line(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def without(self, keys: Iterable[Key]) -> None:
        """Remove the rows of ``keys``."""
        gone = set(keys)
        if any(row.key in gone for row in self.rows):
            self.rows = [row for row in self.rows if row.key not in gone]
            write_text(self.path, header_line() + "".join(map(row_line, self.rows)))


def shard_path(path: Path, index: int, count: int) -> Path:
    """Return the file of one of ``count`` processes.

    >>> shard_path(Path("out/curves.csv"), 1, 2).as_posix()
    'out/curves-1of2.csv'
    """
    return path if count == 1 else path.with_name(f"{path.stem}-{index}of{count}{path.suffix}")


def missing(points: Sequence[Point], rows: Iterable[CurveRow], classifier: str, *, source: Path) -> list[Point]:
    """Return the points that are not among ``rows``.

    Raises ``UserError`` for one that is there with other settings or of another classifier: a curve is of one kind.
    """
    known = {row.key: row for row in rows}
    for point in points:
        row = known.get(point.key)
        if row is not None and (row.settings, row.classifier) != (point.settings, classifier):
            what = "of another classifier" if row.classifier != classifier else f"with other settings ({row.settings})"
            raise UserError(
                f"{source}: got {describe_key(row.key)} {what}; allowed: --redo {point.key[2]} to measure it again, "
                "or another --out"
            )
    return [point for point in points if point.key not in known]


def merge(sources: Sequence[Path], target: Path) -> int:
    """Write the rows of ``sources`` into ``target``, sorted by point; return how many there are.

    A point measured twice with one result (but for the seconds it took) is written once. Raises ``UserError`` for two
    results of one point.
    """
    found: dict[Key, CurveRow] = {}
    for source in sources:
        for row in read_rows(source):
            other = found.setdefault(row.key, row)
            if _without_time(other) != _without_time(row):
                raise UserError(f"{source}: got {describe_key(row.key)} with two results; allowed: one")
    rows = [found[key] for key in sorted(found)]
    write_text(target, header_line() + "".join(map(row_line, rows)))
    return len(rows)


def _without_time(row: CurveRow) -> dict[str, object]:
    return {name: value for name, value in vars(row).items() if name != "seconds"}
