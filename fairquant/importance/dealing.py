"""How several processes share the batches of all groups, and how they fail: together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from fairquant.errors import UserError
from fairquant.parallel.collectives import gather_objects, rank, world_size


def deal(counts: Sequence[int]) -> list[range]:
    """Return which of each group's batches are this process's.

    The batches of all groups are dealt round robin as one list, so that shares differ by one batch at most however
    small the groups are: 200 groups of one batch keep 200 processes busy.

    Args:
        counts: batches of each group.

    >>> deal([3, 1])  # one process
    [range(0, 3), range(0, 1)]
    """
    starts = [0, *accumulate(counts)]
    return [
        range((rank() - start) % world_size(), count, world_size())
        for start, count in zip(starts, counts, strict=False)
    ]


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise in every process the first ``UserError`` that a process raised inside, once all have come to the end.

    A process that has no batch of a model that cannot be measured would otherwise wait for the others for ever.
    """
    mine: UserError | None = None
    try:
        yield
    except UserError as error:
        mine = error
    raised = [found for found in gather_objects(mine) if found is not None]
    if raised:
        raise raised[0]
