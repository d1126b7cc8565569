"""FairFace: faces balanced over seven race groups, labelled with age, gender and race.

Source: K. Kärkkäinen, J. Joo, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age for Bias
Measurement and Mitigation", WACV 2021 (CC BY 4.0). ``data.path`` holds either form:

- fairface_label_train.csv and fairface_label_val.csv with the columns file,age,gender,race,service_test, and the images
  at the paths in ``file`` (train/1.jpg, val/1.jpg). Ages that a spreadsheet turned into dates ("03-Sep" for 3-9,
  "Oct-19" for 10-19) are repaired and counted.
- the data set HuggingFaceM4/FairFace of the Hugging Face hub: 0.25/train-00000-of-00002-….parquet,
  0.25/validation-….parquet and the same under 1.25 (the margin around the face), or one of the two in ``data.path``
  itself, or saved by ``save_to_disk`` (folders train and validation with .arrow files). Labels are numbers there, named
  by the files themselves. Images have no name of their own; ids are "train-00001" and so on.

The publisher's val is the test; val is split from train.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from fairquant.config.base import Section
from fairquant.data.huggingface import ShardRow, find_shards, read_shard
from fairquant.data.raw import DataRequest, Problem, RawDataset, RawSample, choose, choose_groups
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

LAYOUT = (
    "fairface_label_train.csv, fairface_label_val.csv (file,age,gender,race,service_test) and folders train, val, or "
    "the files of HuggingFaceM4/FairFace (0.25/train-*.parquet, 0.25/validation-*.parquet)"
)
HOMEPAGE = "github.com/joojs/fairface or the data set HuggingFaceM4/FairFace on the Hugging Face hub"
TABLES = {"train": "fairface_label_train.csv", "test": "fairface_label_val.csv"}
PARTS = {"train": "train", "test": "validation"}
VALUES = {
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"),
    "gender": ("Male", "Female"),
    "race": ("Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern", "Southeast Asian", "White"),
}
MANGLED_AGES = {
    "03-Sep": "3-9",
    "3-Sep": "3-9",
    "Sep-03": "3-9",
    "09-Mar": "3-9",
    "9-Mar": "3-9",
    "Oct-19": "10-19",
    "19-Oct": "10-19",
}


def _text(value: object) -> object:
    """Let YAML's number 0.25 stand for the folder's name."""
    return str(value) if isinstance(value, float) else value


class Options(Section):
    """Settings of FairFace; ``data.label`` and ``data.group`` choose among age, gender and race.

    Attributes:
        source: ``csv`` or ``huggingface``; ``auto`` takes the form that is there and refuses to choose between two.
        margin: which folder of the Hugging Face form: the share of the face's width that is kept around it.
    """

    source: Literal["auto", "csv", "huggingface"] = "auto"
    margin: Annotated[Literal["0.25", "1.25"], BeforeValidator(_text)] = "0.25"


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read both parts; the default target is gender, the default group race."""
    label = choose("data.label", request.label, tuple(VALUES), "gender")
    groups = choose_groups(request.group, tuple(VALUES), ("race",))
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for fairface, which names no person")
    folder = _find_shards_folder(request.path, options)
    notes: Counter[str] = Counter()
    if folder is None:
        samples, problems = _from_tables(request.path, label, groups, notes)
    else:
        samples, problems = _from_shards(folder, label, groups)
    judged = [(sample, _unknown_group(sample, groups)) for sample in samples]
    problems += [problem for _, problem in judged if problem is not None]
    samples = [sample for sample, problem in judged if problem is None]
    return RawDataset("fairface", VALUES[label], groups, samples, problems, group_order=VALUES, notes=notes)


def _unknown_group(sample: RawSample, columns: tuple[str, ...]) -> Problem | None:
    """Return a problem for a group value that is none of the published ones; empty ones are told elsewhere."""
    for column, value in zip(columns, sample.groups, strict=True):
        if value.strip() and value not in VALUES[column]:
            text = f"got the {column} {value!r}; allowed: {' | '.join(VALUES[column])}"
            return sample.problem("unknown group value", value, text)
    return None


def _find_shards_folder(path: Path, options: Options) -> Path | None:
    """Return the folder with the Hugging Face form, or ``None`` where the tables are to be read."""
    folders = [path / options.margin, path]
    folder = next((folder for folder in folders if any(find_shards(folder, part) for part in PARTS.values())), None)
    tables = any((path / name).is_file() for name in TABLES.values())
    if options.source == "auto" and folder is not None and tables:
        raise DataError(
            f"datasets.fairface.source: got 'auto' with both forms in {path}; allowed: csv | huggingface where both are"
        )
    if options.source == "csv" or (options.source == "auto" and tables):
        return None
    if folder is None:
        raise DataError(
            f"data.path: {path / TABLES['train']}: not found; expected {LAYOUT}; the publisher offers no direct link "
            f"(Google Drive), take the files from {HOMEPAGE}"
        )
    return folder


def _from_tables(
    folder: Path, label: str, groups: tuple[str, ...], notes: Counter[str]
) -> tuple[list[RawSample], list[Problem]]:
    """Read both label tables; repaired ages are counted in ``notes``."""
    tables = {split: read_table(folder / name, layout=LAYOUT) for split, name in TABLES.items()}
    problems = [problem for table in tables.values() for problem in table.problems]
    missing = [problem for table in tables.values() for problem in table.missing(["file", *VALUES])]
    samples: list[RawSample] = []
    notes["ages repaired"] = 0
    for split, table in tables.items():
        for row in [] if missing else table.rows:
            notes["ages repaired"] += row.values["age"] in MANGLED_AGES
            samples.append(_sample(row, table, split, label, groups))
    return samples, [*problems, *missing]


def _from_shards(folder: Path, label: str, groups: tuple[str, ...]) -> tuple[list[RawSample], list[Problem]]:
    """Read the labels of both parts of the Hugging Face form."""
    samples: list[RawSample] = []
    problems: list[Problem] = []
    for split, part in PARTS.items():
        shards = find_shards(folder, part)
        if not shards:
            raise DataError(f"data.path: no file of the part {part!r} in {folder}; expected {LAYOUT}")
        before = 0
        for shard in shards:
            rows, found = read_shard(shard, tuple(VALUES), ("service_test",))
            problems += found
            samples += [_shard_sample(row, before, shard.name, split, label, groups) for row in rows]
            before += len(rows) + sum(problem.row > 0 for problem in found)
    return samples, problems


def _shard_sample(row: ShardRow, before: int, table: str, split: str, label: str, groups: tuple[str, ...]) -> RawSample:
    """Return the sample of a row; ``before`` rows of its part stand in earlier files."""
    return RawSample(
        id=f"{PARTS[split]}-{before + row.number:05d}",
        row=row.number,
        label=row.values[label],
        groups=tuple(row.values[column] for column in groups),
        image=row.image,
        split=split,
        attributes=row.values,
        table=table,
    )


def _sample(row: Row, table: Table, split: str, label: str, groups: tuple[str, ...]) -> RawSample:
    values = {**row.values, "age": MANGLED_AGES.get(row.values["age"], row.values["age"])}
    return RawSample(
        id=values["file"],
        row=row.number,
        label=values[label],
        groups=tuple(values[column] for column in groups),
        image=table.path.parent / values["file"],
        split=split,
        attributes=values,
        table=table.path.name,
    )
