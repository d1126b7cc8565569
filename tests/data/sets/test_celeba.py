import csv
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.raw import DataRequest
from fairquant.data.sets.celeba import Options, load
from fairquant.errors import DataError

NAMES = [
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
]  # fmt: skip
HAIR, MALE = NAMES.index("Blond_Hair"), NAMES.index("Male")


def signs(index):
    """Attributes of image ``index``: the first never, hair and sex in turn, the rest at random."""
    values = np.random.default_rng(index).integers(0, 2, len(NAMES))
    values[0], values[HAIR], values[MALE] = 0, index % 2, index // 2 % 2
    return values


def jpeg(index):
    file = BytesIO()
    Image.fromarray(np.full((22, 18, 3), index, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(folder, n=60, *, zipped=False, part=lambda index: min(index // 20, 2), person=lambda index: index // 2):
    """Write the published lists and images; the layout of the columns is the publisher's."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index + 1:06d}.jpg" for index in range(n)]
    rows = [
        f"{name} " + " ".join(f"{2 * sign - 1:2d}" for sign in signs(index)) + "\n" for index, name in enumerate(names)
    ]
    (folder / "list_attr_celeba.txt").write_text(f"{n}\n{' '.join(NAMES)} \n{''.join(rows)}")
    parts = "".join(f"{name} {part(index)}\n" for index, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(parts)
    people = "".join(f"{name} {person(index)}\n" for index, name in enumerate(names))
    (folder / "identity_CelebA.txt").write_text(people)
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as bundle:
            for index, name in enumerate(names):
                bundle.writestr(f"img_align_celeba/{name}", jpeg(index))
        return
    (folder / "img_align_celeba").mkdir()
    for index, name in enumerate(names):
        (folder / "img_align_celeba" / name).write_bytes(jpeg(index))


def config(folder, options=None, **data):
    section = {"name": "celeba", "path": str(folder), "image_size": 8, **data}
    return parse_config({"data": section, "datasets": {"celeba": options or {}}, "workers": 1})


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("place", ["celeba", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_published_layout(tmp_path, place, zipped):
    write(tmp_path / place, zipped=zipped)
    meta = prepare(config(tmp_path), tmp_path / "prepared")
    assert meta["classes"] == ["not Blond_Hair", "Blond_Hair"] and meta["groups"] == ["not Male", "Male"]
    assert meta["split_source"] == "publisher" and meta["notes"] == {"identities on two sides": 0}
    assert meta["splits"] == {part: {"not Male": 10, "Male": 10} for part in ("train", "val", "test")}
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = np.load(tmp_path / "prepared" / "images.npy")
    for index, row in enumerate(rows):
        assert int(row["label"]) == index % 2 and int(row["group"]) == index // 2 % 2
        for name, sign in zip(NAMES, signs(index), strict=True):
            assert row[name] == (name if sign else f"not {name}")
        assert abs(images[index].astype(int) - index).max() <= 2


def test_any_attribute_and_intersections(tmp_path):
    write(tmp_path)
    raw = load(DataRequest(tmp_path, label="Attractive", group=("Male", "Young")), Options())
    assert raw.classes == ("not Attractive", "Attractive")
    for index, sample in enumerate(raw.samples):
        values = signs(index)
        assert (sample.label == "Attractive") == bool(values[NAMES.index("Attractive")])
        assert sample.groups == ("Male" if values[MALE] else "not Male", "Young" if values[-1] else "not Young")
    meta = prepare(config(tmp_path, label="Smiling", group=["Male", "Bald"]), tmp_path / "prepared")
    assert meta["groups"][0] == "not Male × not Bald"


def test_people_on_two_sides_are_counted_and_told_where_asked(tmp_path, caplog):
    write(tmp_path, person=lambda index: 7 if index in (0, 59) else 100 + index)
    assert load(DataRequest(tmp_path), Options()).notes == {"identities on two sides": 1}
    assert "identities with images in several parts: 1" in caplog.text
    with pytest.raises(DataError, match="2 cluster on two sides .list_attr_celeba.txt row 1 '7', .* row 60 '7'"):
        prepare(config(tmp_path, split_by="identity"), tmp_path / "prepared")


def test_a_drawn_split_keeps_people_together(tmp_path):
    write(tmp_path, person=lambda index: index // 4)
    meta = prepare(config(tmp_path, {"use_partition": False}, split_by="identity"), tmp_path / "prepared")
    assert meta["split_source"] == "drawn"
    with (tmp_path / "prepared" / "samples.csv").open(newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert {len(set(splits[start : start + 4])) for start in range(0, 60, 4)} == {1}


def test_everything_wrong_is_told_together(tmp_path):
    write(tmp_path)
    images, table = tmp_path / "img_align_celeba", tmp_path / "list_attr_celeba.txt"
    (images / "000001.jpg").write_bytes(b"no image")
    (images / "000002.jpg").unlink()
    edit(table, "\n000003.jpg -1", "\n000003.jpg  0")
    edit(table, "\n000004.jpg ", "\n000005.jpg ")
    edit(table, "\n000006.jpg -1", "\n000006.jpg")
    edit(tmp_path / "list_eval_partition.txt", "000007.jpg 0\n", "")
    edit(tmp_path / "list_eval_partition.txt", "000008.jpg 0", "000008.jpg 3")
    edit(tmp_path / "list_eval_partition.txt", "000009.jpg 0", "000009.jpg")
    edit(tmp_path / "list_eval_partition.txt", "000010.jpg 0", "000011.jpg 0")
    with pytest.raises(DataError) as caught:
        prepare(config(tmp_path), tmp_path / "prepared")
    text = str(caught.value)
    for part in (
        "1 unreadable image (list_attr_celeba.txt row 1 UnidentifiedImageError",
        "1 missing file (list_attr_celeba.txt row 2 no image file '000002.jpg')",
        "1 unknown label (list_attr_celeba.txt row 3 got 5_o_Clock_Shadow '0'; allowed: 1 | -1)",
        "2 duplicate id (list_attr_celeba.txt row 5 '000005.jpg', list_eval_partition.txt row 10 '000011.jpg')",
        "2 wrong number of fields (list_attr_celeba.txt row 6 '000006.jpg', list_eval_partition.txt row 8 '000009.",
        "3 missing split value (list_attr_celeba.txt row 7 '', list_attr_celeba.txt row 9 '', "
        "list_attr_celeba.txt row 10 '')",
        "1 bad split value (list_attr_celeba.txt row 8 got the split '3'; allowed: train | val | test)",
    ):
        assert part in text, (part, text)
    assert not (tmp_path / "prepared").exists()


def test_bad_rows_can_be_dropped_and_are_counted(tmp_path):
    write(tmp_path)
    (tmp_path / "img_align_celeba" / "000002.jpg").unlink()
    edit(tmp_path / "list_attr_celeba.txt", "\n000007.jpg", "\nno.jpg")
    meta = prepare(config(tmp_path, bad_rows="drop"), tmp_path / "prepared")
    assert meta["samples"] == 58
    assert meta["dropped"] == {"missing file": 1, "missing split value": 1, "row without attributes": 1}


def test_a_group_absent_from_a_split(tmp_path):
    write(tmp_path, part=lambda index: 0 if index // 2 % 2 else min(index // 20, 2))
    with pytest.raises(DataError, match="group absent from a split .the group 'Male' has no sample in val and test"):
        prepare(config(tmp_path), tmp_path / "prepared")


def test_the_announced_count_must_be_right(tmp_path):
    write(tmp_path)
    edit(tmp_path / "list_attr_celeba.txt", "60\n", "202599\n")
    with pytest.raises(DataError, match="1 wrong count .list_attr_celeba.txt announces 202599 images and has 60 rows"):
        prepare(config(tmp_path, bad_rows="drop"), tmp_path / "prepared")
    (tmp_path / "list_attr_celeba.txt").write_text("000001.jpg 1\n")
    with pytest.raises(
        DataError, match="got the first line '000001.jpg 1'; allowed: the number of images, then a line"
    ):
        load(DataRequest(tmp_path), Options())


def test_absent_files_say_where_to_get_them(tmp_path):
    with pytest.raises(DataError) as caught:
        load(DataRequest(tmp_path, download=True), Options())
    assert str(caught.value) == (
        f"data.path: no list_attr_celeba.txt in {tmp_path} or {tmp_path / 'celeba'}; expected list_attr_celeba.txt, "
        "list_eval_partition.txt, identity_CelebA.txt and img_align_celeba (folder or img_align_celeba.zip) in "
        "data.path or data.path/celeba; the publisher offers no direct link (Google Drive), take the files from "
        "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    )
    write(tmp_path, zipped=True)
    (tmp_path / "identity_CelebA.txt").unlink()
    assert load(DataRequest(tmp_path), Options()).notes == {}
    with pytest.raises(DataError, match="identity_CelebA.txt: not found; expected list_attr_celeba.txt"):
        load(DataRequest(tmp_path, split_by="identity"), Options())
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match="list_eval_partition.txt: not found; expected list_attr_celeba.txt"):
        load(DataRequest(tmp_path), Options())
    assert load(DataRequest(tmp_path), Options(use_partition=False)).samples[0].split is None


def test_a_zip_that_is_none_or_lacks_an_image(tmp_path):
    write(tmp_path, zipped=True)
    archive = tmp_path / "img_align_celeba.zip"
    with zipfile.ZipFile(archive) as bundle:
        kept = {name: bundle.read(name) for name in bundle.namelist() if "000003" not in name}
    other = tmp_path / "other"
    write(other, zipped=True)
    with zipfile.ZipFile(other / "img_align_celeba.zip", "w") as bundle:
        for name, data in kept.items():
            bundle.writestr(name, b"damaged" if "000001" in name else data)
    with pytest.raises(DataError) as caught:
        prepare(config(other), tmp_path / "prepared")
    assert "1 missing file (list_attr_celeba.txt row 3 no image file '000003.jpg')" in str(caught.value)
    assert "1 unreadable image (list_attr_celeba.txt row 1 " in str(caught.value)
    third = tmp_path / "third"
    write(third, zipped=True)
    (third / "img_align_celeba.zip").write_bytes(archive.read_bytes()[:500])
    with pytest.raises(
        DataError, match="img_align_celeba.zip: not a readable zip file .* expected list_attr_celeba.txt"
    ):
        load(DataRequest(third), Options())
    (third / "img_align_celeba.zip").unlink()
    with pytest.raises(
        DataError, match="neither .*img_align_celeba nor img_align_celeba.zip found; expected list_attr"
    ):
        load(DataRequest(third), Options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "Blonde"}, r"data.label: got 'Blonde'; allowed: 5_o_Clock_Shadow \| Arched_Eyebrows"),
        ({"group": ("Sex",)}, r"data.group: got 'Sex'; allowed: 5_o_Clock_Shadow \| Arched_Eyebrows"),
        ({"group": ("Male", "Male")}, "data.group: got .'Male', 'Male'.; allowed: one or several different columns"),
        ({"split_by": "person"}, "data.split_by: got 'person'; allowed: identity"),
    ],
)
def test_columns_it_does_not_have(tmp_path, changes, message):
    write(tmp_path, n=4)
    with pytest.raises(DataError, match=message):
        load(DataRequest(tmp_path, **changes), Options())
