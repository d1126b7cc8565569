import csv
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets import isic2019
from fairquant.data.sets.isic2019 import DIAGNOSES, Link, Options, age_group, age_groups, load, one_hot
from fairquant.errors import ConfigError, DataError
from tests.data.archives import zip_of
from tests.data.conftest import write_csv

TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
COLUMNS = (*DIAGNOSES, "UNK")


def make(n=160):
    """Two images of each lesion; diagnoses by lesion in turn; every tenth lesion without sex, age and site.

    The last 20 images name no lesion, as the rows of one of the data set's sources do.
    """
    truth, metadata = [], []
    for index in range(n):
        lesion = index // 2
        name = f"ISIC_{index:07d}" + ("_downsampled" if index % 16 == 3 else "")
        known = lesion % 10 != 9
        truth.append({"image": name, **{column: f"{float(column == DIAGNOSES[lesion % 8])}" for column in COLUMNS}})
        metadata.append(
            {
                "image": name,
                "age_approx": f"{20.0 + lesion % 14 * 5}" if known else "",
                "anatom_site_general": ("head/neck", "anterior torso")[lesion % 2] if known else "",
                "lesion_id": f"BCN_{lesion:07d}" if index < n - 20 else "",
                "sex": ("female", "male")[lesion // 8 % 2] if known else "",
            }
        )
    return truth, metadata


def write(folder, truth, metadata, images="ISIC_2019_Training_Input"):
    for index, row in enumerate(truth):
        path = folder / images / f"{row['image']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    write_csv(folder / TRUTH, truth)
    write_csv(folder / METADATA, metadata)
    return folder


def config(folder, options=None, **data):
    section = {"name": "isic2019", "path": str(folder), "image_size": 8, "download": False, **data}
    return parse_config({"data": section, "datasets": {"isic2019": options or {}}, "workers": 1})


@pytest.mark.parametrize(
    "images", ["ISIC_2019_Training_Input", "ISIC_2019_Training_Input/ISIC_2019_Training_Input", "images"]
)
def test_images_of_one_lesion_stay_on_one_side(tmp_path, images):
    write(tmp_path / "raw", *make(), images)
    meta = prepare(config(tmp_path / "raw"), tmp_path / "prepared")
    assert meta["classes"] == list(DIAGNOSES) and meta["groups"] == ["female", "male", "unknown"]
    assert meta["samples"] == 160 and meta["notes"] == {} and meta["split_source"] == "drawn"
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sides = defaultdict(set)
    for row in rows:
        sides[row["lesion_id"]].add(row["split"])
    alone = sides.pop("")
    assert len(sides) == 70 and all(len(found) == 1 for found in sides.values())
    assert len(alone) > 1  # images without a lesion are not one lesion
    assert not set(COLUMNS) & set(rows[0]) and rows[0]["diagnosis"] == "MEL" and rows[0]["malignant"] == "malignant"


def test_split_by_image_is_there_for_comparison(tmp_path):
    raw = load(DataRequest(write(tmp_path, *make()), split_by="image"), Options())
    assert [sample.cluster for sample in raw.samples] == [sample.id for sample in raw.samples]
    raw = load(DataRequest(tmp_path), Options())
    assert raw.samples[0].cluster == raw.samples[1].cluster == "BCN_0000000"
    assert raw.samples[159].cluster == "ISIC_0000159" != raw.samples[158].cluster


def test_malignant_is_a_choice(tmp_path):
    folder = write(tmp_path, *make())
    for options, expected in (({}, {"MEL", "BCC", "SCC"}), ({"malignant": ["MEL", "AK"]}, {"MEL", "AK"})):
        raw = load(DataRequest(folder, label="malignant"), Options(**options))
        assert raw.classes == ("benign", "malignant")
        assert {s.attributes["diagnosis"] for s in raw.samples if s.label == "malignant"} == expected


def test_none_of_the_others_is_a_class_where_it_occurs(tmp_path):
    truth, metadata = make()
    for row in truth[:40]:
        row.update(dict.fromkeys(DIAGNOSES, "0.0"), UNK="1.0")
    write(tmp_path, truth, metadata)
    assert load(DataRequest(tmp_path), Options()).classes == (*DIAGNOSES, "UNK")
    with pytest.raises(DataError, match=r"40 unknown label .*row 1 'UNK', "):
        prepare(config(tmp_path, label="malignant"), tmp_path / "prepared")


def test_groups_and_their_unknown_values(tmp_path):
    folder = write(tmp_path / "raw", *make())
    raw = load(DataRequest(folder, group=("sex", "age_group")), Options(age_boundaries=(40, 60)))
    assert raw.samples[0].groups == ("female", "<40") and raw.samples[18].groups == ("unknown", "unknown")
    assert raw.group_order["age_group"] == ("<40", "40-59", ">=60", "unknown")
    raw = load(DataRequest(folder, group=("anatom_site_general",)), Options(unknown="drop"))
    assert {sample.groups for sample in raw.samples} == {("head/neck",), ("anterior torso",)}
    assert len(raw.samples) == 144 and raw.notes == {"left out: unknown group": 16}
    meta = prepare(config(folder, {"unknown": "drop"}), tmp_path / "prepared")
    assert meta["notes"] == {"left out: unknown group": 16} and meta["groups"] == ["female", "male"]


def test_age_groups():
    ages = ["0.0", "59.9", "60", "85.0", "", " ", "nan", "-5", "121", "old"]
    expected = ["<60", "<60", ">=60", ">=60", "unknown", "unknown", "", "", "", ""]
    assert [age_group(age, [60]) for age in ages] == expected
    assert [age_group(age, [30, 45, 60]) for age in ("29", "30", "45", "75")] == ["<30", "30-44", "45-59", ">=60"]
    assert age_groups([30, 45, 60]) == ("<30", "30-44", "45-59", ">=60")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("1.0", "0.0", "0.0"), "a"),
        (("0", "0", "1"), "c"),
        (("0.0", "0.0", "0.0"), ""),
        (("1.0", "1.0", "0.0"), ""),
        (("0.5", "0.5", "0.0"), ""),
        (("1.0", "-1.0", "1.0"), ""),
        (("nan", "0.0", "1.0"), ""),
        (("1.0", "", "0.0"), ""),
        (("yes", "0.0", "0.0"), ""),
    ],
)
def test_one_hot(flags, expected):
    assert one_hot(dict(zip("abc", flags, strict=True))) == expected


