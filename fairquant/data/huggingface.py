"""Tables as the Hugging Face hub and its ``datasets`` library store them, read with pyarrow alone.

A part (train, validation) is either files <part>-00000-of-00002[-hash].parquet in one folder, or, as saved by
``save_to_disk``, files data-00000-of-00002.arrow (the Arrow stream format) in a folder <part>. Labels are stored as
numbers; their names stand in the metadata of the file's schema under the key "huggingface", as JSON
{"info": {"features": {"race": {"names": […], "_type": "ClassLabel"}}}}, and are taken from there alone: the order
differs from publisher to publisher. Images are structs of bytes and path; their bytes are read one row group at a
time, when an image is decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fairquant.data.raw import ImageSource, Problem
from fairquant.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"huggingface"
"""The key of the schema's metadata that holds the features."""

IMAGE = "image"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class ShardRow:
    """One row of a shard: its number (1 is the first), its columns as text, labels by name, and its image."""

    number: int
    values: dict[str, str]
    image: ImageSource


def find_shards(folder: Path, part: str) -> list[Path]:
    """Return the files of a part in order; none where the folder holds none.

    Raises:
        DataError: one of the files that their names announce is absent.
    """
    shards = sorted(folder.glob(f"{part}-*.parquet")) or sorted((folder / part).glob("*.arrow"))
    numbers = [_SHARD.search(path.name) for path in shards]
    counts = {int(match[2]) for match in numbers if match}
    if not counts:
        return shards
    found = sorted(int(match[1]) for match in numbers if match)
    if len(counts) > 1 or found != list(range(max(counts))) or len(found) != len(shards):
        names = ", ".join(path.name for path in shards)
        raise DataError(
            f"{shards[0].parent}: got the files {names} of {part}; allowed: each of the {max(counts)} files once"
        )
    return shards


def read_shard(path: Path, labels: Sequence[str], others: Sequence[str]) -> tuple[list[ShardRow], list[Problem]]:
    """Read the columns ``labels`` (class labels) and ``others`` of one file; image bytes are left where they are.

    An empty field is an empty text. A number without a name becomes a problem, an absent column a fatal one.

    Raises:
        DataError: the file is not what its name says, or its schema does not name the labels.
    """
    schema, groups = _layout(path)
    absent = [column for column in (IMAGE, *labels, *others) if column not in schema.names]
    if absent:
        have = ", ".join(schema.names)
        return [], [
            Problem(
                "missing column", 0, name, f"{path.name} has no column {name!r}; its columns: {have}", path.name, True
            )
            for name in absent
        ]
    fields = {field.name for field in schema.field(IMAGE).type} if _is_struct(schema.field(IMAGE).type) else set()
    if not {"bytes", "path"} <= fields:
        raise DataError(f"{path}: got the column {IMAGE!r} as {schema.field(IMAGE).type}; allowed: bytes and path")
    names = label_names(path, schema.metadata, labels)
    rows, problems = [], []
    for number, (values, image) in enumerate(_rows(path, [*labels, *others], groups), start=1):
        wrong = next((column for column in labels if _nameless(values[column], names[column])), None)
        if wrong is None:
            texts = {column: _text(value, names.get(column)) for column, value in values.items()}
            rows.append(ShardRow(number, texts, image))
            continue
        text = f"got the {wrong} {values[wrong]}; allowed: 0 to {len(names[wrong]) - 1} ({' | '.join(names[wrong])})"
        problems.append(Problem("unknown label", number, str(values[wrong]), text, path.name))
    return rows, problems


def label_names(
    path: Path, metadata: Mapping[bytes, bytes] | None, labels: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the class names of each label column from the schema's metadata; ``DataError`` where they are absent."""
    written = (metadata or {}).get(KEY)
    where = f"{path}: no class names"
    if written is None:
        raise DataError(
            f"{where}, the schema's metadata has no key {KEY.decode()!r}; allowed: files of the datasets library"
        )
    try:
        features = json.loads(written)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{where}, the metadata {KEY.decode()!r} has no info.features; allowed: files as published"
        ) from None
    found = {}
    for column in labels:
        feature = features.get(column) if isinstance(features, dict) else None
        names = feature.get("names") if isinstance(feature, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"{where} for {column!r}, info.features.{column} has no names; allowed: a ClassLabel")
        found[column] = tuple(names)
    return found


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))


def _nameless(value: Any, names: Sequence[str]) -> bool:
    """Whether a label is a number without a name; an empty one is judged with all other empty labels."""
    return value is not None and not (isinstance(value, int) and 0 <= value < len(names))


def _text(value: Any, names: Sequence[str] | None) -> str:
    if value is None:
        return ""
    return str(value) if names is None else names[value]


def _layout(path: Path) -> tuple[pa.Schema, list[int]]:
    """Return the schema and the number of rows of each row group; an Arrow file counts as one group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".arrow":
            table = _arrow_table(path)
            return table.schema, [table.num_rows]
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            return file.schema_arrow, groups
    except (pa.ArrowException, OSError) as error:
        kind = "an Arrow stream" if path.suffix == ".arrow" else "a parquet file"
        raise DataError(f"{path}: not {kind} or cut short ({' '.join(str(error).split())})") from None


def _rows(path: Path, columns: list[str], groups: Iterable[int]) -> Iterator[tuple[dict[str, Any], ImageSource]]:
    """Yield each row's values, the image's path among them under "file", and where its image comes from."""
    for group, count in enumerate(groups):
        table = _read_group(path, group, [*columns, f"{IMAGE}.path"])
        values = {"file": _field(table, "path").to_pylist()}
        values |= {column: table.column(column).to_pylist() for column in columns}
        for row in range(count):
            yield {column: items[row] for column, items in values.items()}, partial(_read_image, path, group, row)


def _read_group(path: Path, group: int, columns: list[str]) -> pa.Table:
    """Read columns of a row group ("image.path" is a field of a column); of an Arrow file all are mapped."""
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        return _arrow_table(path)
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=columns, use_threads=False)


@lru_cache(maxsize=4)
def _arrow_table(path: Path) -> pa.Table:
    """Map the file into memory, once per process; nothing is copied."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()


def _field(table: pa.Table, name: str) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.struct_field(table.column(IMAGE), name)


@lru_cache(maxsize=2)
def _image_bytes(path: Path, group: int) -> pa.ChunkedArray:
    """Return the encoded images of a row group; kept, as successive images are decoded one after the other."""
    return _field(_read_group(path, group, [f"{IMAGE}.bytes"]), "bytes")


def _read_image(path: Path, group: int, row: int) -> Image.Image:
    data = _image_bytes(path, group)[row].as_py()
    if data is None:
        raise ValueError("the row holds no image bytes, only a path")
    return Image.open(BytesIO(data))
