"""How numbers and tables look: percent, points and intervals; cells as aligned text and as markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

TEXT_WIDTH = 120
"""Columns of a text table."""

MARKDOWN_SIGNS = "\\&|*_`<>[]$~#"


def percent(value: float | None) -> str:
    """Write a share in [0, 1] as percent; None is "–".

    >>> percent(0.8125), percent(None)
    ('81.2', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Write a difference of shares as percentage points with its sign.

    >>> points(-0.0132), points(-0.0001)
    ('-1.3', '+0.0')
    """
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def with_interval(
    value: float | None, interval: Mapping[str, float | None] | None, write: Callable[[float | None], str]
) -> str:
    """Write ``value`` and, where it and both ends {low, high} are defined, its interval.

    >>> with_interval(0.844, {"low": 0.81, "high": 0.876}, percent)
    '84.4 [81.0, 87.6]'
    >>> with_interval(0.844, None, percent), with_interval(None, {"low": 0.0, "high": 1.0}, percent)
    ('84.4', '–')
    """
    low, high = (None, None) if interval is None else (interval["low"], interval["high"])
    if value is None or low is None or high is None:
        return write(value)
    return f"{write(value)} [{write(low)}, {write(high)}]"


def probability(value: float | None) -> str:
    """Write a p-value.

    >>> probability(0.0312), probability(0.00004), probability(None)
    ('0.031', '<0.001', '–')
    """
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def without_empty_columns(cells: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return ``cells`` (rows may be shorter than the header) filled up, without columns that are empty below it.

    >>> without_empty_columns([("group", "n", "p"), ("a", "1"), ("b", "2", "")])
    [('group', 'n'), ('a', '1'), ('b', '2')]
    """
    width = len(cells[0])
    rows = [(*row, *[""] * (width - len(row))) for row in cells]
    kept = [column for column in range(width) if any(row[column] for row in rows[1:])]
    return [tuple(row[column] for column in kept) for row in rows]


def as_text(cells: Sequence[Sequence[str]], *, width: int = TEXT_WIDTH) -> str:
    """Return aligned plain text: the first column to the left, the others to the right.

    Names too long for ``width`` columns go on in the next line; nothing is cut off.

    >>> print(as_text([("group", "n"), ("female × <60", "7")]))
    group          n
    female × <60   7
    >>> print(as_text([("group", "n"), ("female × <60", "7")], width=14))
    group        n
    female ×     7
      <60
    """
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    space = "   " if sum(widths) + 3 * (len(widths) - 1) <= width else "  "
    widths[0] = min(widths[0], max(width - sum(widths[1:]) - len(space) * (len(widths) - 1), 10))
    lines = []
    for row in cells:
        first, *more = textwrap.wrap(row[0], widths[0], subsequent_indent="  ", break_on_hyphens=False) or [""]
        others = [cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
        lines.append(space.join([first.ljust(widths[0]), *others]).rstrip())
        lines += more
    return "\n".join(lines)


def as_lines(sentences: Sequence[str], *, width: int = TEXT_WIDTH) -> str:
    """Return each sentence on lines of its own, at most ``width`` columns wide."""
    return "\n".join(
        textwrap.fill(sentence, width, subsequent_indent="  ", break_on_hyphens=False) for sentence in sentences
    )


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    r"""Return a markdown table whose first row is the header; cells may hold any sign.

    >>> print(as_markdown([("group", "n"), ("a|b", "7")]))
    | group | n |
    |:--|--:|
    | a\|b | 7 |
    """
    lines = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in cells]
    rule = "|:--|" + "--:|" * (len(cells[0]) - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def escape(text: str) -> str:
    """Return ``text`` so that markdown shows it as it is (group names may hold any sign)."""
    for sign in MARKDOWN_SIGNS:
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
