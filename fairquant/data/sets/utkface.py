"""UTKFace: 23,708 faces of ages 0 to 116, labelled with age, gender and race in the file name or in a pixel table.

Source: Z. Zhang, Y. Song, H. Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017
(research use only). ``data.path`` holds either form:

- images named [age]_[gender]_[race]_[date&time].jpg (also .jpg.chip.jpg), in it and in any folders below it; gender 0
  is male and 1 female; race 0 to 4 is White, Black, Asian, Indian, Others. Names that begin with "." are no images.
- age_gender.csv with the columns age, ethnicity, gender, img_name, pixels: 48×48 grey values as text (blanks around
  column names are ignored). Its ids are put together again to the file names of the first form.

No split and no person is published. Known dirt is told row by row and goes, counted, with ``data.bad_rows: drop``: file
names with a field missing, one file name in two folders, and byte-identical images whose age, gender or race differ
(all of them: none is known to be right). Byte-identical images that agree are kept on one side of the split.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field
from tqdm import tqdm

from fairquant.config.base import Int, Section
from fairquant.data.raw import DataRequest, ImageSource, Pixels, Problem, RawDataset, RawSample, choose, choose_groups
from fairquant.data.table import Row, read_table
from fairquant.errors import DataError

TABLE = "age_gender.csv"
NAME_FORM = "[age]_[gender]_[race]_[date&time].jpg"
LAYOUT = (
    f"images named {NAME_FORM} in data.path or in folders below it, or {TABLE} (age,ethnicity,gender,img_name,pixels)"
)
HOMEPAGE = "susanqq.github.io/UTKFace"
SUFFIXES = (".jpg", ".jpeg", ".png")
GENDERS = ("Male", "Female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
COLUMNS = ("gender", "race", "age_band")
OLDEST = 116
SIDE = 48
_GREY = {str(value): value for value in range(256)}


def _ascending(bounds: tuple[int, ...]) -> tuple[int, ...]:
    if list(bounds) != sorted(set(bounds)) or not all(0 < bound <= OLDEST for bound in bounds):
        raise ValueError(f"ages in rising order, each in [1, {OLDEST}]")
    return bounds


class Options(Section):
    """Settings of UTKFace.

    Attributes:
        source: ``images`` or ``table``; ``auto`` takes the form that is there and refuses to choose between two.
        age_bands: ages at which a new band begins; the default bands are those of FairFace.
    """

    source: Literal["auto", "images", "table"] = "auto"
    age_bands: Annotated[tuple[Int, ...], AfterValidator(_ascending)] = Field(
        (3, 10, 20, 30, 40, 50, 60, 70),
        min_length=1,
        description=f"a list of ages in rising order, each in [1, {OLDEST}]",
    )


@dataclass(frozen=True)
class Face:
    """One face before its labels are judged: fields as text, pixels, and what tells byte-identical images apart."""

    row: int
    id: str
    age: str
    gender: str
    race: str
    image: ImageSource
    digest: str
    table: str = ""

    @property
    def labels(self) -> tuple[str, str, str]:
        """Age, gender and race as they stand in the source."""
        return self.age, self.gender, self.race


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the images or the table; the default target is gender, the default group race."""
    label = choose("data.label", request.label, COLUMNS, "gender")
    groups = choose_groups(request.group, COLUMNS, ("race",))
    if request.split_by is not None:
        raise DataError(
            f"data.split_by: got {request.split_by!r}; allowed: null for utkface, which names no person "
            "(identical images stay on one side by themselves)"
        )
    table = _find_table(request.path, options.source)
    faces, problems = _read_images(request.path) if table is None else _read_pixels(table)
    names = band_names(options.age_bands)
    values = {"gender": GENDERS, "race": RACES, "age_band": names}
    good = []
    for face in faces:
        problem = _judge(face)
        if problem is None:
            good.append(face)
        else:
            problems.append(problem)
    leaders, conflicts = _identical(good)
    problems += conflicts
    samples = [
        _sample(face, leaders[face.digest], options.age_bands, names, label, groups)
        for face in good
        if face.digest in leaders
    ]
    source = "utkface images" if table is None else f"utkface {TABLE}"
    notes = {"identical images": len(samples) - len({sample.cluster for sample in samples})}
    return RawDataset(source, values[label], groups, samples, problems, values, notes)


def _find_table(path: Path, source: str) -> Path | None:
    """Return the pixel table to read, or ``None`` for images."""
    table = path if path.suffix == ".csv" else path / TABLE
    has_table, has_images = table.is_file(), any(_image_paths(path))
    if source == "auto" and has_table and has_images:
        raise DataError(
            f"datasets.utkface.source: got 'auto' with both {TABLE} and images in {path}; allowed: images | table"
        )
    if source == "table" or (source == "auto" and has_table):
        return table
    if not has_images:
        raise DataError(
            f"data.path: no image and no {TABLE} in {path}; expected {LAYOUT}; the publisher offers no direct link, "
            f"take the files from {HOMEPAGE}"
        )
    return None


