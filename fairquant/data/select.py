"""Which samples of a data set are kept, in which group and split: checks, minimum size, splits, subsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fairquant.config.schema import DataSection
from fairquant.data.checks import Found, check_clusters, check_files, check_names, check_presence, check_rows, one_class
from fairquant.data.groups import OTHER, group_name, order_names, small_group_problem, small_groups
from fairquant.data.raw import Problem, RawDataset
from fairquant.data.splits import SPLITS, Ints, Names, assign_splits, stratified_subset, subset_count
from fairquant.errors import DataError

DEBUG_COUNTS = {"train": 256, "val": 64, "test": 96}
"""How many samples of each split ``debug: true`` keeps, where there are as many."""


@dataclass
class Ledger:
    """What was found wrong so far and, where dropping is on, how many rows went for which reason."""

    drop: bool
    problems: list[Problem] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def remove(self, keep: Ints, found: Found) -> Ints:
        """Note ``found`` and return ``keep`` without the positions concerned; a row counts once, for its first kind."""
        self.problems += [problem for _, problem in found]
        first = {position: problem.kind for position, problem in reversed(found)}
        self.dropped.update(first[position] for position in keep.tolist() if position in first)
        return keep[~np.isin(keep, list(first))]

    def blocks(self) -> bool:
        """Whether the data cannot be used as asked."""
        return any(problem.fatal for problem in self.problems) or bool(self.problems and not self.drop)


@dataclass(frozen=True)
class Selection:
    """The samples to decode: positions in ``raw.samples`` and, aligned with them, label, group and split.

    ``sizes`` holds how many samples each group has before subsets are taken.
    """

    raw: RawDataset
    positions: Ints
    labels: Ints
    groups: Ints
    group_names: tuple[str, ...]
    splits: Names
    merged: tuple[str, ...]
    split_source: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def without(self, rows: Iterable[int]) -> Selection:
        """Return the selection less the given rows of it."""
        keep = np.setdiff1d(np.arange(len(self.positions)), list(rows)).astype(np.int64)
        return self.at(keep)

    def at(self, rows: Ints) -> Selection:
        """Return the selection of the given rows of it."""
        return replace(
            self,
            positions=self.positions[rows],
            labels=self.labels[rows],
            groups=self.groups[rows],
            splits=self.splits[rows],
        )

    def check(self) -> list[Problem]:
        """Return one problem for each group absent from a split."""
        names = [self.group_names[index] for index in self.groups]
        return check_presence(names, self.splits.tolist(), self.group_names)

    def shortage(self, minimum: int, *, without: Selection) -> list[Problem]:
        """Return what is too little here and was enough in ``without``: samples of a group, classes."""
        problems = []
        lost = without.counts() - self.counts()
        for name in sorted(lost, key=self.group_names.index):
            left = self.sizes[name] - lost[name]
            if 0 < left < minimum:
                text = (
                    f"the group {name!r} has {left} samples that can be read; allowed: at least "
                    f"data.min_group_size {minimum}: mend its images, or lower it"
                )
                problems.append(Problem("small group", 0, name, text, fatal=True))
        if len(np.unique(self.labels)) == 1 and len(np.unique(without.labels)) > 1:
            problems.append(one_class(self.raw.classes[self.labels[0]]))
        return problems

    def counts(self) -> Counter[str]:
        """Return how many samples each group has."""
        return Counter(self.group_names[index] for index in self.groups.tolist())


def select(raw: RawDataset, section: DataSection, ledger: Ledger, *, debug: bool) -> Selection:
    """Apply every rule but decoding; what is wrong is noted in ``ledger``, and rows that are wrong are left out."""
    ledger.problems += [*raw.problems, *check_names(raw)]
    rows = {(problem.table, problem.row): problem.kind for problem in reversed(raw.problems) if problem.row}
    ledger.dropped.update(rows.values())
    keep = ledger.remove(np.arange(len(raw.samples)), check_rows(raw))
    members = {position: group_name(raw.samples[position].groups) for position in keep.tolist()}
    names = order_names([raw.samples[p].groups for p in keep.tolist()], raw.group_columns, raw.group_order)
    keep, names, merged = _apply_minimum_size(keep, members, names, section, ledger)
    labels = _codes(raw.classes, [raw.samples[p].label for p in keep.tolist()])
    groups = _codes(names, [members[p] for p in keep.tolist()])
    if len(np.unique(labels)) == 1:
        ledger.problems.append(one_class(raw.classes[labels[0]]))
    splits, split_source = _split(raw, keep, labels, groups, section)
    selection = Selection(raw, keep, labels, groups, names, splits, merged, split_source)
    selection = _drop_absent(selection, ledger)
    return _subsets(replace(selection, sizes=selection.counts()), section, ledger, debug=debug)


def _codes(names: Sequence[str], values: Iterable[str]) -> Ints:
    """Return the position in ``names`` of each value."""
    place = {name: code for code, name in enumerate(names)}
    return np.array([place[value] for value in values], np.int64)


def _apply_minimum_size(
    keep: Ints, members: dict[int, str], names: tuple[str, ...], section: DataSection, ledger: Ledger
) -> tuple[Ints, tuple[str, ...], tuple[str, ...]]:
    """Apply data.small_groups; ``members`` is updated in place. Returns (positions, group names, merged names)."""
    minimum = section.min_group_size
    small = small_groups(list(members.values()), minimum)
    if small and section.small_groups == "drop":
        gone = [position for position in keep.tolist() if members[position] in small]
        ledger.dropped["small group"] += len(gone)
        return keep[~np.isin(keep, gone)], tuple(name for name in names if name not in small), ()
    merged: tuple[str, ...] = ()
    if small and section.small_groups == "merge":
        merged = tuple(name for name in names if name in small and name != OTHER)
        members.update({position: OTHER for position, name in members.items() if name in small})
        names = (*(name for name in names if name not in small and name != OTHER), OTHER)
        small = small_groups(list(members.values()), minimum)
    ledger.problems += [small_group_problem(name, count, minimum) for name, count in small.items()]
    return keep, names, merged


def _split(raw: RawDataset, keep: Ints, labels: Ints, groups: Ints, section: DataSection) -> tuple[Names, str]:
    samples = [raw.samples[position] for position in keep.tolist()]
    given = [sample.split or "" for sample in samples]
    kinds = {sample.split or "" for sample in raw.samples} & set(SPLITS)
    clusters = [sample.cluster or "" for sample in samples] if any(sample.cluster for sample in samples) else None
    splits = assign_splits(
        labels,
        groups,
        clusters=clusters,
        given=given if kinds else None,
        published=kinds,
        val_fraction=section.val_fraction,
        test_fraction=section.test_fraction,
        seed=section.seed,
    )
    return splits, _split_source(kinds)


def _split_source(kinds: set[str]) -> str:
    if not kinds:
        return "drawn"
    if kinds == {"train", "test"}:
        return "publisher; val drawn from train"
    return "publisher; its val is the test, val drawn from train" if kinds == {"train", "val"} else "publisher"


def _drop_absent(selection: Selection, ledger: Ledger) -> Selection:
    """Note clusters and files on two sides and groups absent from a split, and leave their samples out."""
    samples, positions = selection.raw.samples, selection.positions.tolist()
    found = check_clusters(samples, positions, selection.splits) + check_files(samples, positions, selection.splits)
    kept = ledger.remove(selection.positions, found)
    selection = selection.at(np.flatnonzero(np.isin(selection.positions, kept)).astype(np.int64))
    absent = selection.check()
    ledger.problems += absent
    gone = [name for name in selection.group_names if name in {p.value for p in absent if not p.fatal}]
    if not gone:
        return selection
    indices = [selection.group_names.index(name) for name in gone]
    ledger.dropped["group absent from a split"] += int(np.isin(selection.groups, indices).sum())
    return _forget_groups(selection, gone)


def _forget_groups(selection: Selection, gone: Sequence[str]) -> Selection:
    names = tuple(name for name in selection.group_names if name not in gone)
    old = [selection.group_names[index] for index in selection.groups]
    rows = np.flatnonzero(~np.isin(selection.groups, [selection.group_names.index(name) for name in gone]))
    groups = _codes(names, [old[row] for row in rows])
    return replace(selection.at(rows), groups=groups, group_names=names)


def _subsets(selection: Selection, section: DataSection, ledger: Ledger, *, debug: bool) -> Selection:
    """Keep what data.train_subset, data.test_subset and debug ask for; the order of samples stays."""
    if ledger.blocks():
        return selection
    rows = []
    for split in ("train", "val", "test"):
        members = np.flatnonzero(selection.splits == split).astype(np.int64)
        amount = {"train": section.train_subset, "test": section.test_subset}.get(split, 1.0)
        count = subset_count(amount, len(members))
        if count > len(members):
            raise DataError(f"data.{split}_subset: got {amount}; allowed: at most {len(members)}, the size of {split}")
        labels, groups = selection.labels[members], selection.groups[members]
        if debug:
            cells = len(np.unique(np.stack([groups, labels]), axis=1).T)
            count = min(count, max(DEBUG_COUNTS[split], cells))
        chosen = stratified_subset(labels, groups, count, seed=section.seed)
        gone = np.setdiff1d(groups, groups[chosen])
        if len(gone):
            first = selection.group_names[gone[0]]
            raise DataError(
                f"data.{split}_subset: got {amount:g}, which leaves {len(gone)} groups without a sample in {split}, "
                f"{first!r} the first of them; allowed: more samples, or fewer groups (data.small_groups)"
            )
        rows.append(members[chosen])
    return selection.at(np.sort(np.concatenate(rows)))
