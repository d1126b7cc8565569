"""The one table: written as results.json (to compare with) and results.md (to read), and compared with another run's.

``worse`` compares ratios, never seconds. How far a ratio may move before it counts, ``TOLERANCE``, was chosen from what
it moved without a reason: between two runs on two cores that three to ten other processes wanted as well, 17 of 19
timed rows moved by less than 8 %, and the two that moved more have more rounds since. Twice that is the tolerance. A
bound is held with ``SLACK``, the part of it that a median of few rounds moves by itself; counted rows have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.table import Row, as_json

FOLDER = Path(__file__).parent
JSON, MARKDOWN = FOLDER / "results.json", FOLDER / "results.md"
TOLERANCE = {"s": 0.15, "bytes": 0.001}
SLACK = {"s": 0.05, "bytes": 0.0}
OTHER_MACHINE = 0.5
"""Tolerance of a timed ratio on another processor than the committed table's: kernels differ in what they gain."""
Machine = Mapping[str, str | int | float]


def amount(value: float, unit: str) -> str:
    """Return a number of seconds or bytes for people.

    >>> amount(0.00312, "s"), amount(61.2, "s"), amount(14_640_000, "bytes")
    ('3.12 ms', '61.2 s', '14.64 MB')
    """
    if unit == "bytes":
        return f"{value / 1e6:.2f} MB"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name}"
    return f"{value * 1e6:.3g} µs"


def ratio_text(value: float) -> str:
    """Return three digits where there is something to compare: 1.03, 0.141, 0.00077."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def row_text(row: Row) -> str:
    """Return a row on one line, for the terminal."""
    spread = "" if row.rounds == 1 else f" ({ratio_text(row.low)}–{ratio_text(row.high)}, {row.rounds} rounds)"
    bound = "" if row.wanted is None else f", wanted ≤ {row.wanted:g}"
    times = f"{amount(row.ours, row.unit)} ÷ {amount(row.baseline, row.unit)}"
    return f"{row.id}: {ratio_text(row.ratio)}{spread}{bound} [{times}]"


def as_markdown(rows: Iterable[Row], machine: Machine) -> str:
    """Return the table with the machine's description above it."""
    lines = [
        "# Measured ratios",
        "",
        "`make bench` writes this file and results.json. A ratio is ours ÷ the plain way of doing the same work,",
        "both by turns in one run: smaller is better. It is the median of the rounds; compare ratios, not seconds.",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "| row | what | ours | plain | ratio | min–max | rounds | wanted | note |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        spread = "" if row.rounds == 1 else f"{ratio_text(row.low)}–{ratio_text(row.high)}"
        bound = "" if row.wanted is None else f"≤ {row.wanted:g}"
        cells = (row.id, row.what, amount(row.ours, row.unit), amount(row.baseline, row.unit), ratio_text(row.ratio))
        lines.append("| " + " | ".join((*cells, spread, str(row.rounds), bound, row.note)) + " |")
    return "\n".join(lines) + "\n"


def write_results(rows: Sequence[Row], machine: Machine, folder: Path = FOLDER) -> None:
    """Write both files, rows in the order measured; both show the digits that results.json keeps."""
    data = {"machine": dict(machine), "rows": [as_json(row) for row in rows]}
    (folder / JSON.name).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = [Row(**row) for row in data["rows"]]
    (folder / MARKDOWN.name).write_text(as_markdown(kept, machine), encoding="utf-8")


def read_results(path: Path = JSON) -> tuple[dict[str, Row], dict[str, str | int | float]]:
    """Return (rows by id, the machine's description) of a results.json."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {row["id"]: Row(**row) for row in data["rows"]}, data["machine"]


def read_lines(path: Path) -> list[Row]:
    """Return the rows that ``benchmarks.measure`` left, one a line."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def worse(row: Row, committed: Row | None, *, same_machine: bool) -> str | None:
    """Return in what ``row`` is worse than it may be, or None.

    >>> now, then = (Row("demo", "a demonstration", r, 1.0, r, r, r, 5) for r in (1.3, 1.1))
    >>> worse(then, now, same_machine=True)
    >>> worse(now, then, same_machine=True)
    'ratio 1.30 is worse than the committed 1.10 by 18.2 %; allowed: 15 %'
    """
    reasons = []
    if row.wanted is not None and row.ratio > row.wanted * (1 + SLACK[row.unit]):
        reasons.append(f"ratio {ratio_text(row.ratio)} is beyond what is wanted, ≤ {row.wanted:g}")
    if committed is not None:
        allowed = TOLERANCE[row.unit] if same_machine or row.unit != "s" else OTHER_MACHINE
        by = row.ratio / committed.ratio - 1
        if by > allowed:
            before = f"{ratio_text(committed.ratio)} by {100 * by:.3g} %; allowed: {100 * allowed:g} %"
            reasons.append(f"ratio {ratio_text(row.ratio)} is worse than the committed {before}")
    return "; ".join(reasons) or None