def _image_paths(folder: Path) -> Iterable[Path]:
    """Return the image files in and below ``folder``, in no order."""
    return (
        path
        for path in (folder.rglob("*") if folder.is_dir() else ())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def _read_images(folder: Path) -> tuple[list[Face], list[Problem]]:
    """Read the labels in the file names; rows are the files in order of their paths."""
    paths = sorted(_image_paths(folder), key=lambda path: path.relative_to(folder).as_posix())
    digests = _digests(paths)
    faces, problems = [], []
    for number, path in enumerate(paths, start=1):
        fields = path.name.split("_")
        if len(fields) == 4 and all(fields):
            faces.append(Face(number, path.name, fields[0], fields[1], fields[2], path, digests[path]))
            continue
        shown = path.relative_to(folder).as_posix()
        text = f"the file name {shown!r} lacks a field or has one too many; allowed: {NAME_FORM}"
        problems.append(Problem("bad file name", number, shown, text))
    return faces, problems


def _digests(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a text per file that is equal for byte-identical files; only files of equal size are read.

    A broken link is identical to nothing; it is told as a missing file later.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    found = {path: f"no file {path}" for path in paths if not path.is_file()}
    found |= {group[0]: f"size {size}" for size, group in by_size.items() if len(group) == 1}
    doubtful = [path for path in paths if path not in found]
    for path in tqdm(doubtful, desc="compare", unit="image", disable=None):
        found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _read_pixels(path: Path) -> tuple[list[Face], list[Problem]]:
    """Read the pixel table; the text of a row is turned into 2,304 bytes as soon as it is read."""
    pixels: dict[int, bytes] = {}
    problems: list[Problem] = []

    def shrink(row: Row) -> Row:
        bar.update()
        values = {name.strip(): value for name, value in row.values.items()}
        try:
            pixels[row.number] = _parse_pixels(values.pop("pixels", ""))
        except ValueError as error:
            problems.append(Problem("unreadable image", row.number, values.get("img_name", ""), str(error), path.name))
        return Row(row.number, values)

    with tqdm(desc=path.name, unit="row", disable=None) as bar:
        table = read_table(path, layout=LAYOUT, shrink=shrink)
    table = replace(table, columns=tuple(name.strip() for name in table.columns))
    missing = table.missing(["age", "ethnicity", "gender", "img_name", "pixels"])
    if missing:
        return [], [*table.problems, *missing]
    rows = [row for row in table.rows if row.number in pixels]
    return [_face(row, pixels[row.number], path.name) for row in rows], [*table.problems, *problems]


def _parse_pixels(text: str) -> bytes:
    """Return 48 × 48 grey values as bytes; ``ValueError`` says what else was there."""
    allowed = f"allowed: {SIDE * SIDE} whole numbers in [0, 255] ({SIDE}×{SIDE})"
    fields = text.split()
    if len(fields) != SIDE * SIDE:
        raise ValueError(f"got {len(fields)} pixels; {allowed}")
    try:
        return bytes(map(_GREY.__getitem__, fields))
    except KeyError:
        wrong = next(field for field in fields if field not in _GREY)
        raise ValueError(f"got the pixel {wrong!r}; {allowed}") from None


def _face(row: Row, pixels: bytes, table: str) -> Face:
    age, gender, race = (row.values[column].strip() for column in ("age", "gender", "ethnicity"))
    name = f"{age}_{gender}_{race}_{row.values['img_name']}"
    digest = hashlib.sha256(pixels).hexdigest()
    return Face(row.number, name, age, gender, race, partial(_grey, pixels), digest, table)


def _grey(pixels: bytes) -> Pixels:
    return np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)


def _judge(face: Face) -> Problem | None:
    """Return what is wrong with the three labels."""
    limits = {"age": OLDEST, "gender": len(GENDERS) - 1, "race": len(RACES) - 1}
    for (field, limit), value in zip(limits.items(), face.labels, strict=True):
        if not (value.isdecimal() and int(value) <= limit):
            text = f"{face.id!r}: got the {field} {value!r}; allowed: a whole number in [0, {limit}]"
            return Problem("unknown label", face.row, face.id, text, table=face.table)
    return None


def _identical(faces: Sequence[Face]) -> tuple[dict[str, str], list[Problem]]:
    """Return the first id of each set of identical images that agree, and a problem for each image that does not."""
    sets: dict[str, list[Face]] = defaultdict(list)
    for face in faces:
        sets[face.digest].append(face)
    leaders, problems = {}, []
    for digest, members in sets.items():
        if len({face.labels for face in members}) == 1:
            leaders[digest] = members[0].id
            continue
        for face in members:
            other = next(other for other in members if other.labels != face.labels)
            text = f"{face.id!r} and {other.id!r} are the same image and differ in age, gender or race"
            problems.append(Problem("conflicting labels", face.row, face.id, text, table=face.table))
    return leaders, problems


def band_names(bounds: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the age bands that begin at 0 and at ``bounds``.

    >>> band_names([3, 10, 70])
    ('0-2', '3-9', '10-69', '70+')
    """
    starts = (0, *bounds)
    closed = [f"{low}-{high - 1}" if high - 1 > low else f"{low}" for low, high in zip(starts, bounds, strict=False)]
    return (*closed, f"{bounds[-1]}+")


def _sample(
    face: Face, leader: str, bounds: Sequence[int], names: Sequence[str], label: str, groups: tuple[str, ...]
) -> RawSample:
    band = names[bisect_right(bounds, int(face.age))]
    values: Mapping[str, str] = {
        "age": face.age,
        "gender": GENDERS[int(face.gender)],
        "race": RACES[int(face.race)],
        "age_band": band,
    }
    return RawSample(
        id=face.id,
        row=face.row,
        label=values[label],
        groups=tuple(values[column] for column in groups),
        image=face.image,
        cluster=leader,
        attributes=values,
        table=face.table,
    )
