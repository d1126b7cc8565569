"""Fitzpatrick17k: 16,577 clinical images of 114 skin conditions, annotated with the Fitzpatrick skin type.

Source: M. Groh, C. Harris, L. Soenksen, F. Lau, R. Han, A. Kim, A. Koochek, O. Badri, "Evaluating Deep Neural Networks
Trained on Clinical Images in Dermatology with the Fitzpatrick 17k Dataset", CVPR Workshops 2021 (CC BY-NC-SA 3.0; the
images belong to two dermatology atlases). Layout of ``data.path``: fitzpatrick17k.csv (md5hash, fitzpatrick_scale or in
earlier versions fitzpatrick, fitzpatrick_centaur, label, nine_partition_label, three_partition_label, qc, url, …) and
images/<md5hash>.jpg. Only the table has a direct link and is fetched.

Splits: train_score.csv, all_val.csv and all_test.csv say by their md5hash on which side an image stands. All three are
used as they are; with train and val alone val is the test, with train and test alone val is drawn from train. Images
that no file lists are problems, and so are hashes that are listed twice or are not in the table. No patient is named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fairquant.config.base import Section
from fairquant.data.download import Link, fetch
from fairquant.data.listing import find_images
from fairquant.data.raw import DataRequest, Problem, RawDataset, RawSample, choose, choose_groups, natural_order
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

TABLE = "fitzpatrick17k.csv"
LINK = Link("https://raw.githubusercontent.com/mattgroh/fitzpatrick17k/main/fitzpatrick17k.csv")
LAYOUT = (
    "fitzpatrick17k.csv (md5hash,fitzpatrick_scale,label,nine_partition_label,three_partition_label,qc,…) and "
    "images/<md5hash>.jpg, with train_score.csv, all_val.csv and all_test.csv where there are such splits"
)
FOLDERS = ("images", "finalfitz17k")
SPLIT_TABLES = {"train": "train_score.csv", "val": "all_val.csv", "test": "all_test.csv"}
TYPE_COLUMNS = ("fitzpatrick_scale", "fitzpatrick")
TYPES = ("I", "II", "III", "IV", "V", "VI")
TONES = ("I-III", "IV-VI")
UNKNOWN = "unknown"
GROUPS = ("fitzpatrick", "tone", "fitzpatrick_centaur", "tone_centaur")
LABELS = {
    "three_partition_label": ("non-neoplastic", "benign", "malignant"),
    "nine_partition_label": (
        "inflammatory",
        "genodermatoses",
        "benign dermal",
        "benign epidermal",
        "benign melanocyte",
        "malignant cutaneous lymphoma",
        "malignant dermal",
        "malignant epidermal",
        "malignant melanoma",
    ),
    "label": (),
    "malignant": ("not malignant", "malignant"),
}
WRONGLY_LABELLED = "3 wrongly labelled"


class Options(Section):
    """Settings of fitzpatrick17k.

    Attributes:
        unknown: what becomes of images whose skin type is unknown (-1) in a group column asked for. keep: a group
            "unknown"; drop: they are left out and counted; error: each is a problem.
        qc: all, or clean: images that a dermatologist found wrongly labelled (qc) are left out and counted.
        use_split: whether split files are used; false draws a split even where there are some.
    """

    unknown: Literal["keep", "drop", "error"] = "keep"
    qc: Literal["all", "clean"] = "all"
    use_split: bool = True


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the table; the default target is three_partition_label, the default group fitzpatrick."""
    label = choose("data.label", request.label, tuple(LABELS), "three_partition_label")
    groups = choose_groups(request.group, GROUPS, ("fitzpatrick",))
    if request.split_by is not None:
        raise DataError(
            f"data.split_by: got {request.split_by!r}; allowed: null for fitzpatrick17k, which names no patient"
        )
    images = _find(request.path)
    if request.download and not (request.path / TABLE).is_file():
        fetch(LINK, request.path / TABLE, layout=LAYOUT)
    table = read_table(request.path / TABLE, layout=LAYOUT)
    source = _label_source(label)
    missing = table.missing(["md5hash", _type_column(table), source, *(["qc"] if options.qc == "clean" else [])])
    missing += table.missing(["fitzpatrick_centaur"] if any(name.endswith("centaur") for name in groups) else [])
    rows = [] if missing else table.rows
    splits, problems = _read_splits(request.path, rows) if options.use_split and not missing else ({}, [])
    samples = [_sample(row, table, images, label, groups, splits) for row in rows]
    kept, notes, found = _leave_out(samples, options)
    return RawDataset(
        "fitzpatrick17k",
        LABELS[label] or natural_order([sample.label for sample in kept]),
        groups,
        kept,
        [*table.problems, *missing, *problems, *found],
        group_order={name: (*(TONES if name.startswith("tone") else TYPES), UNKNOWN) for name in GROUPS},
        notes=notes,
    )


def _find(folder: Path) -> dict[str, Path]:
    images = find_images(folder, FOLDERS)
    if not images:
        raise DataError(
            f"data.path: no .jpg under {folder / FOLDERS[0]}; the publisher links to each image in the column url and "
            f"hands out all of them on request (github.com/mattgroh/fitzpatrick17k); expected {LAYOUT}"
        )
    return images


def _label_source(label: str) -> str:
    return "three_partition_label" if label == "malignant" else label


