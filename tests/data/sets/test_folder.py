import csv
import tarfile

import pytest
from pydantic import ValidationError

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets.folder import Options, load
from fairquant.errors import ConfigError, DataError

CSV = "image,label,group,age,split\na/1.jpg,10,x, 5 ,train\n/abs/2.jpg,9,y,NA,\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.csv").write_text(CSV)
    return tmp_path


def test_paths_are_relative_to_the_csv_and_text_is_kept(folder):
    raw = load(DataRequest(folder), Options())
    first, second = raw.samples
    assert first.image == folder / "a" / "1.jpg" and str(second.image) == "/abs/2.jpg"
    assert first.attributes["age"] == " 5 " and second.attributes["age"] == "NA"
    assert (first.id, first.row, first.groups, first.split) == ("a/1.jpg", 1, ("x",), "train")
    assert raw.source == "folder labels.csv"


def test_the_csv_itself_or_another_name(folder):
    (folder / "labels.csv").rename(folder / "manifest.csv")
    assert load(DataRequest(folder), Options()).source == "folder manifest.csv"
    (folder / "manifest.csv").rename(folder / "mine.csv")
    assert len(load(DataRequest(folder / "mine.csv"), Options()).samples) == 2
    with pytest.raises(DataError, match="a folder without labels.csv or manifest.csv; expected a csv with the columns"):
        load(DataRequest(folder), Options())
    with pytest.raises(DataError, match="none.csv: not found; expected a csv with the columns image,label,group"):
        load(DataRequest(folder / "none.csv"), Options())


def test_whole_numbers_stay_text_in_numeric_order(folder):
    assert load(DataRequest(folder), Options()).classes == ("9", "10")


def test_class_names_rename_and_order(folder):
    raw = load(DataRequest(folder), Options(class_names={10: "ten", 9: "nine"}))
    assert raw.classes == ("ten", "nine") and [sample.label for sample in raw.samples] == ["ten", "nine"]
    raw = load(DataRequest(folder), Options(class_names=[10, 9, 8]))
    assert raw.classes == ("10", "9", "8")
    with pytest.raises(ValidationError):
        Options(class_names={})
    with pytest.raises(ValidationError):
        Options(class_names=3)


def test_other_columns(folder):
    request = DataRequest(folder, label="group", group=("label", "age"), split_by="age")
    raw = load(request, Options(id="age", use_split=False))
    assert raw.group_columns == ("label", "age") and raw.samples[0].groups == ("10", " 5 ")
    assert raw.samples[0].cluster == " 5 " == raw.samples[0].id and raw.samples[0].split is None


def test_every_missing_column_is_named(folder):
    request = DataRequest(folder, label="dx", group=("sex",), split_by="person")
    raw = load(request, Options(image="file", id="key", split="fold"))
    assert raw.samples == []
    assert [problem.value for problem in raw.problems] == ["file", "dx", "sex", "key", "person", "fold"]


def test_no_name_is_no_column(folder):
    raw = load(DataRequest(folder, label=""), Options())
    assert [problem.kind for problem in raw.problems] == ["missing column"]
    assert raw.problems[0].message.startswith("labels.csv has no column ''; its columns: ")


def test_a_group_column_named_twice(folder):
    with pytest.raises(
        DataError, match="data.group: got .'group', 'group'.; allowed: one or several different columns"
    ):
        load(DataRequest(folder, group=("group", "group")), Options())


def test_images_that_dvc_does_not_watch_are_told(folder, caplog):
    (folder / "labels.csv").write_text("image,label,group\na/1.jpg,x,g\n./b/../2.jpg,x,g\n")
    load(DataRequest(folder), Options())
    assert not caplog.messages
    said = "images lie outside data.path {}: DVC does not notice when they change; give the folder that holds "
    said += "csv and images"
    load(DataRequest(folder / "labels.csv"), Options())
    (folder / "labels.csv").write_text("image,label,group\na/1.jpg,x,g\n../2.jpg,x,g\n/abs/3.jpg,x,g\n")
    load(DataRequest(folder), Options())
    assert caplog.messages == [f"2 of 2 {said.format(folder / 'labels.csv')}", f"2 of 3 {said.format(folder)}"]


@pytest.mark.parametrize("names", [[], {}, {"a": None}, {"a": ["b"]}, {"a": ""}, [None], "a", {"a": {"b": 1}}])
def test_class_names_that_are_none(names):
    with pytest.raises(ConfigError) as error:
        parse_config({"datasets": {"folder": {"class_names": names}}})
    said = "params.yaml: datasets.folder.class_names: got "
    assert str(error.value).startswith(said)
    assert str(error.value).endswith("allowed: a mapping of labels to names, or a list of labels")


def test_a_mapping_from_params_yaml():
    options = {"class_names": {0: "Male", 1: "Female"}}
    config = parse_config({"data": {"name": "folder"}, "datasets": {"folder": options}})
    assert config.options("dataset", "folder").class_names == {"0": "Male", "1": "Female"}


def unpack(source, target, step):
    """Unpack every ``step``-th row of a real data set and its image."""
    header, *rows = (source / "labels.csv").read_text(encoding="utf-8").splitlines()
    kept = rows[::step]
    (target / "labels.csv").write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    names = {row.split(",")[0] for row in kept}
    with tarfile.open(source / "images.tar") as archive:
        archive.extractall(target, [member for member in archive if member.name in names], filter="data")


def real(path, **data):
    section = {"name": "folder", "path": str(path), "image_size": 16, "train_subset": 400, "test_subset": 200, **data}
    return parse_config({"data": section, "workers": 1})


def test_real_faces(shared_data, tmp_path):
    unpack(shared_data / "fairface64", tmp_path, 20)
    meta = prepare(real(tmp_path, label="gender", group="race"), tmp_path / "prepared")
    assert meta["classes"] == ["Female", "Male"] and len(meta["groups"]) == 7 and meta["split_source"] == "publisher"
    assert sum(meta["splits"]["train"].values()) == 400


def test_real_lesions_keep_to_one_side_and_rare_groups_are_told(shared_data, tmp_path):
    unpack(shared_data / "ham10000_64", tmp_path, 4)
    data = {"label": "malignant", "group": ["sex", "age_group"], "split_by": "lesion_id"}
    with pytest.raises(DataError, match="group absent from a split .the group 'male × unknown' has no sample in"):
        prepare(real(tmp_path, **data), tmp_path / "prepared")
    config = real(tmp_path, **data, min_group_size=12, small_groups="merge")
    meta = prepare(config, tmp_path / "prepared")
    assert meta["groups"] == ["female × <60", "female × >=60", "male × <60", "male × >=60", "other"]
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        assert {row["sex"] for row in csv.DictReader(file) if row["group_name"] == "other"} == {"male", "unknown"}


def test_a_real_lesion_on_two_sides_is_told(shared_data, tmp_path):
    unpack(shared_data / "ham10000_64", tmp_path, 4)
    table = tmp_path / "labels.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    (lesion, first, second) = next(
        (row["lesion_id"], row["image"], other["image"])
        for index, row in enumerate(rows)
        for other in rows[index + 1 : index + 200]
        if row["lesion_id"] == other["lesion_id"] and row["split"] == "train"
    )
    lines = [
        line[: -len("train")] + "test" if line.startswith(second) else line for line in table.read_text().splitlines()
    ]
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"cluster on two sides .row [0-9]+ '{lesion}', row [0-9]+ '{lesion}'"):
        prepare(real(tmp_path, label="malignant", group="sex", split_by="lesion_id"), tmp_path / "prepared")
    assert first != second
