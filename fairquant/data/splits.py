"""Which samples train, validate and test: stratified by class and group, whole clusters, decided by the seed alone.

Within each group the units (samples, or clusters of samples) are ordered by class and, within a class, at random;
evenly spaced ones are taken. A group's share is then exact to one unit, each class's share within the group to one
unit, and no random draw decides it (systematic sampling, Madow & Madow 1944).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]

SPLITS = ("train", "val", "test")


def assign_splits(
    labels: Ints,
    groups: Ints,
    *,
    clusters: Sequence[str] | None = None,
    given: Sequence[str] | None = None,
    published: Collection[str] | None = None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Names:
    """Return train | val | test for each of N samples.

    Args:
        labels: class of each sample, (N,).
        groups: group of each sample, (N,).
        clusters: samples with equal values stay on one side, (N,); ``None`` where each stands alone.
        given: the publisher's split, (N,). All three are used as they are; train and test only: val is split from
            train; train and val only: the publisher's val is the test and val is split from train.
        published: which of the three the publisher gives, also where no sample of one is left; those in ``given``
            where ``None``.
        val_fraction: share of all samples that validate; of the published train part where ``given``.
        test_fraction: share of all samples that test; unused where ``given``.
        seed: decides the draw; the same seed and samples give the same splits.
    """
    splits = np.full(len(labels), "train", dtype="<U5")
    units = _units(labels, groups, clusters)
    if given is None:
        test = _draw(units, test_fraction, np.ones(len(labels), bool), seed=seed, stream=0)
        splits[test] = "test"
        val_share = val_fraction / (1 - test_fraction)
    else:
        splits[:] = given
        if {"val", "test"} <= set(given if published is None else published):
            return splits
        splits[(splits == "val") | (splits == "test")] = "test"
        val_share = val_fraction
    splits[_draw(units, val_share, splits == "train", seed=seed, stream=1)] = "val"
    return splits


def _units(labels: Ints, groups: Ints, clusters: Sequence[str] | None) -> tuple[Ints, Ints, Ints, Ints]:
    """Return (unit of each sample, and of each unit its class, group and size)."""
    if clusters is None:
        return np.arange(len(labels)), labels, groups, np.ones(len(labels), np.int64)
    _, first, inverse, sizes = np.unique(
        np.asarray(clusters), return_index=True, return_inverse=True, return_counts=True
    )
    return inverse.astype(np.int64), labels[first], groups[first], sizes.astype(np.int64)


def _draw(
    units: tuple[Ints, Ints, Ints, Ints], fraction: float, eligible: npt.NDArray[np.bool_], *, seed: int, stream: int
) -> npt.NDArray[np.bool_]:
    """Return the mask of samples drawn: whole units, ``fraction`` of the eligible ones of each group."""
    unit_of, unit_class, unit_group, unit_size = units
    candidates = np.unique(unit_of[eligible])
    random = np.random.default_rng([seed, stream])
    order = random.permutation(len(unit_class))
    chosen = np.zeros(len(unit_class), bool)
    for group in np.unique(unit_group[candidates]):
        members = candidates[unit_group[candidates] == group]
        members = members[np.lexsort((order[members], unit_size[members], unit_class[members]))]
        count = int(np.floor(len(members) * fraction + 0.5))
        if len(members) >= len(SPLITS) - stream:
            count = min(max(count, 1), len(members) - 1)
        chosen[evenly_spaced(members, count, random.random())] = True
    return chosen[unit_of] & eligible


def evenly_spaced(items: Ints, count: int, offset: float) -> Ints:
    """Return ``count`` of ``items``, evenly spaced; ``offset`` in [0, 1) shifts where the first one lies.

    >>> evenly_spaced(np.arange(10), 3, 0.5).tolist()
    [1, 5, 8]
    """
    positions = np.floor((np.arange(count) + offset) * len(items) / max(count, 1)).astype(np.int64)
    chosen: Ints = items[np.minimum(positions, len(items) - 1)]
    return chosen


def stratified_subset(labels: Ints, groups: Ints, count: int, *, seed: int, stream: int = 2) -> Ints:
    """Return the sorted positions of ``count`` of N samples in the proportions of class × group.

    Every class × group cell keeps at least one sample where ``count`` allows one for each; shares are then given by
    largest remainder.
    """
    random = np.random.default_rng([seed, stream])
    order = random.permutation(len(labels))
    cells, cell_of, sizes = np.unique(np.stack([groups, labels]), axis=1, return_inverse=True, return_counts=True)
    ranked = np.lexsort((order, cell_of.reshape(-1)))
    if count < cells.shape[1]:
        return np.sort(evenly_spaced(ranked, count, random.random()))
    quotas = _quotas(sizes.astype(np.int64), count)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank_in_cell = np.arange(len(ranked)) - np.repeat(starts, sizes)
    return np.sort(ranked[rank_in_cell < np.repeat(quotas, sizes)])


def _quotas(sizes: Ints, count: int) -> Ints:
    """Share ``count`` among cells: one each, the rest by largest remainder of the sizes beyond one."""
    rest = sizes - 1
    exact = rest * ((count - len(sizes)) / max(int(rest.sum()), 1))
    quotas: Ints = np.floor(exact).astype(np.int64)
    short = count - len(sizes) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:short]] += 1
    quotas += 1
    return quotas


def subset_count(amount: float, available: int) -> int:
    """Return how many samples ``amount`` asks for: a share in (0, 1] of ``available``, or a count above 1.

    >>> subset_count(0.5, 31), subset_count(100, 31), subset_count(1.0, 31)
    (16, 100, 31)
    """
    return max(1, int(np.floor(available * amount + 0.5))) if amount <= 1 else int(amount)
