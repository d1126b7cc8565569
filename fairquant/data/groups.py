"""Group names from one or several columns ("female × <60"), and the minimum-size rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fairquant.data.raw import NaturalKey, Problem, natural_key
from fairquant.errors import DataError

GROUP_JOIN = " × "
"""What stands between the values of several group columns."""

OTHER = "other"
"""The name that groups below ``data.min_group_size`` get when they are merged."""


def group_name(values: Sequence[str]) -> str:
    """Return the name of the intersection of one value per column.

    >>> group_name(["female", "<60"])
    'female × <60'
    """
    return GROUP_JOIN.join(values)


def order_names(
    members: Sequence[tuple[str, ...]], columns: Sequence[str], known: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Return the distinct group names, column by column in the known order or else in natural order.

    Raises:
        DataError: two different combinations of values have the same name.
    """

    def place(column: str, value: str) -> tuple[int, NaturalKey]:
        order = known.get(column, ())
        return (order.index(value) if value in order else len(order)), natural_key(value)

    distinct = sorted(set(members), key=lambda values: [place(c, v) for c, v in zip(columns, values, strict=True)])
    names = tuple(group_name(values) for values in distinct)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"data.group: two combinations of {list(columns)} are both named {twice[0]!r}; rename a value")
    return names


def small_groups(names: Sequence[str], minimum: int) -> dict[str, int]:
    """Return the groups with fewer than ``minimum`` samples and their sizes, in order of size."""
    counts = Counter(names)
    return {name: count for name, count in sorted(counts.items(), key=lambda item: item[::-1]) if count < minimum}


def small_group_problem(name: str, count: int, minimum: int) -> Problem:
    """Return the problem of a group below the minimum size."""
    way_out = "data.small_groups: drop" if name == OTHER else "data.small_groups: merge | drop"
    text = f"the group {name!r} has {count} samples; allowed: at least data.min_group_size {minimum}, or {way_out}"
    return Problem("small group", 0, name, text, fatal=True)
