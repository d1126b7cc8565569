"""Bring your own data: a csv manifest with one row per image, paths relative to the csv.

``data.path`` is the csv itself or a folder that holds labels.csv or manifest.csv. ``data.label`` names the label
column (default ``label``), ``data.group`` one or several group columns (default ``group``; several make intersections
"female × <60"), ``data.split_by`` a column whose equal values stay on one side. A column ``split`` with train | val |
test is used where it exists. All other columns are kept, text exactly as it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fairquant.config.base import Section
from fairquant.data.raw import DataRequest, RawDataset, RawSample, choose_groups, natural_order
from fairquant.data.table import Row, Table, read_table
from fairquant.errors import DataError

MANIFESTS = ("labels.csv", "manifest.csv")
log = logging.getLogger(__name__)

LAYOUT = "a csv with the columns image,label,group[,split], paths relative to the csv, or a folder with labels.csv"


CLASS_NAMES = "a mapping of labels to names, or a list of labels"


def _texts(value: Any) -> Any:
    """Let YAML's numbers stand for the text in the csv, and a list of labels for their own names."""
    if isinstance(value, list):
        value = {item if isinstance(item, (str, int, float)) else "": item for item in value}
    if not (isinstance(value, Mapping) and value and all(isinstance(v, (str, int, float)) for v in value.values())):
        raise ValueError(CLASS_NAMES)
    names = {str(key): str(item) for key, item in value.items()}
    if not all(name.strip() for name in names.values()):
        raise ValueError(CLASS_NAMES)
    return names


ClassNames = Annotated[dict[str, str], BeforeValidator(_texts), Field(description=CLASS_NAMES)]


class Options(Section):
    """Settings of a manifest.

    Attributes:
        image: the column of image paths.
        id: the column of unique ids; null: the image path.
        split: the column of splits; used where it exists, required where it is not the default.
        use_split: whether a published split is used at all; false draws one from the fractions.
        class_names: label in the csv → class name, in class order (or a list of labels); other labels are then
            errors. null: every label found is a class, in natural order.
    """

    image: str = "image"
    id: str | None = None
    split: str = "split"
    use_split: bool = True
    class_names: ClassNames | None = None


def load(request: DataRequest, options: Options) -> RawDataset:
    """Read the manifest."""
    path = find_manifest(request.path)
    table = read_table(path, layout=LAYOUT)
    label = "label" if request.label is None else request.label
    groups = request.group or ("group",)
    needed = [options.image, label, *groups]
    needed += [name for name in (options.id, request.split_by) if name is not None]
    if options.use_split and options.split != Options().split:
        needed.append(options.split)
    missing = table.missing(needed)
    if not missing:
        choose_groups(groups, table.columns, groups)
    samples = [] if missing else [_sample(row, table, request, options, label, groups) for row in table.rows]
    _warn_of_what_dvc_misses(request.path, samples)
    names = options.class_names
    classes = natural_order([sample.label for sample in samples])
    if names is not None:
        classes = tuple(dict.fromkeys(names.values()))
    return RawDataset(f"folder {path.name}", classes, tuple(groups), samples, [*table.problems, *missing])


def _warn_of_what_dvc_misses(path: Path, samples: Sequence[RawSample]) -> None:
    """Say which images can change without DVC noticing: it watches ``data.path`` and nothing beside it."""
    inside = os.path.join(os.path.abspath(path), "")
    images = (os.path.abspath(sample.image) for sample in samples if isinstance(sample.image, Path))
    outside = sum(not image.startswith(inside) for image in images)
    if outside:
        log.warning(
            "%d of %d images lie outside data.path %s: DVC does not notice when they change; give the folder that "
            "holds csv and images",
            outside,
            len(samples),
            path,
        )


def find_manifest(path: Path) -> Path:
    """Return the csv that ``data.path`` means; ``DataError`` where there is none."""
    if not path.is_dir():
        return path
    for name in MANIFESTS:
        if (path / name).is_file():
            return path / name
    raise DataError(f"data.path: got {path}, a folder without {' or '.join(MANIFESTS)}; expected {LAYOUT}")


def _sample(
    row: Row, table: Table, request: DataRequest, options: Options, label: str, groups: tuple[str, ...]
) -> RawSample:
    values = row.values
    image = values[options.image]
    given = values.get(options.split) if options.use_split else None
    return RawSample(
        id=values[options.id] if options.id else image,
        row=row.number,
        label=(options.class_names or {}).get(values[label], values[label]),
        groups=tuple(values[column] for column in groups),
        image=table.path.parent / image,
        split=given,
        cluster=values[request.split_by] if request.split_by else None,
        attributes=values,
    )
