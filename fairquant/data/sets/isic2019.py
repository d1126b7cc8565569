"""ISIC 2019: 25,331 dermatoscopic images of eight kinds of skin lesions, with age, sex and anatomical site.

Source: the ISIC 2019 challenge, made of HAM10000 (P. Tschandl et al., Scientific Data 5:180161, 2018), BCN_20000
(M. Combalia et al., arXiv:1908.02288, 2019) and MSK (N. Codella et al., arXiv:1710.05006, 2017); CC BY-NC 4.0. Layout
of ``data.path``: ISIC_2019_Training_GroundTruth.csv (image and one column per diagnosis, 1.0 in exactly one),
ISIC_2019_Training_Metadata.csv (image,age_approx,anatom_site_general,lesion_id,sex) and the images as <image>.jpg in
ISIC_2019_Training_Input. All three have direct links (without published checksums) and are fetched where they are
absent. The labels of the challenge's test set are no part of it: val and test are drawn.

Several images show one lesion, so lesion_id stays on one side; an image without one stands alone. ``malignant`` counts
melanoma, basal cell and squamous cell carcinoma. Actinic keratosis is a precursor and not counted by default; the akiec
of HAM10000, which unites it with intraepithelial carcinoma, is: ``malignant: [MEL, BCC, SCC, AK]`` agrees with that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from fairquant.config.base import Int, Names, Section
from fairquant.data.download import Link, fetch, fetch_and_unpack
from fairquant.data.listing import find_images
from fairquant.data.raw import DataRequest, Problem, RawDataset, RawSample, choose, choose_groups
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

_HOST = "https://isic-challenge-data.s3.amazonaws.com/2019/"
TRUTH = Link(_HOST + "ISIC_2019_Training_GroundTruth.csv")
METADATA = Link(_HOST + "ISIC_2019_Training_Metadata.csv")
INPUT = Link(_HOST + "ISIC_2019_Training_Input.zip")
IMAGES = "ISIC_2019_Training_Input"
FOLDERS = (IMAGES, f"{IMAGES}/{IMAGES}", "images")
LAYOUT = (
    "ISIC_2019_Training_GroundTruth.csv (image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK), ISIC_2019_Training_Metadata.csv "
    "(image,age_approx,anatom_site_general,lesion_id,sex) and ISIC_2019_Training_Input/<image>.jpg, as on "
    "challenge.isic-archive.com/data/#2019"
)
DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
NO_DIAGNOSIS = "UNK"
COLUMNS = ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")
GROUPS = ("sex", "age_group", "anatom_site_general")
SEXES = ("female", "male")
UNKNOWN = "unknown"
SMALLER = "_downsampled"
"""What the publisher appends to the names of images that it made smaller."""


def _diagnoses(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not set(value) < set(DIAGNOSES) or len(set(value)) != len(value):
        raise ValueError(f"some, not all, of {' | '.join(DIAGNOSES)}, each once")
    return value


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or value[0] <= 0 or any(low >= high for low, high in zip(value, value[1:], strict=False)):
        raise ValueError("whole years above 0, ascending")
    return value


class Options(Section):
    """Settings of isic2019.

    Attributes:
        unknown: what becomes of images without a value in a group column asked for. keep: a group "unknown"; drop:
            they are left out and counted.
        age_boundaries: years at which a new age group begins: [60] gives <60 and >=60, [40, 60] <40, 40-59 and >=60.
        malignant: the diagnoses that ``data.label: malignant`` counts as malignant.
    """

    unknown: Literal["keep", "drop"] = "keep"
    age_boundaries: Annotated[tuple[Int, ...], AfterValidator(_ascending)] = (60,)
    malignant: Annotated[Names, AfterValidator(_diagnoses)] = ("MEL", "BCC", "SCC")


def load(request: DataRequest, options: Options) -> RawDataset:
    """Join both tables; the default target is the diagnosis, the default group sex, split by lesion_id."""
    label = choose("data.label", request.label, ("diagnosis", "malignant"), "diagnosis")
    groups = choose_groups(request.group, GROUPS, ("sex",))
    split_by = choose("data.split_by", request.split_by, ("lesion_id", "image"), "lesion_id")
    if request.download:
        _fetch(request.path)
    truth, metadata = (read_table(request.path / link.name, layout=LAYOUT) for link in (TRUTH, METADATA))
    images = _find(request.path)
    missing = [*truth.missing(["image", *DIAGNOSES]), *metadata.missing(COLUMNS)]
    joined, problems = ([], []) if missing else _join(truth, metadata)
    samples: list[RawSample] = []
    for row, known in joined:
        values = _values({**known.values, **row.values}, truth, options)
        found = _bad_values(row, known, values, truth, metadata)
        problems += found
        if not found:
            samples.append(_sample(row, truth, values, images, label, groups, split_by))
    kept = [sample for sample in samples if options.unknown == "keep" or UNKNOWN not in sample.groups]
    dropped = len(samples) - len(kept)
    return RawDataset(
        "isic2019",
        _classes(label, kept),
        groups,
        kept,
        [*truth.problems, *metadata.problems, *missing, *problems],
        group_order={"sex": (*SEXES, UNKNOWN), "age_group": (*age_groups(options.age_boundaries), UNKNOWN)},
        notes={"left out: unknown group": dropped} if dropped else {},
    )


def _fetch(folder: Path) -> None:
    """Fetch the tables and the images, each where it is absent."""
    for link in (TRUTH, METADATA):
        if not (folder / link.name).is_file():
            fetch(link, folder / link.name, layout=LAYOUT)
    if not find_images(folder, FOLDERS):
        fetch_and_unpack(INPUT, folder, layout=LAYOUT, member=IMAGES)


def _find(folder: Path) -> dict[str, Path]:
    images = find_images(folder, FOLDERS)
    if not images:
        raise DataError(f"data.path: no .jpg under {folder / IMAGES}; expected {LAYOUT}")
    return images


def _classes(label: str, samples: Sequence[RawSample]) -> tuple[str, ...]:
    """Return the class names; UNK is one only where it occurs, which is nowhere in the published table."""
    if label == "malignant":
        return ("benign", "malignant")
    return (*DIAGNOSES, NO_DIAGNOSIS) if any(sample.label == NO_DIAGNOSIS for sample in samples) else DIAGNOSES


def _join(truth: Table, metadata: Table) -> tuple[list[tuple[Row, Row]], list[Problem]]:
    """Return the pairs of rows of one image, and a problem for each row without its other half."""
    problems: list[Problem] = []
    known: dict[str, Row] = {}
    for row in metadata.rows:
        name = row.values["image"]
        if name in known:
            text = f"the id {name!r} stands in row {known[name].number} already"
            problems.append(Problem("duplicate id", row.number, name, text, table=metadata.path.name))
        known.setdefault(name, row)
    pairs: list[tuple[Row, Row]] = []
    first: dict[str, str] = {}
    for row in truth.rows:
        name = row.values["image"]
        same = first.setdefault(name.removesuffix(SMALLER), name)
        if name not in known:
            text = f"{name!r} is not in {metadata.path.name}"
            problems.append(Problem("image without metadata", row.number, name, text, table=truth.path.name))
        elif same != name:
            text = f"{name!r} is the image {same!r}, which is listed above, in another size"
            problems.append(Problem("image in two sizes", row.number, name, text, table=truth.path.name))
        else:
            pairs.append((row, known[name]))
    diagnosed = {row.values["image"] for row in truth.rows}
    for name, row in known.items():
        if name not in diagnosed:
            text = f"{name!r} is not in {truth.path.name}"
            problems.append(Problem("image without diagnosis", row.number, name, text, table=metadata.path.name))
    return pairs, problems


def age_groups(boundaries: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the age groups between ``boundaries`` in years.

    >>> age_groups([60]), age_groups([30, 60])
    (('<60', '>=60'), ('<30', '30-59', '>=60'))
    """
    inner = [f"{low}-{high - 1}" for low, high in zip(boundaries, boundaries[1:], strict=False)]
    return (f"<{boundaries[0]}", *inner, f">={boundaries[-1]}")