def test_everything_wrong_is_told_together(tmp_path):
    truth, metadata = make()
    truth[0].update(NV="1.0")
    truth[1].update(MEL="0.0")
    metadata[2].update(sex="femal")
    metadata[4].update(age_approx="forty")
    truth[5], metadata[5] = dict(truth[6]), metadata[5]
    folder = write(tmp_path / "raw", truth, [*metadata, dict(metadata[7]), {**metadata[8], "image": "ISIC_extra"}])
    write_csv(folder / TRUTH, [*truth, {**truth[8], "image": "ISIC_lonely"}])
    (folder / "ISIC_2019_Training_Input" / "ISIC_0000009.jpg").unlink()
    (folder / "ISIC_2019_Training_Input" / "ISIC_0000010.jpg").write_bytes(b"no picture")
    with (folder / METADATA).open("a") as file:
        file.write("ISIC_short,1\n")
    with pytest.raises(DataError) as caught:
        prepare(config(folder), tmp_path / "prepared")
    text = str(caught.value)
    for expected in (
        "2 not one diagnosis (ISIC_2019_Training_GroundTruth.csv row 1 'ISIC_0000000', "
        "ISIC_2019_Training_GroundTruth.csv row 2 'ISIC_0000001')",
        "1 bad sex (ISIC_2019_Training_Metadata.csv row 3 got the sex 'femal'; allowed: female | male | empty)",
        "1 bad age (ISIC_2019_Training_Metadata.csv row 5 got the age 'forty'; allowed: years in [0, 120], or empty)",
        "2 duplicate id (ISIC_2019_Training_Metadata.csv row 161 'ISIC_0000007', "
        "ISIC_2019_Training_GroundTruth.csv row 7 'ISIC_0000006')",
        "1 image without metadata (ISIC_2019_Training_GroundTruth.csv row 161 'ISIC_lonely' is not in ISIC_2019_Train",
        "2 image without diagnosis (ISIC_2019_Training_Metadata.csv row 6 'ISIC_0000005', "
        "ISIC_2019_Training_Metadata.csv row 162 'ISIC_extra')",
        "1 missing file (ISIC_2019_Training_GroundTruth.csv row 10 no image file 'ISIC_0000009')",
        "1 unreadable image (ISIC_2019_Training_GroundTruth.csv row 11 UnidentifiedImageError",
        "1 wrong number of fields (ISIC_2019_Training_Metadata.csv row 163 the row has 2 fields, the header 5)",
    ):
        assert expected in text
    assert text.startswith("12 problems in the data: ") and "\n" not in text and not (tmp_path / "prepared").exists()
    problems = load(DataRequest(folder), Options()).problems
    first = next(problem for problem in problems if problem.kind == "not one diagnosis")
    assert first.message == (
        "got MEL=1.0 NV=1.0 BCC=0.0 AK=0.0 BKL=0.0 DF=0.0 VASC=0.0 SCC=0.0 UNK=0.0; "
        "allowed: 1.0 for one diagnosis and 0.0 for all others"
    )
    meta = prepare(config(folder, bad_rows="drop"), tmp_path / "prepared")
    assert meta["samples"] == 160 - 7 and sum(meta["dropped"].values()) == 12


