import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairquant.data.huggingface import find_shards, read_shard
from fairquant.errors import DataError

RACES = ["East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian"]


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def features(**names):
    """The metadata the datasets library writes for an image, class labels and a truth value."""
    written = {"image": {"_type": "Image"}, "service_test": {"dtype": "bool", "_type": "Value"}}
    written |= {column: {"names": values, "_type": "ClassLabel"} for column, values in names.items()}
    return {"huggingface": json.dumps({"info": {"features": written}})}


def table(rows, metadata=None):
    """A table of (bytes, path, race, service_test) in the schema of the published files."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("race", pa.int64()), ("service_test", pa.bool_())],
        metadata=features(race=RACES) if metadata is None else metadata,
    )
    columns = [[{"bytes": row[0], "path": row[1]} for row in rows], [row[2] for row in rows], [row[3] for row in rows]]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def write(path, made, rows_per_group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=rows_per_group)
        return path
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as stream:
        stream.write_table(made, max_chunksize=rows_per_group)
    return path


def rows(n=8):
    return [(png(10 * index), f"{index}.png", index % 7, index % 2 == 0) for index in range(n)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_labels_by_the_names_in_the_file_and_images_one_by_one(tmp_path, suffix):
    path = write(tmp_path / f"train-00000-of-00001.{suffix}", table(rows()))
    found, problems = read_shard(path, ["race"], ["service_test"])
    assert problems == [] and [row.number for row in found] == list(range(1, 9))
    for index, row in enumerate(found):
        assert row.values == {
            "file": f"{index}.png",
            "race": RACES[index % 7],
            "service_test": "True" if index % 2 == 0 else "False",
        }
    for index in (7, 0, 3, 2):
        image = pickle.loads(pickle.dumps(found[index].image))()
        assert (np.asarray(image) == 10 * index).all() and image.size == (5, 6)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda row: np.asarray(row.image())[0, 0, 0], found))
    assert values == [10 * index for index in range(8)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_empty_and_nameless_labels_and_images_without_bytes(tmp_path, suffix):
    given = [(png(0), None, None, None), (None, "1.png", 0, True), (png(0), "2.png", 7, True), (png(0), "3", -1, True)]
    path = write(tmp_path / f"train-00000-of-00001.{suffix}", table(given))
    found, problems = read_shard(path, ["race"], ["service_test"])
    assert [row.values["race"] for row in found] == ["", "East Asian"]
    assert found[0].values["file"] == "" == found[0].values["service_test"]
    assert [(problem.kind, problem.row, problem.value) for problem in problems] == [
        ("unknown label", 3, "7"),
        ("unknown label", 4, "-1"),
    ]
    assert problems[0].message.startswith("got the race 7; allowed: 0 to 6 (East Asian | Indian | Black")
    with pytest.raises(ValueError, match="the row holds no image bytes, only a path"):
        found[1].image()


def test_absent_columns_are_fatal_problems(tmp_path):
    path = write(tmp_path / "train-00000-of-00001.parquet", table(rows()).drop_columns(["race", "image"]))
    found, problems = read_shard(path, ["race"], ["service_test"])
    assert found == [] and all(problem.fatal for problem in problems)
    assert [problem.message for problem in problems] == [
        f"{path.name} has no column 'image'; its columns: service_test",
        f"{path.name} has no column 'race'; its columns: service_test",
    ]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no class names, the schema's metadata has no key 'huggingface'; allowed: files of the datasets library"),
        (
            {"huggingface": "{"},
            "no class names, the metadata 'huggingface' has no info.features; allowed: files as pub",
        ),
        (
            {"huggingface": "[]"},
            "no class names, the metadata 'huggingface' has no info.features; allowed: files as pu",
        ),
        (features(), "no class names for 'race', info.features.race has no names; allowed: a ClassLabel"),
        (features(race=[]), "no class names for 'race', info.features.race has no names; allowed: a ClassLabel"),
        (features(race=[1, 2]), "no class names for 'race', info.features.race has no names; allowed: a ClassLabel"),
    ],
)
def test_names_are_never_assumed(tmp_path, suffix, metadata, message):
    path = write(tmp_path / f"train-00000-of-00001.{suffix}", table(rows(), metadata))
    with pytest.raises(DataError, match=message):
        read_shard(path, ["race"], ["service_test"])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("cut", [0, 10, 400])
def test_damaged_files_are_one_line(tmp_path, suffix, cut):
    path = write(tmp_path / f"train-00000-of-00001.{suffix}", table(rows()))
    path.write_bytes(path.read_bytes()[:cut])
    kind = "a parquet file" if suffix == "parquet" else "an Arrow stream"
    with pytest.raises(DataError, match=f"{path.name}: not {kind} or cut short") as caught:
        read_shard(path, ["race"], ["service_test"])
    assert "\n" not in str(caught.value)


def test_an_image_column_of_another_kind(tmp_path):
    made = table(rows())
    plain = made.set_column(0, "image", pa.array([b"x"] * 8))
    path = write(tmp_path / "train-00000-of-00001.parquet", plain.replace_schema_metadata(made.schema.metadata))
    with pytest.raises(DataError, match="got the column 'image' as binary; allowed: bytes and path"):
        read_shard(path, ["race"], ["service_test"])


def test_every_shard_announced_must_be_there(tmp_path):
    for name in ("train-00000-of-00003-abc.parquet", "train-00002-of-00003-def.parquet"):
        write(tmp_path / name, table(rows()))
    assert find_shards(tmp_path, "validation") == []
    with pytest.raises(
        DataError, match="got the files train-00000.*, train-00002.* of train; allowed: each of the 3 fil"
    ):
        find_shards(tmp_path, "train")
    write(tmp_path / "train-00001-of-00003-ghi.parquet", table(rows()))
    assert [path.name[:11] for path in find_shards(tmp_path, "train")] == ["train-00000", "train-00001", "train-00002"]
    write(tmp_path / "train-00000-of-00002-old.parquet", table(rows()))
    with pytest.raises(DataError, match="allowed: each of the 3 files once"):
        find_shards(tmp_path, "train")
    write(tmp_path / "saved" / "train" / "data-00000-of-00001.arrow", table(rows()))
    assert [path.name for path in find_shards(tmp_path / "saved", "train")] == ["data-00000-of-00001.arrow"]
