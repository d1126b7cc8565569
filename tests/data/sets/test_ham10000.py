import csv

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets.ham10000 import DIAGNOSES, Options, age_group, load
from fairquant.errors import DataError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"


def write(folder, folders=("HAM10000_images_part_1", "HAM10000_images_part_2"), n=84):
    """Two images of each lesion; diagnoses in turn; sexes and ages in turn."""
    rows = []
    for index in range(n):
        lesion = index // 2
        age = ("40.0", "70.0", "")[lesion // 14 % 3]
        sex = ("female", "male")[lesion // 7 % 2]
        rows.append(f"HAM_{lesion:07d},ISIC_{index:07d},{DIAGNOSES[lesion % 7]},histo,{age},{sex},back\n")
        path = folder / folders[index % len(folders)] / f"ISIC_{index:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    (folder / "HAM10000_metadata.csv").write_text(HEADER + "".join(rows))


def config(folder, **data):
    section = {"name": "ham10000", "path": str(folder), "image_size": 8, **data}
    return parse_config({"data": section, "workers": 1})


@pytest.mark.parametrize(
    "folders", [("HAM10000_images_part_1", "HAM10000_images_part_2"), ("HAM10000_images",), (".",)]
)
def test_images_of_one_lesion_stay_on_one_side(tmp_path, folders):
    write(tmp_path, folders)
    meta = prepare(config(tmp_path), tmp_path / "prepared")
    assert meta["classes"] == list(DIAGNOSES) and meta["groups"] == ["female", "male"] and meta["samples"] == 84
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {}
    for row in rows:
        sides.setdefault(row["lesion_id"], set()).add(row["split"])
    assert len(sides) == 42 and all(len(found) == 1 for found in sides.values())


def test_malignant_and_intersections(tmp_path):
    write(tmp_path)
    raw = load(DataRequest(tmp_path, label="malignant", group=("sex", "age_group")), Options())
    assert raw.classes == ("benign", "malignant")
    for sample in raw.samples:
        assert (sample.label == "malignant") == (sample.attributes["dx"] in ("akiec", "bcc", "mel"))
    assert {sample.groups[1] for sample in raw.samples} == {"<60", ">=60", "unknown"}
    assert raw.samples[0].cluster == "HAM_0000000"


@pytest.mark.parametrize("age", ["-4", "1e9", "121.0", "inf"])
def test_an_age_that_no_one_has_is_told_with_its_row(tmp_path, age):
    write(tmp_path)
    table = tmp_path / "HAM10000_metadata.csv"
    lines = table.read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace("40.0", age)
    table.write_text("".join(lines))
    with pytest.raises(DataError) as error:
        prepare(config(tmp_path), tmp_path / "prepared")
    said = f"1 bad age (HAM10000_metadata.csv row 5 got the age {age!r}; allowed: years in [0, 120], or empty)"
    assert said in str(error.value)
    meta = prepare(config(tmp_path, bad_rows="drop"), tmp_path / "prepared")
    assert meta["dropped"] == {"bad age": 1} and meta["samples"] == 83


def test_age_bands():
    assert [age_group(age) for age in ("59.9", "60", "0.0", "", "nan", "old")] == [
        "<60",
        ">=60",
        "<60",
        "unknown",
        "unknown",
        "unknown",
    ]


def test_an_unknown_diagnosis_and_a_missing_image_are_told_together(tmp_path):
    write(tmp_path)
    table = tmp_path / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace(",bcc,", ",bbc,", 1))
    (tmp_path / "HAM10000_images_part_1" / "ISIC_0000000.jpg").unlink()
    for label in ("dx", "malignant"):
        with pytest.raises(DataError) as caught:
            prepare(config(tmp_path, label=label), tmp_path / "prepared")
        assert "1 missing file (row 1 no image file 'ISIC_0000000')" in str(caught.value)
        assert "1 unknown label (row 3 got the label 'bbc'; allowed: " in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "sex"}, r"data.label: got 'sex'; allowed: dx \| malignant"),
        ({"group": ("age",)}, r"data.group: got 'age'; allowed: sex \| age_group \| localization \| dx_type"),
        ({"split_by": "patient"}, r"data.split_by: got 'patient'; allowed: lesion_id \|"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())


def test_absent_files(tmp_path):
    with pytest.raises(DataError, match="HAM10000_metadata.csv: not found; expected HAM10000_metadata.csv .lesion_id"):
        load(DataRequest(tmp_path), Options())
    (tmp_path / "HAM10000_metadata.csv").write_text(HEADER + "a,b,nv,histo,1,male,back\n")
    with pytest.raises(DataError, match="no .jpg image under .* expected HAM10000_metadata.csv"):
        load(DataRequest(tmp_path), Options())


def test_the_published_layout(shared_data, tmp_path):
    meta = prepare(config(shared_data / "layouts" / "HAM10000"), tmp_path / "prepared")
    assert meta["samples"] == 60 and meta["groups"] == ["female", "male"] and meta["classes"] == list(DIAGNOSES)
