"""Which training images activation ranges are found on.

- random: drawn from the whole train split, each at most once;
- balanced: as many of each group, in turn, so that every batch holds them alike;
- worst_group: ``worst_share`` of the images, in every batch, from the group that the full-precision model serves worst
  on the validation split; the others from all other groups.

A group with fewer images than asked for is gone through again, in another order (logged); no more images are drawn
than go through each source once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from fairquant.config.quantization import CalibrationSection
from fairquant.data.store import Ints, Store
from fairquant.errors import UserError

LOG = logging.getLogger(__name__)


def calibration_rows(
    store: Store, section: CalibrationSection, *, seed: int, groups_accuracy: Sequence[float] | None = None
) -> Ints:
    """Return the rows of ``store`` to calibrate on, in order, int64: at most batches · batch_size of the train split.

    ``groups_accuracy`` is needed for ``sampling: worst_group``, NaN for a group whose accuracy is not known. Raises
    ``UserError`` where it is not known of any.
    """
    generator = np.random.default_rng(seed)
    train = store.indices("train")
    sources, shares = _SOURCES[section.sampling](store, train, generator, section.worst_share, groups_accuracy)
    asked = section.batches * section.batch_size
    rows = _interleave(sources, shares, asked)
    if len(rows) < asked:
        LOG.info("calibration: got %d images for %d batches of %d", len(rows), section.batches, section.batch_size)
    for source in sources:
        held = len(source.rows)
        if source.taken > held:
            LOG.info("calibration: %d images of %s, which has %d; some are used again", source.taken, source.name, held)
    return rows


class _Source:
    """Rows to draw from: each once, in random order, then again in another."""

    def __init__(self, name: str, rows: Ints, generator: np.random.Generator) -> None:
        self.name, self.rows, self.generator = name, rows, generator
        self.taken = 0
        self.order = rows

    def draw(self) -> int:
        """Return the next row."""
        place = self.taken % len(self.rows)
        if place == 0:
            self.order = self.generator.permutation(self.rows)
        self.taken += 1
        return int(self.order[place])


Sources = tuple[list[_Source], list[float]]
"""Where to draw from, and the share of each."""


def _whole(store: Store, train: Ints, generator: np.random.Generator, *_: object) -> Sources:
    return [_Source("the train split", train, generator)], [1.0]


def _each_group(store: Store, train: Ints, generator: np.random.Generator, *_: object) -> Sources:
    groups = store.groups[train]
    present = np.unique(groups).tolist()
    sources = [_Source(store.group_names[group], train[groups == group], generator) for group in present]
    return sources, [1 / len(sources)] * len(sources)


def _worst_group(
    store: Store, train: Ints, generator: np.random.Generator, share: float, accuracy: Sequence[float] | None
) -> Sources:
    groups = store.groups[train]
    worst = _lowest(accuracy, np.bincount(groups, minlength=len(store.group_names)))
    name = store.group_names[worst]
    first, others = train[groups == worst], train[groups != worst]
    if not len(others):
        return [_Source(name, first, generator)], [1.0]
    sources = [_Source(name, first, generator), _Source(f"groups other than {name}", others, generator)]
    return sources, [share, 1 - share]


_SOURCES: dict[str, Callable[..., Sources]] = {
    "random": _whole,
    "balanced": _each_group,
    "worst_group": _worst_group,
}


def _lowest(accuracy: Sequence[float] | None, sizes: Ints) -> int:
    """Return the group of lowest accuracy, the first of ties, among those with training images."""
    values = np.full(len(sizes), np.nan) if accuracy is None else np.asarray(accuracy, np.float64)
    values = np.where(sizes > 0, values, np.nan)
    if np.isnan(values).all():
        raise UserError(
            "quantize.calibration.sampling: got 'worst_group' without the accuracy of any group; allowed: random | "
            "balanced, or a validation split with images of a group"
        )
    return int(np.nanargmin(values))


def _interleave(sources: Sequence[_Source], shares: Sequence[float], asked: int) -> Ints:
    """Draw up to ``asked`` rows, each from the source that is furthest behind its share (the first of ties).

    Stops when every source with a share has been gone through.
    """
    wanted = np.asarray(shares)
    rows: list[int] = []
    while len(rows) < asked:
        if all(source.taken >= len(source.rows) for source, share in zip(sources, shares, strict=True) if share > 0):
            break
        behind = wanted * (len(rows) + 1) - [source.taken for source in sources]
        rows.append(sources[int(np.argmax(np.round(behind, 9)))].draw())
    return np.array(rows, np.int64)
