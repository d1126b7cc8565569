"""Rewrite a labels.csv folder in the data set's published layout, so that its own loader can read it.

    python -m scripts.publish_layout fairface FOLDER/fairface64 FOLDER/fairface64-published
    python -m scripts.publish_layout ham10000 FOLDER/ham10000_64 FOLDER/ham10000_64-published

Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from fairquant.artifacts import atomic_path
from fairquant.data.table import read_table
from fairquant.errors import DataError
from fairquant.terminal import failed

Rows = Sequence[Mapping[str, str]]


def fairface(rows: Rows, source: Path, target: Path) -> None:
    """Write fairface_label_train.csv, fairface_label_val.csv, train/ and val/."""
    for split in ("train", "val"):
        (target / split).mkdir(parents=True, exist_ok=True)
        with (target / f"fairface_label_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "age", "gender", "race", "service_test"])
            for row in rows:
                if row["official_split"] == split:
                    name = f"{split}/{Path(row['image']).name}"
                    (target / name).symlink_to((source / row["image"]).resolve())
                    writer.writerow([name, row["age"], row["gender"], row["race"], row["service_test"]])


def ham10000(rows: Rows, source: Path, target: Path) -> None:
    """Write HAM10000_metadata.csv and the two image folders."""
    parts = [target / f"HAM10000_images_part_{part}" for part in (1, 2)]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    with (target / "HAM10000_metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"])
        for index, row in enumerate(rows):
            name = Path(row["image"]).name
            (parts[2 * index // len(rows)] / name).symlink_to((source / row["image"]).resolve())
            values = [row["lesion_id"], Path(name).stem, row["dx"], row["dx_type"], row["age"], row["sex"]]
            writer.writerow([*values, row["localization"]])


FACES = ("image", "official_split", "age", "gender", "race", "service_test")
LESIONS = ("image", "lesion_id", "dx", "dx_type", "age", "sex", "localization")
LAYOUTS = {"fairface": (fairface, FACES), "ham10000": (ham10000, LESIONS)}
"""What writes each layout, and the columns of labels.csv that it needs."""


def publish(layout: str, source: Path, target: Path) -> None:
    """Write the layout ``layout`` of the folder ``source`` as the new folder ``target``.

    Raises:
        DataError: labels.csv is absent or lacks a column, an image is absent, or ``target`` is there already.
    """
    write, columns = LAYOUTS[layout]
    table = read_table(source / "labels.csv", layout=f"labels.csv with the columns {','.join(columns)}")
    wrong = [*table.missing(columns), *table.problems]
    if wrong:
        raise DataError(f"{table.path}: {wrong[0].message}; allowed: the columns {','.join(columns)}")
    absent = [row.values["image"] for row in table.rows if not (source / row.values["image"]).is_file()]
    if absent:
        raise DataError(f"{source / absent[0]}: not found ({len(absent)} images in all); allowed: all of labels.csv")
    if target.exists():
        raise DataError(f"{target}: is there already; allowed: a new folder")
    with atomic_path(target) as partial:
        write([row.values for row in table.rows], source, partial)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read labels.csv of the source and write the published layout of the named data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("layout", choices=sorted(LAYOUTS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    try:
        publish(options.layout, options.source, options.target)
    except Exception as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
