import csv
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets.utkface import GENDERS, RACES, Options, band_names, load
from fairquant.errors import ConfigError, DataError

COLUMNS = ["age", "ethnicity", "gender", "img_name", " pixels"]


def jpeg(seed):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def person(index):
    """Age, gender and race of face ``index``: every gender and race in turn."""
    return (index * 7) % 117, index % 2, index // 2 % 5


def name(index):
    age, gender, race = person(index)
    return f"{age}_{gender}_{race}_{20170109142408075 + index}.jpg.chip.jpg"


def write_images(folder, n=80, folders=("part1", "part2", "part3")):
    paths = [folder / folders[index % len(folders)] / name(index) for index in range(n)]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(index))
    return paths


def write_table(folder, n=80, columns=COLUMNS, change=lambda index, row: row):
    """Write the pixel table and return its images."""
    images = np.random.default_rng(0).integers(0, 256, (n, 48, 48), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    with (folder / "age_gender.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for index, image in enumerate(images):
            age, gender, race = person(index)
            row = [age, race, gender, f"{20170109142408075 + index}.jpg.chip.jpg", " ".join(map(str, image.ravel()))]
            writer.writerow(change(index, row))
    return images


def config(folder, options=None, **data):
    section = {"name": "utkface", "path": str(folder), "image_size": 8, **data}
    return parse_config({"data": section, "datasets": {"utkface": options or {}}, "workers": 1})


@pytest.mark.parametrize("folders", [(".",), ("UTKFace",), ("part1", "part2", "part3")])
def test_labels_in_file_names_in_one_or_several_folders(tmp_path, folders):
    write_images(tmp_path / "raw", folders=folders)
    (tmp_path / "raw" / "._hidden.jpg").write_bytes(b"no image")
    (tmp_path / "raw" / "readme.txt").write_text("no image")
    raw = load(DataRequest(tmp_path / "raw"), Options())
    assert raw.problems == [] and raw.classes == GENDERS and raw.source == "utkface images"
    by_id = {sample.id: sample for sample in raw.samples}
    for index in range(80):
        sample, (age, gender, race) = by_id[name(index)], person(index)
        assert sample.label == GENDERS[gender] and sample.groups == (RACES[race],)
        assert sample.attributes["age"] == str(age) and sample.cluster == sample.id
    meta = prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert meta["groups"] == list(RACES) and meta["split_source"] == "drawn" and meta["samples"] == 80
    assert meta["notes"] == {"identical images": 0}


@pytest.mark.parametrize("columns", [COLUMNS, ["age", "ethnicity", "gender", "img_name", "pixels"]])
def test_the_pixel_table(tmp_path, columns):
    images = write_table(tmp_path / "raw", columns=columns)
    for path in (tmp_path / "raw", tmp_path / "raw" / "age_gender.csv"):
        raw = load(DataRequest(path, label="race", group=("gender", "age_band")), Options())
        assert raw.problems == [] and raw.classes == RACES and len(raw.samples) == 80
        for index, sample in enumerate(raw.samples):
            assert sample.id == name(index) and np.array_equal(sample.image(), images[index])
            assert sample.label == RACES[person(index)[2]] and sample.groups[0] == GENDERS[person(index)[1]]
            assert "pixels" not in sample.attributes
    assert prepare(config(tmp_path / "raw"), tmp_path / "prepared")["samples"] == 80


def test_age_bands():
    assert band_names((3, 10, 20, 30, 40, 50, 60, 70)) == (
        "0-2",
        "3-9",
        "10-19",
        "20-29",
        "30-39",
        "40-49",
        "50-59",
        "60-69",
        "70+",
    )
    assert band_names((1, 18)) == ("0", "1-17", "18+")


def test_each_age_stands_in_its_band(tmp_path):
    write_images(tmp_path, n=117)
    raw = load(DataRequest(tmp_path, label="age_band"), Options(age_bands=(18, 60)))
    assert raw.classes == ("0-17", "18-59", "60+")
    for sample in raw.samples:
        age = int(sample.attributes["age"])
        assert sample.label == ("0-17" if age < 18 else "18-59" if age < 60 else "60+")


def test_file_names_with_a_field_missing_are_told_and_can_be_dropped(tmp_path):
    write_images(tmp_path / "raw")
    bad = ["61_1_20170109142408075.jpg.chip.jpg", "39_1_20170116174525125.jpg.chip.jpg", "53__0_20170116184028385.jpg"]
    for index, wrong in enumerate(bad):
        (tmp_path / "raw" / wrong).write_bytes(jpeg(1000 + index))
    (tmp_path / "raw" / "55_0_0_20170116232725357jpg.chip.jpg").write_bytes(jpeg(2000))  # published so, and readable
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert "3 bad file name (row 1 '39_1_20170116174525125.jpg.chip.jpg', row 2 '53__0_2017" in str(caught.value)
    assert "row 4 '61_1_20170109142408075.jpg.chip.jpg'" in str(caught.value)
    meta = prepare(config(tmp_path / "raw", bad_rows="drop"), tmp_path / "prepared")
    assert meta["samples"] == 81 and meta["dropped"] == {"bad file name": 3}


def test_a_broken_link_is_told_and_a_folder_is_no_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "part1" / "album.jpg").mkdir()
    (tmp_path / "part1" / "30_0_0_201.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"^1 problem in the data: 1 missing file .*no image file '30_0_0_201.jpg'"):
        prepare(config(tmp_path), tmp_path / "prepared")


def test_labels_out_of_range(tmp_path):
    for index, wrong in enumerate(["117_0_0_1.jpg", "30_2_0_2.jpg", "30_0_5_3.jpg", "x_0_0_4.jpg", "30_0_4_5.jpg"]):
        (tmp_path / wrong).write_bytes(jpeg(index))
    raw = load(DataRequest(tmp_path), Options())
    assert [sample.id for sample in raw.samples] == ["30_0_4_5.jpg"]
    assert [(problem.kind, problem.message) for problem in raw.problems] == [
        ("unknown label", "'117_0_0_1.jpg': got the age '117'; allowed: a whole number in [0, 116]"),
        ("unknown label", "'30_0_5_3.jpg': got the race '5'; allowed: a whole number in [0, 4]"),
        ("unknown label", "'30_2_0_2.jpg': got the gender '2'; allowed: a whole number in [0, 1]"),
        ("unknown label", "'x_0_0_4.jpg': got the age 'x'; allowed: a whole number in [0, 116]"),
    ]


def test_identical_images_that_disagree_are_told_and_those_that_agree_stay_together(tmp_path):
    write_images(tmp_path / "raw")
    for index, label in enumerate(["20_0_1", "20_0_1", "20_0_1"]):
        (tmp_path / "raw" / f"{label}_9{index}.jpg").write_bytes(jpeg(5000))
    for label in ("30_0_1", "30_1_1"):
        (tmp_path / "raw" / f"{label}_80.jpg").write_bytes(jpeg(6000))
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert str(caught.value).startswith(
        "2 problems in the data: 2 conflicting labels (row 4 '30_0_1_80.jpg', row 5 '30_1_1_80.jpg');"
    )
    raw = load(DataRequest(tmp_path / "raw"), Options())
    assert raw.problems[0].message == (
        "'30_0_1_80.jpg' and '30_1_1_80.jpg' are the same image and differ in age, gender or race"
    )
    assert [sample.cluster for sample in raw.samples[:3]] == ["20_0_1_90.jpg"] * 3
    for seed in range(3):
        meta = prepare(config(tmp_path / "raw", bad_rows="drop", seed=seed), tmp_path / "prepared")
        assert meta["dropped"] == {"conflicting labels": 2} and meta["notes"] == {"identical images": 2}
        with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
            sides = {row["split"] for row in csv.DictReader(file) if row["id"].startswith("20_0_1_9")}
        assert len(sides) == 1


def test_one_file_name_in_two_folders_is_a_duplicate_id(tmp_path):
    paths = write_images(tmp_path / "raw")
    copy = tmp_path / "raw" / "crop_part1" / paths[0].name
    copy.parent.mkdir()
    copy.write_bytes(paths[0].read_bytes())
    with pytest.raises(DataError, match=f"1 duplicate id .row [0-9]+ the id '{paths[0].name}' stands in row 1 already"):
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")


def test_everything_wrong_in_a_table_is_told_together(tmp_path):
    def change(index, row):
        age, race, gender, file, pixels = row
        changed = {
            0: [age, race, gender, file, pixels.rsplit(" ", 1)[0]],
            1: [age, race, gender, file, "256 " + pixels.split(" ", 1)[1]],
            2: [117, race, gender, file, pixels],
            3: [age, "", gender, file, pixels],
            5: [28, 2, 0, "20170109142408079.jpg.chip.jpg", pixels],
            6: [age, race, gender],
        }
        return changed.get(index, row)

    write_table(tmp_path / "raw", change=change)
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    text = str(caught.value)
    assert "2 unreadable image (age_gender.csv row 1 '20170109142408075.jpg.chip.jpg', age_gender.csv row 2 " in text
    assert (
        "2 unknown label (age_gender.csv row 3 '117_0_1_20170109142408077.jpg.chip.jpg', age_gender.csv row 4 " in text
    )
    assert "1 wrong number of fields (age_gender.csv row 7 the row has 3 fields, the header 5)" in text
    assert "1 duplicate id (age_gender.csv row 6 the id '28_0_2_20170109142408079.jpg.chip.jpg' stands in row 5" in text
    listed = (tmp_path / "problems.csv").read_text()
    assert "got the pixel '256'; allowed: 2304 whole numbers in [0, 255] (48×48)" in listed
    assert (
        "got 2303 pixels; allowed: 2304 whole numbers in [0, 255] (48×48)" in listed
        and not (tmp_path / "prepared").exists()
    )


def test_a_table_without_columns(tmp_path):
    write_table(tmp_path, columns=["age", "race", "gender", "name", "pixels"])
    raw = load(DataRequest(tmp_path), Options())
    assert raw.samples == [] and [problem.value for problem in raw.problems] == ["ethnicity", "img_name"]
    assert all(problem.fatal for problem in raw.problems)


def test_an_unreadable_image_and_a_group_absent_from_a_split(tmp_path):
    paths = write_images(tmp_path / "raw", n=42)
    paths[0].write_bytes(b"no image")
    for path in [path for path in paths if path.name.split("_")[2] == "4"][2:]:
        path.unlink()
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert "1 unreadable image (row 1 UnidentifiedImageError" in str(caught.value)
    assert "1 group absent from a split (the group 'Others' has no sample in " in str(caught.value)


def test_absent_files_say_where_to_get_them(tmp_path):
    with pytest.raises(DataError) as caught:
        load(DataRequest(tmp_path / "none", download=True), Options())
    assert str(caught.value) == (
        f"data.path: no image and no age_gender.csv in {tmp_path / 'none'}; expected images named "
        "[age]_[gender]_[race]_[date&time].jpg in data.path or in folders below it, or age_gender.csv "
        "(age,ethnicity,gender,img_name,pixels); the publisher offers no direct link, take the files from "
        "susanqq.github.io/UTKFace"
    )
    with pytest.raises(DataError, match="age_gender.csv: not found; expected images named"):
        load(DataRequest(tmp_path), Options(source="table"))


def test_both_forms_at_once_must_be_chosen_between(tmp_path):
    write_images(tmp_path, n=10)
    write_table(tmp_path, n=20)
    with pytest.raises(
        DataError,
        match="datasets.utkface.source: got 'auto' with both age_gender.csv and images in .*; allowed: images | table",
    ):
        load(DataRequest(tmp_path), Options())
    assert len(load(DataRequest(tmp_path), Options(source="images")).samples) == 10
    assert len(load(DataRequest(tmp_path), Options(source="table")).samples) == 20


@pytest.mark.parametrize("bands", [[], [30, 20], [20, 20], [0], [117], ["x"]])
def test_bands_that_are_none(bands):
    with pytest.raises(
        ConfigError, match=r"datasets.utkface.age_bands.*allowed: .*ages in rising order, each in \[1, 1"
    ):
        parse_config({"datasets": {"utkface": {"age_bands": bands}}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "age"}, r"data.label: got 'age'; allowed: gender \| race \| age_band"),
        ({"group": ("sex",)}, r"data.group: got 'sex'; allowed: gender \| race \| age_band"),
        ({"split_by": "person"}, "data.split_by: got 'person'; allowed: null for utkface, which names no person"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())
