import csv
import json

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets import fitzpatrick17k
from fairquant.data.sets.fitzpatrick17k import LABELS, TYPES, Link, Options, load, skin_type, tone
from fairquant.errors import DataError
from tests.data.conftest import write_csv
from tests.data.server import Reply

NINE = LABELS["nine_partition_label"]


def make_rows(n=126, column="fitzpatrick_scale"):
    """Types 1 to 6 and -1 in turn; partitions in turn within each type."""
    return [
        {
            "md5hash": f"{index:032x}",
            column: str((-1, 1, 2, 3, 4, 5, 6)[index % 7]),
            "fitzpatrick_centaur": str((1, 2, 3, 4, 5, 6)[index % 6]),
            "label": f"condition {index % 4}",
            "nine_partition_label": NINE[index % 9],
            "three_partition_label": ("non-neoplastic", "benign", "malignant")[index // 7 % 3],
            "qc": {0: "1 Diagnostic", 5: "3 Wrongly labelled"}.get(index % 21, ""),
            "url": "",
        }
        for index in range(n)
    ]


def write(folder, rows, images="images"):
    for index, row in enumerate(rows):
        path = folder / images / f"{row['md5hash']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    write_csv(folder / "fitzpatrick17k.csv", rows)
    return folder


def split_files(folder, rows, parts):
    for name, part in parts.items():
        write_csv(folder / name, [rows[index] for index in part])


def config(folder, options=None, **data):
    section = {"name": "fitzpatrick17k", "path": str(folder), "image_size": 8, "download": False, **data}
    return parse_config({"data": section, "datasets": {"fitzpatrick17k": options or {}}, "workers": 1})


@pytest.mark.parametrize("column", ["fitzpatrick", "fitzpatrick_scale"])
@pytest.mark.parametrize("images", ["images", "finalfitz17k"])
def test_six_types_and_the_unknown_are_groups(tmp_path, column, images):
    write(tmp_path / "raw", make_rows(column=column), images)
    meta = prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert meta["groups"] == [*TYPES, "unknown"] and meta["classes"] == ["non-neoplastic", "benign", "malignant"]
    assert meta["samples"] == 126 and meta["notes"] == {} and meta["split_source"] == "drawn"
    counts = {name: sum(meta["splits"][split][name] for split in meta["splits"]) for name in meta["groups"]}
    assert set(counts.values()) == {18}
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["fitzpatrick"] == "unknown" and row["tone"] == "unknown" and row["source_label"] == "condition 0"
    assert row["fitzpatrick_centaur"] == "I" and row["tone_centaur"] == "I-III"


def test_names_of_types():
    assert [skin_type(value) for value in ("1", " 6 ", "3.0", "-1", "-1.0", "0", "7", "", "1.5")] == [
        "I",
        "VI",
        "III",
        "unknown",
        "unknown",
        "0",
        "7",
        "",
        "1.5",
    ]
    assert [tone(value) for value in (*TYPES, "unknown", "7")] == ["I-III"] * 3 + ["IV-VI"] * 3 + ["unknown", "7"]


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("nine_partition_label", NINE),
        ("label", tuple(f"condition {index}" for index in range(4))),
        ("malignant", ("not malignant", "malignant")),
    ],
)
def test_other_targets(tmp_path, label, classes):
    raw = load(DataRequest(write(tmp_path, make_rows()), label=label), Options())
    assert raw.classes == classes and {sample.label for sample in raw.samples} == set(classes)
    for sample in raw.samples:
        if label == "malignant":
            assert (sample.label == "malignant") == (sample.attributes["three_partition_label"] == "malignant")


def test_tones_and_the_second_annotation(tmp_path):
    raw = load(DataRequest(write(tmp_path, make_rows()), group=("tone", "fitzpatrick_centaur")), Options())
    assert raw.samples[1].groups == ("I-III", "II") and raw.samples[4].groups == ("IV-VI", "V")
    assert raw.group_order["tone"] == ("I-III", "IV-VI", "unknown")
    raw = load(DataRequest(tmp_path, group=("tone_centaur",)), Options())
    assert {sample.groups for sample in raw.samples} == {("I-III",), ("IV-VI",)}


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path / "raw", make_rows())
    meta = prepare(config(tmp_path / "raw", {"unknown": "drop", "qc": "clean"}), tmp_path / "prepared")
    assert meta["notes"] == {"left out: unknown skin type": 18, "left out: wrongly labelled": 6}
    assert meta["samples"] == 126 - 18 - 6 and meta["groups"] == list(TYPES)
    # the second annotation is known everywhere
    kept = load(DataRequest(tmp_path / "raw", group=("fitzpatrick_centaur",)), Options(unknown="drop"))
    assert len(kept.samples) == 126 and kept.notes == {}


