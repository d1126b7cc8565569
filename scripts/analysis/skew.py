"""Fair and unfair training sets out of one: balanced and long-tailed subsamples of the same size.

With n_k training images of K classes (or groups), ordered by n_k, most first (ties by number), and k = 0 … K−1 the
place there, the long-tailed set has counts in proportion to r^(−k / (K−1)), as in long-tailed recognition (Cui, Jia,
Lin, Song & Belongie 2019, "Class-balanced loss based on effective number of samples", CVPR): the first has r times as
many as the last. The balanced set has equal counts. Both have the same total, the largest that the images suffice for,
so that they differ in the distribution alone; validation and test split stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fairquant.data.store import Store
from fairquant.errors import UserError

Ints = npt.NDArray[np.int64]
AS_IS = "as_is"
DATA = (AS_IS, "fair", "unfair")
BY = ("class", "group")


def shares(data: str, counts: Sequence[int], ratio: float) -> list[float]:
    """Return each class's share of the training set ``data``, fair or unfair; they sum to 1.

    >>> [round(share, 3) for share in shares("unfair", [50, 90, 70], 4.0)]
    [0.143, 0.571, 0.286]
    """
    if data == "fair" or len(counts) == 1:
        return [1 / len(counts)] * len(counts)
    ranked = sorted(range(len(counts)), key=lambda k: -counts[k])
    weights = {k: ratio ** (-place / (len(counts) - 1)) for place, k in enumerate(ranked)}
    return [weights[k] / sum(weights.values()) for k in range(len(counts))]


def target_counts(data: str, counts: Sequence[int], ratio: float) -> list[int]:
    """Return how many training images of each class the set ``data`` has.

    Args:
        data: fair | unfair.
        counts: images there are, each at least 1.
        ratio: of the most to the fewest in the unfair set, at least 1.

    Raises:
        UserError: a class would have no image left.

    >>> target_counts("fair", [50, 90, 70], 4.0), target_counts("unfair", [50, 90, 70], 4.0)
    ([50, 50, 50], [21, 86, 43])
    """
    total = min(
        math.floor(count / share + 1e-9)
        for kind in ("fair", "unfair")
        for count, share in zip(counts, shares(kind, counts, ratio), strict=True)
    )
    exact = [total * share for share in shares(data, counts, ratio)]
    found = [math.floor(value + 1e-9) for value in exact]
    rest = sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))[: total - sum(found)]
    for k in rest:
        found[k] += 1
    if min(found) < 1:
        raise UserError(f"--ratio: got {ratio:g} for {total} images of {len(counts)} classes; allowed: less")
    return found


def subsample(store: Store, data: str, *, by: str, ratio: float, seed: int) -> Store:
    """Return ``store`` with the training set ``data``; what is left out belongs to no split.

    Args:
        store: the prepared data.
        data: as_is | fair | unfair.
        by: class | group: what is balanced or long-tailed.
        ratio: see ``target_counts``.
        seed: of the choice of images.

    Raises:
        UserError: a class or group without training images, or see ``target_counts``.
    """
    if data == AS_IS:
        return store
    codes, names = (store.labels, store.classes) if by == "class" else (store.groups, store.group_names)
    train = store.indices("train")
    counts = np.bincount(codes[train], minlength=len(names)).tolist()
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise UserError(f"--by: got {by} with no training image of {name!r}; allowed: some of each")
    random = np.random.default_rng(seed)
    kept = [
        random.choice(train[codes[train] == k], size, replace=False)
        for k, size in enumerate(target_counts(data, counts, ratio))
    ]
    splits = store.splits.copy()
    splits[np.setdiff1d(train, np.concatenate(kept))] = ""
    name = f"{store.meta['checksum']} {data} by {by} {ratio:g} seed {seed}"
    return replace(store, splits=splits, meta={**store.meta, "checksum": name})
