"""Rewrite a labels.csv folder in the data set's published layout, so that its own loader can read it.

    python -m scripts.publish_layout fairface FOLDER/fairface64 FOLDER/fairface64-published
    python -m scripts.publish_layout ham10000 FOLDER/ham10000_64 FOLDER/ham10000_64-published

Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def fairface(rows: list[dict[str, str]], source: Path, target: Path) -> None:
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


def ham10000(rows: list[dict[str, str]], source: Path, target: Path) -> None:
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


def main() -> None:
    """Read labels.csv of the source and write the published layout of the named data set."""
    layouts = {"fairface": fairface, "ham10000": ham10000}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", choices=sorted(layouts))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    with (arguments.source / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    layouts[arguments.layout](rows, arguments.source, arguments.target)


if __name__ == "__main__":
    main()
