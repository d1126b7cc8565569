"""What must hold for samples of any data set; every violation becomes a ``Problem``, none is passed over."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from fairquant.data.raw import Problem, RawDataset, RawSample
from fairquant.data.splits import SPLITS, Names

Found = list[tuple[int, Problem]]
"""Problems with the position of the sample they concern."""

LISTED = 20
"""How many of the labels that are allowed a message lists."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{0,12})?([eE][+-]?[0-9]{1,3})?")
"""Numbers that decimal arithmetic tells apart; longer digits are names."""


def check_rows(raw: RawDataset) -> Found:
    """Check each sample by itself: file, label, group values, id, split value, cluster value."""
    found: Found = []
    any_split = any(sample.split for sample in raw.samples)
    classes = frozenset(raw.classes)
    listed = " | ".join(raw.classes[:LISTED]) + (f" | … ({len(classes)} in all)" if len(classes) > LISTED else "")
    first_row: dict[str, int] = {}
    for position, sample in enumerate(raw.samples):
        problems = [*_check_label(sample, classes, listed), *_check_groups(sample, raw.group_columns)]
        problems += _check_split(sample, any_split)
        problems += _check_file(sample)
        if sample.id in first_row:
            text = f"the id {sample.id!r} stands in row {first_row[sample.id]} already"
            problems.append(sample.problem("duplicate id", sample.id, text))
        first_row.setdefault(sample.id, sample.row)
        found += [(position, problem) for problem in problems]
    return found


def _check_label(sample: RawSample, classes: frozenset[str], listed: str) -> Iterable[Problem]:
    if not sample.label.strip():
        yield sample.problem("empty label", sample.label, "the label is empty")
    elif sample.label not in classes:
        text = f"got the label {sample.label!r}; allowed: {listed}"
        yield sample.problem("unknown label", sample.label, text)


def _check_groups(sample: RawSample, columns: Sequence[str]) -> Iterable[Problem]:
    for column, value in zip(columns, sample.groups, strict=True):
        if not value.strip():
            yield sample.problem("empty group value", column, f"the group column {column!r} is empty")


def _check_file(sample: RawSample) -> Iterable[Problem]:
    if not isinstance(sample.image, Path):
        return
    try:
        if not sample.image.is_file():
            yield sample.problem("missing file", sample.id, f"no image file {sample.id!r}")
    except OSError as error:  # a name longer than the file system allows, a folder that may not be entered
        yield sample.problem("missing file", sample.id, f"the file cannot be looked up ({error.strerror})")


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


def check_files(samples: Sequence[RawSample], positions: Sequence[int], splits: Names) -> Found:
    """Report every sample whose file also stands on another side, under another id."""
    paths = [_path(samples[position]) for position in positions]
    sides: dict[str, set[str]] = defaultdict(set)
    for path, split in zip(paths, splits.tolist(), strict=True):
        sides[path].add(split)
    sides.pop("", None)
    found: Found = []
    for position, path in zip(positions, paths, strict=True):
        if len(sides.get(path, ())) > 1:
            name = Path(path).name
            text = f"the image {name!r} stands in {' and '.join(side for side in SPLITS if side in sides[path])}"
            found.append((position, samples[position].problem("image on two sides", name, text)))
    return found


def _path(sample: RawSample) -> str:
    return os.path.normpath(sample.image) if isinstance(sample.image, Path) else ""


def check_names(raw: RawDataset) -> list[Problem]:
    """Report values that are one to people and two to a computer, "1" and "1.0", of a label, group or split_by column.

    Of two spellings of a patient one could be trained on and the other tested.
    """
    known = frozenset(raw.classes)
    columns = {"label": {sample.label for sample in raw.samples} & known}
    columns |= {
        f"group column {column!r}": {sample.groups[place] for sample in raw.samples}
        for place, column in enumerate(raw.group_columns)
    }
    problems = []
    columns["split_by column"] = {sample.cluster or "" for sample in raw.samples}
    for where, values in columns.items():
        for names in alike(values, same_id if where == "split_by column" else spelling):
            text = f"the {where} has {' and '.join(map(repr, names))}; allowed: one spelling of a value"
            problems.append(Problem("value spelled in two ways", 0, names[0], text, fatal=True))
    return problems


def alike(names: Iterable[str], plain: Callable[[str], str]) -> list[tuple[str, ...]]:
    """Return the names that ``plain`` makes equal, those of each kind sorted.

    >>> alike(["Male", "male", "female"], str.casefold)
    [('Male', 'male')]
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in names:
        kinds[plain(name)].add(name)
    return sorted(tuple(sorted(kind)) for kind in kinds.values() if len(kind) > 1)


def spelling(text: str) -> str:
    """Return ``text`` without what people do not see: outer spaces, composed signs, the digits behind 1.0.

    >>> spelling(" 1.0"), spelling("1e0"), spelling("I ")
    ('1', '1', 'I')
    """
    seen = " ".join(unicodedata.normalize("NFC", text).split())
    return str(Decimal(seen).normalize()) if _NUMBER.fullmatch(seen) else seen


def same_id(text: str) -> str:
    """Return ``text`` as ``spelling`` does, but for numbers of other forms: the ids 1e3 and 1000, 7 and 07 are two.

    >>> same_id("p 3 "), same_id("3.0"), same_id("07"), same_id("1e3")
    ('p 3', '3', '07', '1e3')
    """
    seen = " ".join(unicodedata.normalize("NFC", text).split())
    return re.sub(r"^([0-9]+)\.0*$", r"\1", seen)


def one_class(name: str) -> Problem:
    """Return the problem of a data set in which every sample has the label ``name``."""
    return Problem(
        "one class", 0, name, f"every sample has the label {name!r}; allowed: two or more labels", fatal=True
    )


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
