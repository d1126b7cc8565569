"""What two models made of the samples, as counts of (group, true class, class before, class after), and their sums.

Only what occurs is kept: K classes and G groups would make G · K³ cells, N samples occupy N of them at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from fairquant.evaluate.groups import Ints


@dataclass(frozen=True)
class Cells:
    """The M occupied cells of (group, true class, class before, class after) and how many samples each holds.

    ``places`` (P,) are the (group, class) that occur in any way, as group + G · class, ascending: by class, in it by
    group.
    """

    group: Ints
    truth: Ints
    guesses: tuple[Ints, Ints]
    counts: Ints
    n_groups: int
    n_classes: int
    places: Ints

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer], shape: tuple[int, ...]) -> Cells:
        """Count equal ``codes``, those of (group, truth, before, after) in ``shape``, one per sample."""
        occupied, counts = np.unique(codes, return_counts=True)
        group, truth, old, new = (np.asarray(axis, np.int64) for axis in np.unravel_index(occupied, shape))
        places = np.unique(np.concatenate([group + shape[0] * column for column in (truth, old, new)]))
        return cls(group, truth, (old, new), counts.astype(np.int64), shape[0], shape[1], places)

    @property
    def sizes(self) -> Ints:
        """Samples of each group, (G,)."""
        return np.bincount(self.group, weights=self.counts, minlength=self.n_groups).astype(np.int64)

    @property
    def widest(self) -> int:
        """How many rows the longest array of resamples has."""
        return max(len(self.counts), len(self.places), self.n_groups, self.n_classes)


@dataclass(frozen=True)
class Tally:
    """What one model's metrics need of R resamples: samples by place, (P, R), and of each group those right, (G, R)."""

    cells: Cells
    truth: Ints
    predicted: Ints
    right: Ints
    group_right: Ints


def tallies(cells: Cells, drawn: Ints) -> tuple[Tally, Tally]:
    """Return what both models' metrics need of R resamples, the cells' counts ``drawn`` (M, R).

    Sum the drawn cells by group and true class, by group and predicted class, and those predicted right.
    """
    truth = _by_place(cells, cells.truth, drawn)
    before, after = (_tally(cells, drawn, truth, guess) for guess in cells.guesses)
    return before, after


def _tally(cells: Cells, drawn: Ints, truth: Ints, guess: Ints) -> Tally:
    hit = np.flatnonzero(guess == cells.truth)
    right = _by_place(cells, guess, drawn, hit)
    group_right = _sum(cells.group[hit], hit, drawn, cells.n_groups)
    return Tally(cells, truth, _by_place(cells, guess, drawn), right, group_right)


def _by_place(cells: Cells, column: Ints, drawn: Ints, member: Ints | None = None) -> Ints:
    """Sum ``drawn`` (M, R), only the cells ``member``, by group and class ``column`` into (P, R)."""
    rows = np.searchsorted(cells.places, cells.group + cells.n_groups * column)
    chosen = np.arange(len(rows)) if member is None else member
    return _sum(rows[chosen], chosen, drawn, len(cells.places))


def _sum(rows: Ints, member: Ints, drawn: Ints, n_rows: int) -> Ints:
    """Add the cells ``member`` of ``drawn`` (M, R) to the rows given, of ``n_rows``."""
    shape = (n_rows, len(drawn))
    total = sparse.csr_array((np.ones(len(member), np.int64), (rows, member)), shape=shape) @ drawn
    return np.asarray(total, dtype=np.int64)
