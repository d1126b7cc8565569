"""CelebA: 202,599 aligned faces of 10,177 people with 40 yes/no attributes; any of them is target or group.

Source: Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015 (research use only).
Layout, the one torchvision uses: ``data.path``, or the folder celeba in it, holds list_attr_celeba.txt (number of
images, attribute names, then "000001.jpg -1 1 …"), list_eval_partition.txt ("000001.jpg 0" for train, 1 val, 2 test),
identity_CelebA.txt ("000001.jpg 2880"; needed for ``data.split_by: identity``) and img_align_celeba, as a folder or as
the published img_align_celeba.zip, which is read where it lies.

An attribute at 1 is named after itself ("Male"), at -1 with "not" before it ("not Male"): the publisher says no more
than that, and "not Male" is not read as anything else. The target's classes stand in the order (not X, X), so that X is
the positive class. The default target is Blond_Hair and the default group Male, the best known gap in the data.
The published parts are disjoint in identity: where the identity file is there this is counted in meta.json
("identities on two sides"), and with ``data.split_by: identity`` every image of such a person is an error.
"""

from __future__ import annotations

import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fairquant.config.base import Section
from fairquant.data.raw import (
    DataRequest,
    ImageSource,
    Problem,
    RawDataset,
    RawSample,
    choose,
    choose_groups,
)
from fairquant.errors import DataError

ATTRIBUTES, PARTITION, IDENTITY = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"
IMAGES = "img_align_celeba"
LAYOUT = f"{ATTRIBUTES}, {PARTITION}, {IDENTITY} and {IMAGES} (folder or {IMAGES}.zip) in data.path or data.path/celeba"
HOMEPAGE = "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
PARTS = {"0": "train", "1": "val", "2": "test"}

Rows = dict[str, tuple[int, bytes]]
"""File name → number of its row, attributes as bytes 0 and 1."""

log = logging.getLogger(__name__)


class Options(Section):
    """Settings of CelebA.

    Attributes:
        use_partition: whether the published parts are used; false draws a split from the fractions, which
            ``data.split_by: identity`` keeps disjoint in people.
    """

    use_partition: bool = True


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the lists; ``data.label`` and ``data.group`` name attributes, several groups make intersections."""
    folder = _find_folder(request.path)
    names, rows, problems = read_attributes(folder / ATTRIBUTES)
    label = choose("data.label", request.label, names, "Blond_Hair")
    groups = choose_groups(request.group, names, ("Male",))
    by_identity = request.split_by is not None
    choose("data.split_by", request.split_by, ["identity"], "identity")
    parts = _read_parts(folder, rows=rows, problems=problems) if options.use_partition else {}
    people = _read_pairs(folder / IDENTITY, problems) if by_identity or (folder / IDENTITY).is_file() else {}
    if by_identity:
        problems += _unlisted(rows, people, IDENTITY)
    images, at = _Images(folder), {name: place for place, name in enumerate(names)}
    samples = [
        RawSample(
            id=name,
            row=number,
            label=_named(label, signs[at[label]]),
            groups=tuple(_named(column, signs[at[column]]) for column in groups),
            image=images.source(name),
            split=parts.get(name),
            cluster=people.get(name, "") if by_identity else None,
            attributes=Signs(names, signs),
            table=ATTRIBUTES,
        )
        for name, (number, signs) in rows.items()
    ]
    order = {column: (f"not {column}", column) for column in groups}
    notes = _shared_people(samples, people) if people and parts else {}
    return RawDataset("celeba", (f"not {label}", label), groups, samples, problems, order, notes)


@dataclass(frozen=True, slots=True)
class Signs(Mapping[str, str]):
    """The 40 attributes of one image in 40 bytes: attribute → its name, or "not" and its name.

    >>> dict(Signs(("Male", "Young"), bytes([0, 1])))
    {'Male': 'not Male', 'Young': 'Young'}
    """

    names: tuple[str, ...]
    signs: bytes

    def __getitem__(self, name: str) -> str:
        """Return the value of the attribute ``name``; ``KeyError`` where there is none."""
        if name not in self.names:
            raise KeyError(name)
        return _named(name, self.signs[self.names.index(name)])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the attribute names in the order of the file."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of attributes."""
        return len(self.names)


def _named(attribute: str, sign: int) -> str:
    return attribute if sign else f"not {attribute}"


def _find_folder(path: Path) -> Path:
    """Return the folder with the lists; otherwise say where they are to be had."""
    for folder in (path / "celeba", path):
        if (folder / ATTRIBUTES).is_file():
            return folder
    raise DataError(
        f"data.path: no {ATTRIBUTES} in {path} or {path / 'celeba'}; expected {LAYOUT}; the publisher offers no direct "
        f"link (Google Drive), take the files from {HOMEPAGE}"
    )


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        raise DataError(f"{path}: not found; expected {LAYOUT}; take it from {HOMEPAGE}") from None


