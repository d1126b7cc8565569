import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.decode import decode
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets.fairface import VALUES, Options, load
from fairquant.errors import DataError

HEADER = "file,age,gender,race,service_test\n"


def write(folder, train, val, header=HEADER):
    for name, rows in (("train", train), ("val", val)):
        (folder / name).mkdir(exist_ok=True)
        (folder / f"fairface_label_{name}.csv").write_text(header + "".join(f"{row}\n" for row in rows))
        for row in rows:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / row.split(",")[0])


def layout(folder):
    train = [
        f"train/{i}.jpg,20-29,{('Male', 'Female')[i % 2]},{('White', 'Black')[i // 2 % 2]},True" for i in range(40)
    ]
    val = [f"val/{i}.jpg,30-39,{('Male', 'Female')[i % 2]},{('White', 'Black')[i // 2 % 2]},False" for i in range(8)]
    write(folder, train, val)


def config(folder, options=None, **data):
    section = {"name": "fairface", "path": str(folder), "image_size": 8, **data}
    return parse_config({"data": section, "datasets": {"fairface": options or {}}, "workers": 1})


def test_the_published_val_is_the_test_and_val_comes_from_train(tmp_path):
    layout(tmp_path)
    meta = prepare(config(tmp_path), tmp_path / "prepared")
    assert {split: sum(parts.values()) for split, parts in meta["splits"].items()} == {"train": 36, "val": 4, "test": 8}
    assert meta["classes"] == ["Male", "Female"] and meta["groups"] == ["Black", "White"]
    assert meta["split_source"] == "publisher; val drawn from train"


def test_ages_a_spreadsheet_mangled_are_repaired_and_counted(tmp_path):
    ages = ["03-Sep", "Oct-19", "3-9", "10-19", "9-Mar", "0-2"]
    write(
        tmp_path,
        [f"train/{i}.jpg,{age},Male,White,True" for i, age in enumerate(ages)],
        ["val/1.jpg,03-Sep,Male,White,False"],
    )
    raw = load(DataRequest(tmp_path, label="age", group=("gender",)), Options())
    assert [sample.label for sample in raw.samples] == ["3-9", "10-19", "3-9", "10-19", "3-9", "0-2", "3-9"]
    assert raw.notes == {"ages repaired": 4} and raw.problems == []
    assert raw.classes == VALUES["age"]


def test_an_age_beyond_repair_is_an_unknown_label(tmp_path):
    layout(tmp_path)
    table = tmp_path / "fairface_label_val.csv"
    table.write_text(table.read_text().replace("30-39", "30-93", 1))
    with pytest.raises(
        DataError, match=r"1 unknown label \(fairface_label_val.csv row 1 got the label '30-93'; allowed: 0-2"
    ):
        prepare(config(tmp_path, label="age", group="gender"), tmp_path / "prepared")


def test_a_group_that_is_none_of_the_published_ones(tmp_path):
    layout(tmp_path)
    table = tmp_path / "fairface_label_train.csv"
    table.write_text(table.read_text().replace("Male,White", "Male,white", 1))
    with pytest.raises(
        DataError, match=r"1 unknown group value \(.*train.csv row 1 got the race 'white'; allowed: Black"
    ):
        prepare(config(tmp_path), tmp_path / "prepared")
    assert prepare(config(tmp_path, bad_rows="drop"), tmp_path / "prepared")["dropped"] == {"unknown group value": 1}


def test_age_groups_keep_their_natural_order(tmp_path):
    layout(tmp_path)
    raw = load(DataRequest(tmp_path, group=("age", "race")), Options())
    assert raw.group_order["age"][-1] == "more than 70" and raw.samples[0].groups == ("20-29", "White")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "sex"}, r"data.label: got 'sex'; allowed: age \| gender \| race"),
        ({"group": ("sex",)}, r"data.group: got 'sex'; allowed: age \| gender \| race"),
        ({"split_by": "race"}, "data.split_by: got 'race'; allowed: null for fairface"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())


def test_absent_files_and_columns(tmp_path):
    with pytest.raises(DataError, match="fairface_label_train.csv: not found; expected fairface_label_train.csv, fair"):
        load(DataRequest(tmp_path), Options())
    write(tmp_path, ["train/1.jpg,1"], ["val/1.jpg,1"], header="file,age\n")
    raw = load(DataRequest(tmp_path), Options())
    assert raw.samples == []
    assert [(problem.table, problem.value) for problem in raw.problems] == [
        (f"fairface_label_{part}.csv", name) for part in ("train", "val") for name in ("gender", "race")
    ]


def test_the_published_layout(shared_data, tmp_path):
    meta = prepare(config(shared_data / "layouts" / "FairFace"), tmp_path / "prepared")
    assert meta["samples"] == 84 and meta["groups"] == sorted(VALUES["race"])
    assert meta["splits"]["test"] == dict.fromkeys(VALUES["race"], 4)


