"""HAM10000: 10,015 dermatoscopic images of seven kinds of pigmented lesions, with sex, age and localization.

Source: P. Tschandl, C. Rosendahl, H. Kittler, "The HAM10000 dataset", Scientific Data 5:180161 (2018), CC BY-NC 4.0.
Layout of ``data.path``: HAM10000_metadata.csv (lesion_id,image_id,dx,dx_type,age,sex,localization) and the images as
<image_id>.jpg in HAM10000_images_part_1 and HAM10000_images_part_2, or all in one folder (HAM10000_images or images),
or beside the csv. No split is published; several images show one lesion, so that lesion_id stays on one side.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fairquant.config.base import Section
from fairquant.data.raw import DataRequest, Problem, RawDataset, RawSample, choose, choose_groups
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

LAYOUT = (
    "HAM10000_metadata.csv (lesion_id,image_id,dx,dx_type,age,sex,localization) and <image_id>.jpg in "
    "HAM10000_images_part_1 and HAM10000_images_part_2, or all in HAM10000_images"
)
FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "HAM10000_images", "images", ".")
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MALIGNANT = frozenset({"akiec", "bcc", "mel"})
LABELS = {"dx": DIAGNOSES, "malignant": ("benign", "malignant")}
GROUPS = ("sex", "age_group", "localization", "dx_type")
AGE_GROUPS = ("<60", ">=60", "unknown")
BOUNDARY = 60
OLDEST = 120


class Options(Section):
    """ham10000 has no settings; ``data.label`` chooses dx or malignant, ``data.group`` the group columns."""


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the metadata; the default target is dx, the default group sex, split by lesion_id."""
    label = choose("data.label", request.label, tuple(LABELS), "dx")
    groups = choose_groups(request.group, GROUPS, ("sex",))
    split_by = choose("data.split_by", request.split_by, COLUMNS, "lesion_id")
    table = read_table(request.path / "HAM10000_metadata.csv", layout=LAYOUT)
    missing = table.missing(COLUMNS)
    images = _find_images(request.path)
    bad = [problem for row in ([] if missing else table.rows) if (problem := _bad_age(row, table)) is not None]
    good = [] if missing else [row for row in table.rows if age_group(row.values["age"])]
    samples = [_sample(row, images, request.path, label, groups, split_by) for row in good]
    return RawDataset(
        "ham10000",
        LABELS[label],
        groups,
        samples,
        [*table.problems, *missing, *bad],
        group_order={"age_group": AGE_GROUPS},
    )


def _find_images(folder: Path) -> dict[str, Path]:
    """Return every .jpg of the known folders by its name without suffix."""
    found: dict[str, Path] = {}
    for name in FOLDERS:
        for path in _jpegs(folder / name):
            found.setdefault(path.stem, path)
    if not found:
        raise DataError(f"data.path: no .jpg image under {folder}; expected {LAYOUT}")
    return found


def _jpegs(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*.jpg")) if folder.is_dir() else ()


def age_group(age: str) -> str:
    """Return the age band of an age in years as it stands in the table; "unknown" for no number.

    A number that is no human age gives "".

    >>> age_group("55.0"), age_group("60.0"), age_group(""), age_group("-4")
    ('<60', '>=60', 'unknown', '')
    """
    try:
        years = float(age)
    except ValueError:
        return "unknown"
    if years != years:
        return "unknown"
    return AGE_GROUPS[years >= BOUNDARY] if 0 <= years <= OLDEST else ""


def _bad_age(row: Row, table: Table) -> Problem | None:
    age = row.values["age"]
    if age_group(age):
        return None
    text = f"got the age {age!r}; allowed: years in [0, {OLDEST}], or empty"
    return Problem("bad age", row.number, age, text, table=table.path.name)


def _sample(
    row: Row, images: dict[str, Path], folder: Path, label: str, groups: tuple[str, ...], split_by: str
) -> RawSample:
    dx = row.values["dx"]
    malignant = LABELS["malignant"][dx in MALIGNANT] if dx in DIAGNOSES else dx
    values = {**row.values, "malignant": malignant, "age_group": age_group(row.values["age"])}
    name = values["image_id"]
    return RawSample(
        id=name,
        row=row.number,
        label=values[label],
        groups=tuple(values[column] for column in groups),
        image=images.get(name, folder / FOLDERS[0] / f"{name}.jpg"),
        cluster=values[split_by],
        attributes=values,
    )