def test_a_group_absent_from_a_split(tmp_path):
    truth, metadata = make()
    for index, row in enumerate(metadata):
        row["sex"] = "female" if index < 2 else "male"
    write(tmp_path / "raw", truth, metadata)
    with pytest.raises(DataError, match="group absent from a split .the group 'female' has no sample in "):
        prepare(config(tmp_path / "raw"), tmp_path / "prepared")


@pytest.mark.parametrize(
    ("table", "column"), [(TRUTH, "image"), (TRUTH, "SCC"), (METADATA, "lesion_id"), (METADATA, "sex")]
)
def test_a_missing_column(tmp_path, table, column):
    truth, metadata = make()
    write(tmp_path, truth, metadata)
    rows = {TRUTH: truth, METADATA: metadata}[table]
    write_csv(tmp_path / table, [{key: value for key, value in row.items() if key != column} for row in rows])
    raw = load(DataRequest(tmp_path), Options())
    assert [(problem.kind, problem.value, problem.table) for problem in raw.problems] == [
        ("missing column", column, table)
    ]
    assert raw.problems[0].fatal and not raw.samples


def test_names_with_and_without_the_mark_of_smaller_images(tmp_path):
    truth, metadata = make()
    folder = write(tmp_path, truth, metadata)
    images = folder / "ISIC_2019_Training_Input"
    (images / "ISIC_0000003_downsampled.jpg").rename(images / "ISIC_0000003.jpg")
    (images / "ISIC_0000000.jpg").rename(images / "ISIC_0000000_downsampled.jpg")
    samples = load(DataRequest(folder), Options()).samples
    assert [samples[index].image.name for index in (0, 3)] == ["ISIC_0000000_downsampled.jpg", "ISIC_0000003.jpg"]
    assert samples[3].id == "ISIC_0000003_downsampled"
    write_csv(folder / TRUTH, [*truth, {**truth[0], "image": "ISIC_0000000_downsampled"}])
    write_csv(folder / METADATA, [*metadata, {**metadata[0], "image": "ISIC_0000000_downsampled"}])
    (problem,) = load(DataRequest(folder), Options()).problems
    assert (problem.kind, problem.row) == ("image in two sizes", 161)
    assert problem.message == (
        "'ISIC_0000000_downsampled' is the image 'ISIC_0000000', which is listed above, in another size"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "sex"}, r"data.label: got 'sex'; allowed: diagnosis \| malignant"),
        ({"group": ("age",)}, r"data.group: got 'age'; allowed: sex \| age_group \| anatom_site_general"),
        ({"split_by": "patient"}, r"data.split_by: got 'patient'; allowed: lesion_id \| image"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "error"}, "unknown: got 'error'; allowed: keep | drop"),
        ({"age_boundaries": [60, 40]}, "age_boundaries: got [60, 40]; allowed: whole years above 0, ascending"),
        ({"age_boundaries": []}, "age_boundaries: got []; allowed: whole years above 0, ascending"),
        ({"malignant": ["MEL", "mel"]}, "malignant: got ['MEL', 'mel']; allowed: some, not all, of MEL | NV | BCC"),
        ({"malignant": list(DIAGNOSES)}, "malignant: got ['MEL', 'NV', "),
    ],
)
def test_mistakes_in_the_options(tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, options)
    assert f"params.yaml: datasets.isic2019.{message}" in str(caught.value)