HUB_NAMES = {
    "age": ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"],
    "gender": ["Male", "Female"],
    "race": ["East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian"],
}
"""The order of the names in the published files."""


def hub_table(n, first=0, names=HUB_NAMES, **changes):
    """A table in the published schema; face i has age i mod 9, gender i mod 2, race i/2 mod 7 and grey value i."""
    faces = range(first, first + n)
    images = []
    for face in faces:
        file = io.BytesIO()
        Image.fromarray(np.full((9, 9, 3), face, np.uint8)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "service_test": {"dtype": "bool", "_type": "Value"}}
    features |= {column: {"names": found, "_type": "ClassLabel"} for column, found in names.items()}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        + [(column, pa.int64()) for column in HUB_NAMES]
        + [("service_test", pa.bool_())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = {
        "image": images,
        "age": [face % 9 for face in faces],
        "gender": [face % 2 for face in faces],
        "race": [face // 2 % 7 for face in faces],
        "service_test": [face % 3 == 0 for face in faces],
    }
    return pa.table(columns | changes, schema=schema)


def write_hub(folder, margin="0.25", train=70, validation=28):
    """Write both parts as published: train in two files."""
    folder = folder / margin
    folder.mkdir(parents=True)
    half = train // 2
    pq.write_table(hub_table(half), folder / "train-00000-of-00002-d405faba4f4b9b85.parquet", row_group_size=10)
    pq.write_table(hub_table(train - half, half), folder / "train-00001-of-00002-a3f92fab02d90c99.parquet")
    pq.write_table(hub_table(validation), folder / "validation-00000-of-00001-951dbd63f8c7c2f4.parquet")
    return folder


def write_saved(folder, train=70, validation=28):
    """Write both parts as save_to_disk does."""
    for part, made in (("train", hub_table(train)), ("validation", hub_table(validation))):
        (folder / part).mkdir(parents=True)
        path = str(folder / part / "data-00000-of-00001.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made, max_chunksize=10)
        (folder / part / "state.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')


@pytest.mark.parametrize("form", ["margins", "itself", "saved"])
def test_the_hugging_face_form(tmp_path, form):
    if form == "saved":
        write_saved(tmp_path / "raw")
    else:
        folder = write_hub(tmp_path / "raw")
    path = folder if form == "itself" else tmp_path / "raw"
    meta = prepare(config(path, val_fraction=0.2), tmp_path / "prepared")
    assert meta["classes"] == ["Male", "Female"] and meta["groups"] == sorted(HUB_NAMES["race"])
    assert meta["split_source"] == "publisher; val drawn from train"
    assert {split: sum(parts.values()) for split, parts in meta["splits"].items()} == {
        "train": 56,
        "val": 14,
        "test": 28,
    }
    images = np.load(tmp_path / "prepared" / "images.npy")
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        for image, row in zip(images, csv.DictReader(file), strict=True):
            part, number = row["id"].split("-")
            face = int(number) - 1
            assert (image == face).all() and (part == "validation") == (row["split"] == "test")
            assert row["label_name"] == HUB_NAMES["gender"][face % 2] == row["gender"]
            assert row["group_name"] == HUB_NAMES["race"][face // 2 % 7] == row["race"]
            assert row["age"] == HUB_NAMES["age"][face % 9] and row["service_test"] == str(face % 3 == 0)


def test_names_come_from_the_file_and_not_from_their_usual_order(tmp_path):
    folder = write_hub(tmp_path)
    names = HUB_NAMES | {"gender": ["Female", "Male"]}
    for path in folder.glob("validation-*"):
        pq.write_table(hub_table(28, names=names), path)
    raw = load(DataRequest(tmp_path), Options())
    assert raw.classes == ("Male", "Female")
    assert [sample.label for sample in raw.samples[:2]] == ["Male", "Female"]
    assert [sample.label for sample in raw.samples[70:72]] == ["Female", "Male"]


def test_the_margin_names_the_folder(tmp_path):
    write_hub(tmp_path)
    write_hub(tmp_path, "1.25", train=20)
    assert len(load(DataRequest(tmp_path), Options()).samples) == 98
    for margin in ("1.25", 1.25):  # params.yaml may hold the text or the number
        assert len(load(DataRequest(tmp_path), Options(margin=margin)).samples) == 48


def test_what_is_wrong_in_the_hugging_face_form_is_told_together(tmp_path):
    folder = write_hub(tmp_path / "raw")
    images = hub_table(28).column("image").to_pylist()
    images[0]["bytes"], images[1]["bytes"] = b"no image", None
    genders = [None, None, None, 5, *(face % 2 for face in range(4, 28))]
    races = [0, 0, 0, 0, None, *(face % 6 for face in range(5, 28))]
    for path in folder.glob("validation-*"):
        pq.write_table(hub_table(28, image=images, gender=genders, race=races), path)
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    text, name = str(caught.value), "validation-00000-of-00001-951dbd63f8c7c2f4.parquet"
    for part in (
        f"1 unknown label ({name} row 4 got the gender 5; allowed: 0 to 1 (Male | Female))",
        f"3 empty label ({name} row 1 '', {name} row 2 '', {name} row 3 '')",
        f"1 empty group value ({name} row 5 the group column 'race' is empty)",
        "1 group absent from a split (the group 'Southeast Asian' has no sample in test",
        f"2 unreadable image ({name} row 1 'validation-00001', {name} row 2 'validation-00002')",
    ):
        assert part in text, (part, text)


def test_a_hugging_face_file_without_a_column(tmp_path):
    folder = write_hub(tmp_path)
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["race"]), path)
    problems = load(DataRequest(tmp_path), Options()).problems
    assert [(problem.kind, problem.value, problem.fatal) for problem in problems] == [
        ("missing column", "race", True)
    ] * 3


def test_both_forms_or_half_of_one(tmp_path):
    folder = write_hub(tmp_path)
    layout(tmp_path)
    with pytest.raises(
        DataError, match="datasets.fairface.source: got 'auto' with both forms in .*; allowed: csv | hugg"
    ):
        load(DataRequest(tmp_path), Options())
    assert len(load(DataRequest(tmp_path), Options(source="csv")).samples) == 48
    assert len(load(DataRequest(tmp_path), Options(source="huggingface")).samples) == 98
    for path in folder.glob("validation-*"):
        path.unlink()
    with pytest.raises(
        DataError, match="no file of the part 'validation' in .*0.25; expected fairface_label_train.csv"
    ):
        load(DataRequest(tmp_path), Options(source="huggingface"))


def test_absent_files_say_where_to_get_them(tmp_path):
    for source in ("auto", "huggingface"):
        with pytest.raises(DataError) as caught:
            load(DataRequest(tmp_path, download=True), Options(source=source))
        assert str(caught.value).endswith(
            "expected fairface_label_train.csv, fairface_label_val.csv (file,age,gender,race,service_test) and folders "
            "train, val, or the files of HuggingFaceM4/FairFace (0.25/train-*.parquet, 0.25/validation-*.parquet); the "
            "publisher offers no direct link (Google Drive), take the files from github.com/joojs/fairface or the data "
            "set HuggingFaceM4/FairFace on the Hugging Face hub"
        )


def test_duplicate_ids_missing_files_and_empty_groups_in_the_tables(tmp_path):
    layout(tmp_path)
    table = tmp_path / "fairface_label_train.csv"
    text = table.read_text().replace("train/1.jpg,", "train/0.jpg,", 1).replace("Male,White", "Male,", 1)
    table.write_text(text)
    (tmp_path / "train" / "2.jpg").unlink()
    (tmp_path / "train" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path), tmp_path / "prepared")
    for part in (
        "1 duplicate id (fairface_label_train.csv row 2 the id 'train/0.jpg' stands in row 1 already)",
        "1 empty group value (fairface_label_train.csv row 1 the group column 'race' is empty)",
        "1 missing file (fairface_label_train.csv row 3 no image file 'train/2.jpg')",
        "1 unreadable image (fairface_label_train.csv row 4 ",
    ):
        assert part in str(caught.value)


def test_real_faces_are_the_same_in_both_forms(shared_data, tmp_path):
    source = shared_data / "layouts" / "FairFace"
    tables = load(DataRequest(source), Options())
    (tmp_path / "0.25").mkdir()
    schema = hub_table(1).schema
    for part, split in (("train", "train"), ("validation", "test")):
        samples = [sample for sample in tables.samples if sample.split == split]
        columns = {
            column: [HUB_NAMES[column].index(sample.attributes[column]) for sample in samples] for column in HUB_NAMES
        }
        columns["image"] = [{"bytes": sample.image.read_bytes(), "path": sample.image.name} for sample in samples]
        columns["service_test"] = [sample.attributes["service_test"] == "True" for sample in samples]
        made = pa.table({name: columns[name] for name in schema.names}, schema=schema)
        pq.write_table(made, tmp_path / "0.25" / f"{part}-00000-of-00001.parquet", row_group_size=16)
    shards = load(DataRequest(tmp_path), Options())
    assert len(shards.samples) == len(tables.samples) == 84
    for one, two in zip(tables.samples, shards.samples, strict=True):
        assert (one.label, one.groups, one.split) == (two.label, two.groups, two.split)
        assert np.array_equal(decode(one.image, 48), decode(two.image, 48))
        assert two.attributes["file"] == one.image.name
