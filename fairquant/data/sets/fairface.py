"""FairFace: faces balanced over seven race groups, labelled with age, gender and race.

Source: K. Kärkkäinen, J. Joo, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age for Bias
Measurement and Mitigation", WACV 2021 (CC BY 4.0). Layout of ``data.path``: fairface_label_train.csv and
fairface_label_val.csv with the columns file,age,gender,race,service_test, and the images at the paths in ``file``
(train/1.jpg, val/1.jpg). The publisher's val is the test; val is split from train. Ages that a spreadsheet turned
into dates ("03-Sep" for 3-9, "Oct-19" for 10-19) are repaired and counted.
"""

from __future__ import annotations

from fairquant.config.base import Section
from fairquant.data.raw import DataRequest, RawDataset, RawSample, choose, choose_groups
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

LAYOUT = "fairface_label_train.csv, fairface_label_val.csv (file,age,gender,race,service_test) and folders train, val"
TABLES = {"train": "fairface_label_train.csv", "test": "fairface_label_val.csv"}
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


class Options(Section):
    """fairface has no settings; ``data.label`` and ``data.group`` choose among age, gender and race."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read both label tables; the default target is gender, the default group race."""
    label = choose("data.label", request.label, tuple(VALUES), "gender")
    groups = choose_groups(request.group, tuple(VALUES), ("race",))
    if request.split_by is not None:
        raise DataError(f"data.split_by: got {request.split_by!r}; allowed: null for fairface, which names no person")
    tables = {split: read_table(request.path / name, layout=LAYOUT) for split, name in TABLES.items()}
    problems = [problem for table in tables.values() for problem in table.problems]
    missing = [problem for table in tables.values() for problem in table.missing(["file", *VALUES])]
    samples: list[RawSample] = []
    repaired = 0
    for split, table in tables.items():
        for row in [] if missing else table.rows:
            repaired += row.values["age"] in MANGLED_AGES
            samples.append(_sample(row, table, split, label, groups))
    return RawDataset(
        "fairface",
        VALUES[label],
        groups,
        samples,
        [*problems, *missing],
        group_order=VALUES,
        notes={"ages repaired": repaired},
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