def _type_column(table: Table) -> str:
    """Return the column of skin types under either of its names; both at once are ambiguous."""
    there = [name for name in TYPE_COLUMNS if name in table.columns]
    if len(there) == 2:
        raise DataError(f"{table.path}: got both {' and '.join(there)}; allowed: one column of skin types")
    return there[0] if there else TYPE_COLUMNS[0]


def skin_type(value: str) -> str:
    """Return I to VI for 1 to 6 (also "1.0"), "unknown" for -1, and anything else as it is.

    >>> skin_type("4"), skin_type("6.0"), skin_type("-1"), skin_type("7")
    ('IV', 'VI', 'unknown', '7')
    """
    number = re.fullmatch(r"\s*(-1|[1-6])(\.0*)?\s*", value)
    if number is None:
        return value
    return UNKNOWN if number[1] == "-1" else TYPES[int(number[1]) - 1]


def tone(value: str) -> str:
    """Return I-III or IV-VI for a skin type, and anything else as it is.

    >>> tone("III"), tone("IV"), tone("unknown")
    ('I-III', 'IV-VI', 'unknown')
    """
    return TONES[TYPES.index(value) >= 3] if value in TYPES else value


def _sample(
    row: Row, table: Table, images: dict[str, Path], label: str, groups: tuple[str, ...], splits: dict[str, str]
) -> RawSample:
    values = dict(row.values)
    values["fitzpatrick"] = skin_type(values.pop(_type_column(table)))
    values["tone"] = tone(values["fitzpatrick"])
    if "fitzpatrick_centaur" in values:
        values["fitzpatrick_centaur"] = skin_type(values["fitzpatrick_centaur"])
        values["tone_centaur"] = tone(values["fitzpatrick_centaur"])
    if label == "malignant":
        partition = values["three_partition_label"]
        known = partition in LABELS["three_partition_label"]
        values["malignant"] = LABELS["malignant"][partition == "malignant"] if known else partition
    name = values["md5hash"]
    return RawSample(
        id=name,
        row=row.number,
        label=values[label],
        groups=tuple(values[column] for column in groups),
        image=images.get(name, table.path.parent / FOLDERS[0] / f"{name}.jpg"),
        split=splits.get(name, "") if splits else None,
        attributes=values,
    )


def _leave_out(samples: Sequence[RawSample], options: Options) -> tuple[list[RawSample], dict[str, int], list[Problem]]:
    """Apply the options ``qc`` and ``unknown``: (samples kept, how many were left out, problems)."""
    kept: list[RawSample] = []
    problems: list[Problem] = []
    notes: Counter[str] = Counter()
    for sample in samples:
        problem = _type_problem(sample, options)
        if options.qc == "clean" and sample.attributes["qc"].strip().lower() == WRONGLY_LABELLED:
            notes["left out: wrongly labelled"] += 1
        elif problem is not None:
            problems.append(problem)
        elif UNKNOWN in sample.groups and options.unknown == "drop":
            notes["left out: unknown skin type"] += 1
        else:
            kept.append(sample)
    return kept, dict(notes), problems


def _type_problem(sample: RawSample, options: Options) -> Problem | None:
    """Report a group value that is no skin type; empty ones are reported for every data set alike."""
    for value in sample.groups:
        if value == UNKNOWN and options.unknown == "error":
            text = "the skin type is unknown (-1); allowed: 1 to 6, or datasets.fitzpatrick17k.unknown: keep | drop"
            return sample.problem("unknown skin type", sample.id, text)
        if value.strip() and value not in (*TYPES, *TONES, UNKNOWN):
            text = f"got the skin type {value!r}; allowed: 1 to 6, or -1 for unknown"
            return sample.problem("bad skin type", value, text)
    return None


def _read_splits(folder: Path, rows: Sequence[Row]) -> tuple[dict[str, str], list[Problem]]:
    """Return (split of each md5hash, what is wrong with the split files)."""
    there = {split: folder / name for split, name in SPLIT_TABLES.items() if (folder / name).is_file()}
    if there and ("train" not in there or len(there) == 1):
        names = " and ".join(path.name for path in there.values())
        raise DataError(
            f"{folder}: got {names} without the others; allowed: train_score.csv with all_val.csv, all_test.csv or "
            "both, or none of them, or datasets.fitzpatrick17k.use_split: false"
        )
    known = {row.values["md5hash"] for row in rows}
    splits: dict[str, str] = {}
    problems: list[Problem] = []
    for split, path in there.items():
        table = read_table(path, layout=LAYOUT)
        missing = table.missing(["md5hash"])
        problems += [*table.problems, *missing]
        for row in [] if missing else table.rows:
            name = row.values["md5hash"]
            reason = _split_problem(name, split, known, splits)
            if reason is None:
                splits[name] = split
            else:
                problems.append(Problem(reason[0], row.number, name, reason[1], table=path.name))
    return splits, problems


def _split_problem(name: str, split: str, known: set[str], splits: dict[str, str]) -> tuple[str, str] | None:
    """Return (kind, message) of what is wrong with this line of a split file."""
    if name not in known:
        return "unknown id in a split", f"{name!r} is not in {TABLE}"
    if name not in splits:
        return None
    if splits[name] == split:
        return "id twice in a split", f"{name!r} is listed above already"
    return "id in two splits", f"{name!r} is listed in {SPLIT_TABLES[splits[name]]} already"
