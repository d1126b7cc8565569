"""What a page shows where there is more than anybody reads: extremes by a stated rule. The csv files hold all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MOST = 40
"""Up to so many groups or classes, tables and plots show all."""
LOWEST, HIGHEST = 30, 10
"""How many are shown of more."""
NAMED = 20
"""How many names a sentence lists."""


def extremes(values: Mapping[str, float | None]) -> list[str]:
    """Return the names to show: all in their order, or of more than ``MOST`` the lowest and highest by value.

    These are in the order of their values, equal ones in that of ``values``; None is left out.

    >>> extremes({"a": 2.0, "b": 1.0})
    ['a', 'b']
    >>> names = extremes({f"n{place}": -place for place in range(100)})
    >>> len(names), names[0], names[29], names[30], names[39]
    (40, 'n99', 'n70', 'n9', 'n0')
    """
    if len(values) <= MOST:
        return list(values)
    known = {name: value for name, value in values.items() if value is not None}
    ranked = sorted(known, key=known.__getitem__)
    return ranked if len(ranked) <= MOST else ranked[:LOWEST] + ranked[-HIGHEST:]


def rule(total: int, what: str, by: str, where: str) -> str:
    """Return in one sentence which of ``total`` are shown; nothing where all are.

    >>> rule(200, "groups", "agreement", "metrics/export.json")
    'Of 200 groups the 30 of lowest and the 10 of highest agreement; metrics/export.json holds all.'
    >>> rule(40, "groups", "agreement", "metrics/export.json")
    ''
    """
    if total <= MOST:
        return ""
    return f"Of {total} {what} the {LOWEST} of lowest and the {HIGHEST} of highest {by}; {where} holds all."


def some(names: Sequence[str], separator: str = ", ") -> str:
    """Return the names in one text, of more than ``NAMED`` the first and how many more.

    >>> some(["a", "b"]), some([str(place) for place in range(23)])[-17:]
    ('a, b', '18, 19 and 3 more')
    """
    rest = len(names) - NAMED
    return separator.join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
