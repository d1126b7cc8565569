import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
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


def config(folder, **data):
    section = {"name": "fairface", "path": str(folder), "image_size": 8, **data}
    return parse_config({"data": section, "workers": 1})


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