def age_group(age: str, boundaries: Sequence[int]) -> str:
    """Return the age group of an age as it stands in the table; "unknown" where it is empty, "" where it is no age.

    >>> age_group("55.0", [60]), age_group("60.0", [60]), age_group("", [60])
    ('<60', '>=60', 'unknown')
    """
    if not age.strip():
        return UNKNOWN
    try:
        years = float(age)
    except ValueError:
        return ""
    if not 0 <= years <= 120:
        return ""
    return age_groups(boundaries)[sum(years >= boundary for boundary in boundaries)]


def _values(values: dict[str, str], truth: Table, options: Options) -> dict[str, str]:
    """Return the columns of the metadata with diagnosis, malignant and the group columns; "" for what is not valid."""
    flags = {name: values[name] for name in truth.columns if name in (*DIAGNOSES, NO_DIAGNOSIS)}
    diagnosis = one_hot(flags)
    malignant = ("benign", "malignant")[diagnosis in options.malignant]
    return {
        **{name: value for name, value in values.items() if name not in flags},
        "diagnosis": diagnosis,
        "malignant": malignant if diagnosis in DIAGNOSES else diagnosis,
        "sex": values["sex"].strip() or UNKNOWN,
        "age_group": age_group(values["age_approx"], options.age_boundaries),
        "anatom_site_general": values["anatom_site_general"].strip() or UNKNOWN,
    }


