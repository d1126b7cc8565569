import csv
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import channel_statistics, prepare
from fairquant.data.store import Store
from fairquant.errors import DataError


def table(folder):
    with (folder / "samples.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_three_files_agree_with_the_source(tmp_path, manifest, folder_config):
    rows = manifest(40, note=lambda i: f"é, {i}")
    meta = prepare(folder_config(rows, image_size=12), tmp_path / "prepared")
    out = tmp_path / "prepared"
    assert sorted(path.name for path in out.iterdir()) == ["images.npy", "meta.json", "samples.csv"]
    assert json.loads((out / "meta.json").read_text(encoding="utf-8")) == meta
    images, samples = np.load(out / "images.npy"), table(out)
    assert images.shape == (40, 12, 12, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    for image, written, row in zip(images, samples, rows, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(tmp_path / "raw" / row["image"])))
        assert written["id"] == row["image"] and written["note"] == row["note"]
        assert written["label_name"] == row["label"] == meta["classes"][int(written["label"])]
        assert written["group_name"] == row["group"] == meta["groups"][int(written["group"])]
        assert written["source_label"] == row["label"] and written["source_group"] == row["group"]
    counted = Counter((row["split"], row["group_name"]) for row in samples)
    assert {(s, g): n for s, groups in meta["splits"].items() for g, n in groups.items()} == counted
    counted = Counter((row["split"], row["label_name"]) for row in samples)
    assert {(s, c): n for s, classes in meta["class_counts"].items() for c, n in classes.items()} == counted


def test_normalisation_and_checksum(tmp_path, manifest, folder_config):
    meta = prepare(folder_config(manifest(40)), tmp_path / "prepared")
    images = np.load(tmp_path / "prepared" / "images.npy")
    train = images[[row["split"] == "train" for row in table(tmp_path / "prepared")]] / 255
    assert meta["mean"] == pytest.approx(train.mean(axis=(0, 1, 2)), abs=1e-6)
    assert meta["std"] == pytest.approx(train.std(axis=(0, 1, 2)), abs=1e-6)
    content = b"".join((tmp_path / "prepared" / name).read_bytes() for name in ("images.npy", "samples.csv"))
    assert meta["checksum"] == hashlib.sha256(content).hexdigest()


def test_the_same_parameters_write_the_same_bytes(tmp_path, manifest, folder_config):
    config = folder_config(manifest(40))
    for name in ("one", "two"):
        prepare(config, tmp_path / name)
    for name in ("images.npy", "samples.csv", "meta.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_statistics_of_a_constant_channel():
    assert channel_statistics([np.zeros((2, 2, 3), np.uint8)]) == ([0.0] * 3, [1.0] * 3)
    for value in range(256):
        for count in (7, 28, 49):
            assert channel_statistics([np.full((1, count, 3), value, np.uint8)])[1] == [1.0] * 3


@pytest.fixture
def bad(tmp_path, manifest):
    """A manifest with one row of each kind of problem: (rows, rows that are good)."""
    rows = manifest(60, split=lambda i: ("train", "train", "val", "test")[i // 4 % 4], person=str)
    rows[3]["image"] = "images/none.png"
    (tmp_path / "raw" / rows[5]["image"]).write_bytes(b"no image at all")
    rows[7]["label"] = "z"
    rows[9]["group"] = ""
    rows[11]["image"] = rows[10]["image"]
    rows[13]["split"] = "dev"
    rows[16]["person"] = rows[24]["person"]
    rows[17]["split"] = ""
    return rows, {"class_names": ["a", "b"]}


KINDS = {
    "missing file": [4],
    "unreadable image": [6],
    "unknown label": [8],
    "empty group value": [10],
    "duplicate id": [12],
    "bad split value": [14],
    "cluster on two sides": [17, 25],
    "missing split value": [18],
}


def test_all_problems_are_told_at_once(tmp_path, bad, folder_config):
    rows, options = bad
    with pytest.raises(DataError) as caught:
        prepare(folder_config(rows, options, split_by="person"), tmp_path / "data" / "prepared")
    line = str(caught.value)
    assert line.startswith("9 problems in the data: ") and "\n" not in line
    for kind, numbers in KINDS.items():
        assert f"{len(numbers)} {kind} (row {numbers[0]}" in line
    assert line.endswith(f"full list: {tmp_path}/data/problems.csv; mend them, or set data.bad_rows: drop")
    with (tmp_path / "data" / "problems.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    by_kind = {kind: [int(row["row"]) for row in listed if row["kind"] == kind] for kind in KINDS}
    assert by_kind == KINDS
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["problems.csv"]


def test_bad_rows_are_dropped_on_request_and_counted(tmp_path, bad, folder_config, caplog):
    rows, options = bad
    config = folder_config(rows, options, split_by="person", bad_rows="drop")
    meta = prepare(config, tmp_path / "data" / "prepared")
    assert meta["dropped"] == {kind: len(numbers) for kind, numbers in sorted(KINDS.items())}
    gone = {number for numbers in KINDS.values() for number in numbers}
    kept = [row for number, row in enumerate(rows, 1) if number not in gone]
    written = table(tmp_path / "data" / "prepared")
    assert [row["id"] for row in written] == [row["image"] for row in kept]
    assert [row["split"] for row in written] == [row["split"] for row in kept]
    images = np.load(tmp_path / "data" / "prepared" / "images.npy")
    for image, row in zip(images, kept, strict=True):
        with Image.open(tmp_path / "raw" / row["image"]) as source:
            assert np.array_equal(image, np.asarray(source.resize((8, 8), Image.Resampling.LANCZOS)))
    assert "dropped 1 rows: duplicate id" in caplog.text
    assert (tmp_path / "data" / "problems.csv").exists()
    prepare(folder_config(kept, options), tmp_path / "data" / "prepared")
    assert not (tmp_path / "data" / "problems.csv").exists()


def test_a_failed_run_keeps_the_previous_result(tmp_path, manifest, folder_config):
    rows = manifest(40)
    prepare(folder_config(rows), tmp_path / "prepared")
    before = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    (tmp_path / "raw" / rows[0]["image"]).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"^1 problem in the data: 1 unreadable image \(row 1 UnidentifiedImageError"):
        prepare(folder_config(rows), tmp_path / "prepared")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    assert not list(tmp_path.glob(".*partial"))


def test_what_a_killed_run_left_is_removed(tmp_path, manifest, folder_config):
    (tmp_path / ".prepared.partial").mkdir()
    (tmp_path / ".prepared.partial" / "images.npy").write_bytes(b"half")
    prepare(folder_config(manifest(40)), tmp_path / "prepared")
    assert not list(tmp_path.glob(".*partial"))


def test_a_missing_column_cannot_be_dropped(tmp_path, manifest, folder_config):
    config = folder_config(manifest(8), label="sex", group=["age", "race"], bad_rows="drop")
    with pytest.raises(DataError) as caught:
        prepare(config, tmp_path / "prepared")
    assert re.search(
        r"3 missing column \(labels.csv has no column 'sex'; its columns: image, label, group,", str(caught)
    )
    assert str(caught.value).endswith("; mend them")


def test_a_group_absent_from_a_split(tmp_path, manifest, folder_config):
    rows = manifest(40)
    rows[0]["group"] = "rare"
    with pytest.raises(DataError, match=r"the group 'rare' has no sample in val and test \(train 1, val 0, test 0\)"):
        prepare(folder_config(rows), tmp_path / "prepared")
    meta = prepare(folder_config(rows, bad_rows="drop"), tmp_path / "prepared")
    assert meta["groups"] == ["x", "y"] and meta["dropped"] == {"group absent from a split": 1}
    assert meta["samples"] == 39


def test_a_group_that_unreadable_images_empty_is_an_error_even_when_dropping(tmp_path, manifest, folder_config):
    rows = manifest(40, split=lambda i: ("train", "val", "test")[i % 3])
    for row in rows:
        if row["split"] == "val" and row["group"] == "x":
            (tmp_path / "raw" / row["image"]).write_bytes(b"broken")
    with pytest.raises(DataError, match="the group 'x' has no sample in val"):
        prepare(folder_config(rows, bad_rows="drop"), tmp_path / "prepared")


@pytest.mark.parametrize("faults", ["unreadable image", "missing file"])
def test_a_published_test_that_is_lost_is_not_replaced_by_val(faults, tmp_path, manifest, folder_config):
    rows = manifest(48, split=lambda i: ("train", "train", "val", "test")[i // 4 % 4])
    for row in rows:
        if row["split"] == "test":
            path = tmp_path / "raw" / row["image"]
            path.write_bytes(b"") if faults == "unreadable image" else path.unlink()
    with pytest.raises(DataError, match=r"1 empty split \(no sample is left in test\)"):
        prepare(folder_config(rows, bad_rows="drop"), tmp_path / "prepared")


def test_unreadable_images_do_not_undercut_the_minimum_size(tmp_path, manifest, folder_config):
    rows = manifest(60)
    broken = [row for row in rows if row["group"] == "x"][:12]
    for row in broken:
        (tmp_path / "raw" / row["image"]).write_bytes(b"broken")
    said = (
        "1 small group (the group 'x' has 18 samples that can be read; allowed: at least data.min_group_size 19: mend "
        "its images, or lower it)"
    )
    with pytest.raises(DataError) as error:
        prepare(folder_config(rows, bad_rows="drop", min_group_size=19), tmp_path / "prepared")
    assert said in str(error.value)
    meta = prepare(folder_config(rows, bad_rows="drop", min_group_size=18), tmp_path / "prepared")
    assert meta["dropped"] == {"unreadable image": 12} and meta["samples"] == 48
    meta = prepare(
        folder_config(rows, bad_rows="drop", min_group_size=18, train_subset=24, test_subset=4), tmp_path / "prepared"
    )
    assert meta["samples"] < 40  # of a subset a group may have fewer: the rule is for the data set


def test_unreadable_images_that_leave_one_class_are_an_error(tmp_path, manifest, folder_config):
    rows = manifest(40)
    for row in rows:
        if row["label"] == "b":
            (tmp_path / "raw" / row["image"]).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 one class \(every sample has the label 'a'"):
        prepare(folder_config(rows, bad_rows="drop"), tmp_path / "prepared")


def test_a_published_split_without_a_test(tmp_path, manifest, folder_config):
    with pytest.raises(DataError, match=r"1 empty split \(no sample is left in test\)"):
        prepare(folder_config(manifest(40, split=lambda i: "train")), tmp_path / "prepared")


def test_all_rows_bad(tmp_path, manifest, folder_config):
    rows = manifest(4)
    for row in rows:
        row["label"] = ""
    with pytest.raises(DataError, match="4 empty label .* 3 empty split"):
        prepare(folder_config(rows, bad_rows="drop"), tmp_path / "prepared")


def small(manifest, folder_config, **data):
    rows = manifest(60)
    for index, name in ((0, "p"), (1, "q"), (2, "q"), (3, "p"), (4, "q"), (5, "p"), (6, "q")):
        rows[index]["group"] = name
    return folder_config(rows, min_group_size=6, **data)


def test_small_groups_are_an_error_by_default(tmp_path, manifest, folder_config):
    with pytest.raises(DataError, match=r"2 small group \(the group 'p' has 3 samples, the group 'q' has 4 samples\)"):
        prepare(small(manifest, folder_config), tmp_path / "prepared")


def test_small_groups_are_merged(tmp_path, manifest, folder_config):
    meta = prepare(small(manifest, folder_config, small_groups="merge"), tmp_path / "prepared")
    assert meta["groups"] == ["x", "y", "other"] and meta["merged_groups"] == ["p", "q"]
    assert sum(part["other"] for part in meta["splits"].values()) == 7
    assert {row["source_group"] for row in table(tmp_path / "prepared") if row["group_name"] == "other"} == {"p", "q"}


def test_small_groups_are_dropped_and_counted(tmp_path, manifest, folder_config):
    meta = prepare(small(manifest, folder_config, small_groups="drop"), tmp_path / "prepared")
    assert meta["groups"] == ["x", "y"] and meta["dropped"] == {"small group": 7} and meta["samples"] == 53


def test_merged_groups_can_still_be_too_small(tmp_path, manifest, folder_config):
    config = small(manifest, folder_config, small_groups="merge").model_copy()
    config = config.model_copy(update={"data": config.data.model_copy(update={"min_group_size": 20})})
    with pytest.raises(DataError, match="the group 'other' has 7 samples; allowed: .*data.small_groups: drop"):
        prepare(config, tmp_path / "prepared")


def test_intersections(tmp_path, manifest, folder_config):
    rows = manifest(80, age=lambda i: ("9", "10")[i // 4 % 2])
    meta = prepare(folder_config(rows, group=["group", "age"]), tmp_path / "prepared")
    assert meta["groups"] == ["x × 9", "x × 10", "y × 9", "y × 10"] and meta["group_columns"] == ["group", "age"]


def test_split_by_keeps_clusters_whole(tmp_path, manifest, folder_config):
    rows = manifest(120, person=lambda i: str(i // 12))
    for index, row in enumerate(rows):
        row["group"] = "x" if index < 60 else "y"
    prepare(folder_config(rows, split_by="person"), tmp_path / "prepared")
    sides = {}
    for row in table(tmp_path / "prepared"):
        sides.setdefault(row["person"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())


def test_subsets_by_share_and_by_count(tmp_path, manifest, folder_config):
    config = folder_config(manifest(100), train_subset=0.5, test_subset=8)
    meta = prepare(config, tmp_path / "prepared")
    assert {split: sum(parts.values()) for split, parts in meta["splits"].items()} == {
        "train": 35,
        "val": 10,
        "test": 8,
    }
    assert len(np.load(tmp_path / "prepared" / "images.npy")) == 53


def test_a_subset_larger_than_the_split(tmp_path, manifest, folder_config):
    with pytest.raises(DataError, match="^data.train_subset: got 500; allowed: at most 28, the size of train$"):
        prepare(folder_config(manifest(40), train_subset=500), tmp_path / "prepared")


def test_debug_keeps_every_group_and_class_of_each_split(tmp_path):
    data = {"name": "synthderm", "image_size": 8}
    config = parse_config({"data": data, "debug": True, "workers": 1})
    meta = prepare(config, tmp_path / "prepared")
    assert {split: sum(parts.values()) for split, parts in meta["splits"].items()} == {
        "train": 256,
        "val": 64,
        "test": 96,
    }
    cells = Counter((row["split"], row["group"], row["label"]) for row in table(tmp_path / "prepared"))
    assert len(cells) == 3 * 6 * 2


def test_a_class_without_training_samples_is_told(tmp_path, manifest, folder_config, caplog):
    prepare(folder_config(manifest(40), {"class_names": ["a", "b", "c"]}), tmp_path / "prepared")
    assert "1 of 3 classes have no training sample: c" in caplog.text


def test_what_prepare_wrote_opens_as_a_store(tmp_path, manifest, folder_config):
    meta = prepare(folder_config(manifest(40)), tmp_path / "prepared")
    store = Store.open(tmp_path / "prepared")
    assert store.meta == meta and len(store) == 40 and store.image_size == 8
    assert store.classes == ("a", "b") and store.group_names == ("x", "y")