# ---- fetching


@pytest.fixture
def publisher(server, tmp_path, monkeypatch):
    """A local server in the publisher's place, and the folder of what it serves."""
    folder = write(tmp_path / "published", *make())
    images = {f"ISIC_2019_Training_Input/{path.name}": path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))}
    body = zip_of(tmp_path / "input.zip", {**images, "ISIC_2019_Training_Input/LICENSE.txt": b"CC"}).read_bytes()
    for name, link in (("TRUTH", TRUTH), ("METADATA", METADATA)):
        monkeypatch.setattr(isic2019, name, Link(server.serve(link, (folder / link).read_bytes())))
    monkeypatch.setattr(isic2019, "INPUT", Link(server.serve("ISIC_2019_Training_Input.zip", body)))
    return server


def test_everything_absent_is_fetched_once(publisher, tmp_path):
    for _ in range(2):
        raw = load(DataRequest(tmp_path / "raw", download=True), Options())
        assert len(raw.samples) == 160 and not raw.problems and all(sample.image.is_file() for sample in raw.samples)
    assert {path: len(requests) for path, requests in publisher.requests.items()} == {
        f"/{TRUTH}": 1,
        f"/{METADATA}": 1,
        "/ISIC_2019_Training_Input.zip": 1,
    }
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [TRUTH, "ISIC_2019_Training_Input", METADATA]


def test_nothing_is_fetched_unless_asked(publisher, tmp_path):
    with pytest.raises(DataError, match=f"{TRUTH}: not found; expected {TRUTH}"):
        load(DataRequest(tmp_path / "raw"), Options())
    assert not publisher.requests and not (tmp_path / "raw").exists()


def test_only_what_is_absent_is_fetched(publisher, tmp_path):
    write(tmp_path / "raw", *make())
    (tmp_path / "raw" / METADATA).unlink()
    load(DataRequest(tmp_path / "raw", download=True), Options())
    assert list(publisher.requests) == [f"/{METADATA}"]


def test_without_a_network_the_message_says_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setattr(isic2019, "TRUTH", Link(server.url(TRUTH)))
    with pytest.raises(DataError) as caught:
        load(DataRequest(tmp_path / "raw", download=True), Options())
    assert str(caught.value) == (
        f"{server.url(TRUTH)}: not fetched (HTTP 404 Not Found); put it into {tmp_path / 'raw'} by hand; "
        f"expected {isic2019.LAYOUT}"
    )


def test_absent_images(tmp_path):
    write(tmp_path, *make(), images="elsewhere")
    with pytest.raises(
        DataError, match="data.path: no .jpg under .*ISIC_2019_Training_Input; expected ISIC_2019_Train"
    ):
        load(DataRequest(tmp_path), Options())


def test_the_links_are_the_publishers():
    for link in (isic2019.TRUTH, isic2019.METADATA, isic2019.INPUT):
        assert link.url.startswith("https://isic-challenge-data.s3.amazonaws.com/2019/ISIC_2019_Training_")
        assert not link.checked  # none are published


def test_the_published_layout(shared_data, tmp_path):
    """108 real rows: all eight diagnoses, two lesions with two images, some without sex, age and site."""
    folder = shared_data / "layouts" / "ISIC2019"
    raw = load(DataRequest(folder), Options())
    assert not raw.problems and {sample.label for sample in raw.samples} == set(DIAGNOSES)
    with (folder / METADATA).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(raw.samples) == len(rows) == 108
    assert sum(sample.groups == ("unknown",) for sample in raw.samples) == sum(not row["sex"] for row in rows) == 11
    meta = prepare(config(folder, {"unknown": "drop"}, label="malignant", group=["sex"]), tmp_path / "prepared")
    assert meta["groups"] == ["female", "male"] and meta["notes"] == {"left out: unknown group": 11}
    meta = prepare(config(folder, bad_rows="drop", group=["age_group"]), tmp_path / "prepared")
    assert meta["groups"] == ["<60", ">=60", "unknown"]
