"""What must hold for samples of any data set; every violation becomes a ``Problem``, none is passed over."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fairquant.data.raw import Problem, RawDataset, RawSample
from fairquant.data.splits import SPLITS, Names

Found = list[tuple[int, Problem]]
"""Problems with the position of the sample they concern."""


def check_rows(raw: RawDataset) -> Found:
    """Check each sample by itself: file, label, group values, id, split value, cluster value."""
    found: Found = []
    any_split = any(sample.split for sample in raw.samples)
    first_row: dict[str, int] = {}
    for position, sample in enumerate(raw.samples):
        problems = [*_check_label(sample, raw.classes), *_check_groups(sample, raw.group_columns)]
        problems += _check_split(sample, any_split)
        if isinstance(sample.image, Path) and not sample.image.is_file():
            problems.append(sample.problem("missing file", sample.id, f"no image file {sample.id!r}"))
        if sample.id in first_row:
            text = f"the id {sample.id!r} stands in row {first_row[sample.id]} already"
            problems.append(sample.problem("duplicate id", sample.id, text))
        first_row.setdefault(sample.id, sample.row)
        found += [(position, problem) for problem in problems]
    return found


def _check_label(sample: RawSample, classes: Sequence[str]) -> Iterable[Problem]:
    if not sample.label.strip():
        yield sample.problem("empty label", sample.label, "the label is empty")
    elif sample.label not in classes:
        text = f"got the label {sample.label!r}; allowed: {' | '.join(classes)}"
        yield sample.problem("unknown label", sample.label, text)


def _check_groups(sample: RawSample, columns: Sequence[str]) -> Iterable[Problem]:
    for column, value in zip(columns, sample.groups, strict=True):
        if not value.strip():
            yield sample.problem("empty group value", column, f"the group column {column!r} is empty")


def _check_split(sample: RawSample, any_split: bool) -> Iterable[Problem]:
    if sample.cluster is not None and not sample.cluster.strip():
        yield sample.problem("empty split_by value", sample.cluster, "the split_by column is empty")
    if any_split and not (sample.split or "").strip():
        yield sample.problem("missing split value", "", "the split is empty here and given elsewhere")
    elif sample.split and sample.split not in SPLITS:
        text = f"got the split {sample.split!r}; allowed: {' | '.join(SPLITS)}"
        yield sample.problem("bad split value", sample.split, text)


def check_clusters(samples: Sequence[RawSample], positions: Sequence[int], splits: Names) -> Found:
    """Report every sample of a cluster that stands on two sides; ``splits[i]`` belongs to ``positions[i]``."""
    sides: dict[str, set[str]] = defaultdict(set)
    for position, split in zip(positions, splits.tolist(), strict=True):
        sides[samples[position].cluster or ""].add(split)
    sides.pop("", None)
    found: Found = []
    for position in positions:
        cluster = samples[position].cluster or ""
        if len(sides.get(cluster, ())) > 1:
            text = f"{cluster!r} stands in {' and '.join(side for side in SPLITS if side in sides[cluster])}"
            found.append((position, samples[position].problem("cluster on two sides", cluster, text)))
    return found


def check_presence(groups: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> list[Problem]:
    """Report each group that has no sample in some split, and each split that has none at all."""
    counts = Counter(zip(groups, splits, strict=True))
    present = [split for split in SPLITS if split in set(splits)]
    problems = [
        Problem("empty split", 0, split, f"no sample is left in {split}", fatal=True)
        for split in SPLITS
        if split not in present
    ]
    for name in names:
        absent = [split for split in present if not counts[name, split]]
        if absent:
            have = ", ".join(f"{split} {counts[name, split]}" for split in SPLITS)
            text = f"the group {name!r} has no sample in {' and '.join(absent)} ({have}); allowed: at least one in each"
            problems.append(Problem("group absent from a split", 0, name, text))
    return problems