def test_unknown_types_as_problems(tmp_path):
    write(tmp_path / "raw", make_rows(14))
    raw = load(DataRequest(tmp_path / "raw"), Options(unknown="error"))
    assert [(problem.kind, problem.row) for problem in raw.problems] == [
        ("unknown skin type", 1),
        ("unknown skin type", 8),
    ]
    assert "allowed: 1 to 6, or datasets.fitzpatrick17k.unknown: keep | drop" in raw.problems[0].message
    assert len(raw.samples) == 12


# ---- the publisher's split


def test_all_three_split_files(tmp_path):
    rows = make_rows()
    write(tmp_path / "raw", rows)
    parts = {"train_score.csv": range(63), "all_val.csv": range(63, 84), "all_test.csv": range(84, 126)}
    split_files(tmp_path / "raw", rows, parts)
    meta = prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert {split: sum(groups.values()) for split, groups in meta["splits"].items()} == {
        "train": 63,
        "val": 21,
        "test": 42,
    }
    assert meta["split_source"] == "publisher"
    assert prepare(config(tmp_path / "raw", {"use_split": False}), tmp_path / "drawn")["split_source"] == "drawn"


@pytest.mark.parametrize(
    ("other", "source"),
    [
        ("all_val.csv", "publisher; its val is the test, val drawn from train"),
        ("all_test.csv", "publisher; val drawn from train"),
    ],
)
def test_two_split_files(tmp_path, other, source):
    rows = make_rows()
    write(tmp_path / "raw", rows)
    split_files(tmp_path / "raw", rows, {"train_score.csv": range(84), other: range(84, 126)})
    meta = prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert sum(meta["splits"]["test"].values()) == 42 and meta["split_source"] == source
    assert sum(meta["splits"]["val"].values()) + sum(meta["splits"]["train"].values()) == 84


@pytest.mark.parametrize("there", [["train_score.csv"], ["all_val.csv"], ["all_val.csv", "all_test.csv"]])
def test_split_files_that_do_not_make_a_split(tmp_path, there):
    rows = make_rows()
    write(tmp_path, rows)
    split_files(tmp_path, rows, {name: range(index * 9, index * 9 + 9) for index, name in enumerate(there)})
    message = (
        " and ".join(there) + " without the others; allowed: train_score.csv with all_val.csv, all_test.csv or both"
    )
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path), Options())
    assert {sample.split for sample in load(DataRequest(tmp_path), Options(use_split=False)).samples} == {None}


def test_lists_that_contradict_each_other_or_the_table(tmp_path):
    rows = make_rows()
    write(tmp_path / "raw", rows)
    split_files(tmp_path / "raw", rows, {"train_score.csv": [*range(63), 0], "all_val.csv": [*range(63, 125), 5]})
    with (tmp_path / "raw" / "all_val.csv").open("a") as file:
        file.write("stranger,1,1,a,inflammatory,benign,,\n")
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    text = str(caught.value)
    assert f"1 id twice in a split (train_score.csv row 64 '{0:032x}' is listed above already)" in text
    assert f"1 id in two splits (all_val.csv row 63 '{5:032x}' is listed in train_score.csv already)" in text
    assert "1 unknown id in a split (all_val.csv row 64 'stranger' is not in fitzpatrick17k.csv)" in text
    assert "1 missing split value (row 126 the split is empty here and given elsewhere)" in text
    meta = prepare(config(tmp_path / "raw", bad_rows="drop"), tmp_path / "prepared")
    assert meta["samples"] == 125 and meta["dropped"]["missing split value"] == 1


# ---- what can be wrong


def test_everything_wrong_is_told_together(tmp_path):
    rows = make_rows()
    rows[1]["fitzpatrick_scale"] = "7"
    rows[2]["fitzpatrick_scale"] = ""
    rows[3]["three_partition_label"] = "benig"
    rows[4]["three_partition_label"] = ""
    rows[6] = dict(rows[5])
    write(tmp_path / "raw", rows)
    (tmp_path / "raw" / "images" / f"{8:032x}.jpg").unlink()
    (tmp_path / "raw" / "images" / f"{9:032x}.jpg").write_bytes(b"\xff\xd8 no picture")
    with (tmp_path / "raw" / "fitzpatrick17k.csv").open("a") as file:
        file.write("too,few,fields\n")
    for label in ("three_partition_label", "malignant"):
        with pytest.raises(DataError) as caught:
            prepare(config(tmp_path / "raw", label=label), tmp_path / "prepared")
        text = str(caught.value)
        assert "1 bad skin type (row 2 got the skin type '7'; allowed: 1 to 6, or -1 for unknown)" in text
        assert "1 empty group value (row 3 the group column 'fitzpatrick' is empty)" in text
        assert "1 unknown label (row 4 got the label 'benig'; allowed: " in text
        assert "1 empty label (row 5 the label is empty)" in text
        assert f"1 duplicate id (row 7 the id '{5:032x}' stands in row 6 already)" in text
        assert f"1 missing file (row 9 no image file '{8:032x}')" in text
        assert "1 unreadable image (row 10 UnidentifiedImageError" in text
        assert "1 wrong number of fields (fitzpatrick17k.csv row 127 the row has 3 fields, the header 8)" in text
        assert text.startswith("8 problems in the data: ") and "\n" not in text
    assert not (tmp_path / "prepared").exists()
    meta = prepare(config(tmp_path / "raw", bad_rows="drop"), tmp_path / "prepared")
    assert meta["samples"] == 119 and sum(meta["dropped"].values()) == 8