def read_attributes(path: Path) -> tuple[tuple[str, ...], Rows, list[Problem]]:
    """Read list_attr_celeba.txt.

    Returns:
        The attribute names; of each image its row and one byte per attribute, 1 for 1 and 0 for -1; what is wrong
        with the other rows.

    Raises:
        DataError: the file does not begin with a count and a line of names.
    """
    lines = _read_lines(path)
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not names or not lines[0].strip().isdecimal() or len(set(names)) != len(names):
        first = lines[0] if lines else ""
        raise DataError(
            f"{path}: got the first line {first[:60]!r}; allowed: the number of images, then a line of names"
        )
    rows: Rows = {}
    problems = []
    body = [line.split() for line in lines[2:] if line.strip()]
    for number, fields in enumerate(tqdm(body, desc=path.name, unit="row", disable=None), start=1):
        problem = _row_problem(number, fields, names, rows)
        if problem is None:
            rows[fields[0]] = number, bytes(sign == "1" for sign in fields[1:])
        else:
            problems.append(problem)
    if len(body) != int(lines[0]):
        text = f"{path.name} announces {int(lines[0])} images and has {len(body)} rows; the file is cut short or edited"
        problems.append(Problem("wrong count", 0, lines[0].strip(), text, table=path.name, fatal=True))
    return names, rows, problems


def _row_problem(number: int, fields: list[str], names: tuple[str, ...], rows: Rows) -> Problem | None:
    name = fields[0]
    if len(fields) != 1 + len(names):
        text = f"the row has {len(fields)} fields; allowed: a file name and {len(names)} attributes"
        return Problem("wrong number of fields", number, name, text, table=ATTRIBUTES)
    if name in rows:
        text = f"the id {name!r} stands in row {rows[name][0]} already"
        return Problem("duplicate id", number, name, text, table=ATTRIBUTES)
    if {*fields[1:]} <= {"1", "-1"}:
        return None
    wrong = next((column, sign) for column, sign in zip(names, fields[1:], strict=True) if sign not in ("1", "-1"))
    text = f"got {wrong[0]} {wrong[1]!r}; allowed: 1 | -1"
    return Problem("unknown label", number, name, text, table=ATTRIBUTES)


def _read_pairs(path: Path, problems: list[Problem]) -> dict[str, str]:
    """Read lines "name value"; others are added to ``problems``."""
    pairs: dict[str, str] = {}
    for number, line in enumerate((line for line in _read_lines(path) if line.strip()), start=1):
        fields = line.split()
        if len(fields) == 2 and fields[0] not in pairs:
            pairs[fields[0]] = fields[1]
            continue
        twice = len(fields) == 2
        text = (
            f"the id {fields[0]!r} stands there twice" if twice else f"got {line!r}; allowed: a file name and a number"
        )
        kind = "duplicate id" if twice else "wrong number of fields"
        problems.append(Problem(kind, number, fields[0], text, table=path.name))
    return pairs


def _read_parts(folder: Path, *, rows: Rows, problems: list[Problem]) -> dict[str, str]:
    """Return train | val | test by image; an unknown part stays as it is and is told as a bad split value."""
    pairs = _read_pairs(folder / PARTITION, problems)
    problems += _unlisted(rows, pairs, PARTITION)
    return {name: PARTS.get(part, part) for name, part in pairs.items()}


def _unlisted(rows: Mapping[str, object], listed: Mapping[str, str], table: str) -> list[Problem]:
    """Return a problem for every name that stands in ``table`` alone."""
    return [
        Problem("row without attributes", number, name, f"{name!r} is not in {ATTRIBUTES}", table=table)
        for number, name in enumerate(listed, start=1)
        if name not in rows
    ]


def _shared_people(samples: list[RawSample], people: Mapping[str, str]) -> dict[str, int]:
    """Count the identities with images in more than one published part."""
    sides: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.id in people and sample.split:
            sides[people[sample.id]].add(sample.split)
    shared = sum(len(found) > 1 for found in sides.values())
    if shared:
        log.warning("identities with images in several parts: %d (data.split_by: identity names the images)", shared)
    return {"identities on two sides": shared}


class _Images:
    """Where the images lie: in the folder, or inside the zip as published."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.zip = folder / IMAGES, folder / f"{IMAGES}.zip"
        if self.folder.is_dir():
            self.members: frozenset[str] = frozenset()
        elif self.zip.is_file():
            self.members = frozenset(_open_zip(self.zip).namelist())
        else:
            raise DataError(f"data.path: neither {self.folder} nor {self.zip.name} found; expected {LAYOUT}")

    def source(self, name: str) -> ImageSource:
        """Return where the image is; a file that is not there is told with all other missing files."""
        member = f"{IMAGES}/{name}"
        return partial(_read_member, self.zip, member) if member in self.members else self.folder / name


@lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open the zip once per process: its list of 202,599 members takes a second to read."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip file ({error}); expected {LAYOUT}") from None


def _read_member(path: Path, member: str) -> Image.Image:
    return Image.open(BytesIO(_open_zip(path).read(member)))
