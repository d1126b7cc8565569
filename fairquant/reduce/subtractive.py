"""subtractive: what a weight is worth to the unprivileged group beyond the privileged, I = I_u − β·I_p.

The sign is kept all the way to the ranking: a negative weight is among the least important.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fairquant.config import Section
from fairquant.config.base import Real, number
from fairquant.errors import ConfigError
from fairquant.reduce._arrays import Floats, blocks, per_group

KEY = "assign.reducers.subtractive"


class Options(Section):
    """The two groups, by name, and the weight ``beta`` of the privileged one; names are needed once it is chosen."""

    unprivileged: str | None = Field(None, description="a group name")
    privileged: str | None = Field(None, description="a group name")
    beta: Real = number(1.0, ge=0)


def check_options(options: Options) -> None:
    """Raise ``ConfigError`` unless both groups are named; needs no data, so it can run before any work."""
    for role in ("unprivileged", "privileged"):
        if getattr(options, role) is None:
            raise ConfigError(f"{KEY}.{role}: got null; allowed: a group name (reducer: subtractive needs both)")


def check_groups(options: Options, groups: Sequence[str]) -> None:
    """Raise ``ConfigError`` unless there are exactly two groups and the options name both."""
    if len(groups) != 2:
        raise ConfigError(
            f"reducer: got 'subtractive' with {len(groups)} groups ({', '.join(groups)}); allowed: exactly two groups"
        )
    check_options(options)
    for role in ("unprivileged", "privileged"):
        if getattr(options, role) not in groups:
            raise ConfigError(
                f"{KEY}.{role}: got {getattr(options, role)!r}; allowed: one of the groups {' | '.join(groups)}"
            )
    if options.unprivileged == options.privileged:
        raise ConfigError(f"{KEY}.privileged: got {options.privileged!r} for both; allowed: two different groups")


def reduce(
    importance: Floats,
    options: Options,
    *,
    groups: Sequence[str],
    totals: npt.NDArray[np.float64] | None = None,
) -> Floats:
    """Return I_unprivileged − β·I_privileged: (2, *weight) → (*weight), signed; ``totals`` is not used.

    >>> options = Options(unprivileged="dark", privileged="light", beta=2)
    >>> reduce(np.array([[1, 5], [3, 2]], dtype=np.float32), options, groups=["light", "dark"]).tolist()
    [1.0, -8.0]
    """
    check_groups(options, groups)
    flat = per_group(importance, groups)
    order = {name: row for row, name in enumerate(groups)}
    unprivileged, privileged = flat[order[str(options.unprivileged)]], flat[order[str(options.privileged)]]
    reduced = np.empty(flat.shape[1], dtype=np.float32)
    for block in blocks(len(reduced)):
        reduced[block] = unprivileged[block] - options.beta * privileged[block].astype(np.float64)
    return reduced.reshape(importance.shape[1:])