def test_a_group_absent_from_a_split(tmp_path):
    rows = make_rows()
    write(tmp_path / "raw", rows)
    sixes = [index for index, row in enumerate(rows) if row["fitzpatrick_scale"] == "6"]
    others = [index for index in range(126) if index not in sixes]
    parts = {"train_score.csv": [*others[:54], *sixes], "all_val.csv": others[54:81], "all_test.csv": others[81:]}
    split_files(tmp_path / "raw", rows, parts)
    with pytest.raises(DataError, match="1 group absent from a split .the group 'VI' has no sample in val and test"):
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")


@pytest.mark.parametrize("column", ["md5hash", "fitzpatrick_scale", "three_partition_label"])
def test_a_missing_column(tmp_path, column):
    write(tmp_path, make_rows())
    write_csv(tmp_path / "fitzpatrick17k.csv", [{k: v for k, v in row.items() if k != column} for row in make_rows()])
    raw = load(DataRequest(tmp_path), Options())
    assert [problem.message.split(";")[0] for problem in raw.problems] == [
        f"fitzpatrick17k.csv has no column {column!r}"
    ]
    assert raw.problems[0].fatal and not raw.samples


def test_columns_that_only_some_settings_need(tmp_path):
    rows = [{key: row[key] for key in ("md5hash", "fitzpatrick_scale", "three_partition_label")} for row in make_rows()]
    write(tmp_path, rows)
    assert len(load(DataRequest(tmp_path), Options()).samples) == 126
    assert load(DataRequest(tmp_path), Options(qc="clean")).problems[0].value == "qc"
    assert load(DataRequest(tmp_path, group=("tone_centaur",)), Options()).problems[0].value == "fitzpatrick_centaur"


def test_two_columns_of_types(tmp_path):
    write(tmp_path, [{**row, "fitzpatrick": "1"} for row in make_rows(3)])
    with pytest.raises(
        DataError, match="got both fitzpatrick_scale and fitzpatrick; allowed: one column of skin types"
    ):
        load(DataRequest(tmp_path), Options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "qc"}, r"data.label: got 'qc'; allowed: three_partition_label \| nine_partition_label \| label"),
        ({"group": ("sex",)}, r"data.group: got 'sex'; allowed: fitzpatrick \| tone \| fitzpatrick_centaur"),
        ({"split_by": "url"}, "data.split_by: got 'url'; allowed: null for fitzpatrick17k, which names no patient"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())


def test_absent_images_say_where_they_are(tmp_path):
    write_csv(tmp_path / "fitzpatrick17k.csv", make_rows())
    with pytest.raises(
        DataError, match=r"data.path: no .jpg under .*images; the publisher links .* in the column url .*"
    ):
        load(DataRequest(tmp_path, download=True), Options())


def test_the_table_is_fetched_where_the_images_are(server, tmp_path, monkeypatch):
    write(tmp_path, make_rows())
    table = tmp_path / "fitzpatrick17k.csv"
    link = Link(server.serve("fitzpatrick17k.csv", Reply(table.read_bytes(), headers={"Content-Type": "text/plain"})))
    monkeypatch.setattr(fitzpatrick17k, "LINK", link)
    table.unlink()
    with pytest.raises(DataError, match="fitzpatrick17k.csv: not found; expected fitzpatrick17k.csv"):
        load(DataRequest(tmp_path), Options())
    assert not server.requests
    for _ in range(2):
        assert len(load(DataRequest(tmp_path, download=True), Options()).samples) == 126
    assert len(server.requests["/fitzpatrick17k.csv"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitzpatrick17k.csv", "images"]


def test_the_published_layout(shared_data, tmp_path):
    """63 real rows; the split files hold types by the older column name and give train and val only."""
    folder = shared_data / "layouts" / "Fitzpatrick17k"
    raw = load(DataRequest(folder), Options())
    assert len(raw.samples) == 63 and not raw.problems
    counts = {name: sum(sample.groups == (name,) for sample in raw.samples) for name in (*TYPES, "unknown")}
    assert set(counts.values()) == {9}
    assert [sum(sample.split == split for sample in raw.samples) for split in ("train", "val")] == [51, 12]
    meta = prepare(config(folder, {"unknown": "drop"}, group="tone"), tmp_path / "prepared")
    assert meta["groups"] == ["I-III", "IV-VI"] and meta["samples"] == 54
    assert meta["notes"] == {"left out: unknown skin type": 9}
    assert meta["split_source"] == "publisher; its val is the test, val drawn from train"
    assert json.loads((tmp_path / "prepared" / "meta.json").read_text())["classes"][2] == "malignant"