def one_hot(flags: dict[str, str]) -> str:
    """Return the one diagnosis that is 1 where all others are 0, and "" otherwise.

    >>> one_hot({"MEL": "0.0", "NV": "1.0"}), one_hot({"MEL": "1.0", "NV": "1.0"}), one_hot({"MEL": "0.4", "NV": "0.6"})
    ('NV', '', '')
    """
    try:
        numbers = {name: float(value) for name, value in flags.items()}
    except ValueError:
        return ""
    if sorted(numbers.values()) != [0.0] * (len(numbers) - 1) + [1.0]:
        return ""
    return max(numbers, key=numbers.__getitem__)


def _bad_values(row: Row, known: Row, values: dict[str, str], truth: Table, metadata: Table) -> list[Problem]:
    problems: list[Problem] = []
    if not values["diagnosis"]:
        got = " ".join(f"{name}={value}" for name, value in row.values.items() if name != "image")
        text = f"got {got}; allowed: 1.0 for one diagnosis and 0.0 for all others"
        problems.append(Problem("not one diagnosis", row.number, values["image"], text, table=truth.path.name))
    if values["sex"] not in (*SEXES, UNKNOWN):
        text = f"got the sex {values['sex']!r}; allowed: female | male | empty"
        problems.append(Problem("bad sex", known.number, values["sex"], text, table=metadata.path.name))
    if not values["age_group"]:
        text = f"got the age {values['age_approx']!r}; allowed: years in [0, 120], or empty"
        problems.append(Problem("bad age", known.number, values["age_approx"], text, table=metadata.path.name))
    return problems


def _sample(
    row: Row,
    truth: Table,
    values: dict[str, str],
    images: dict[str, Path],
    label: str,
    groups: tuple[str, ...],
    split_by: str,
) -> RawSample:
    name = values["image"]
    other = name.removesuffix(SMALLER) if name.endswith(SMALLER) else name + SMALLER
    return RawSample(
        id=name,
        row=row.number,
        label=values[label],
        groups=tuple(values[column] for column in groups),
        image=images.get(name) or images.get(other) or truth.path.parent / IMAGES / f"{name}.jpg",
        cluster=values[split_by].strip() or name,
        attributes=values,
        table=truth.path.name,
    )
