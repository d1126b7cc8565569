"""Faults that folders of images come with: every one is told with its row, or handled by a rule, never passed over."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairquant.data.checks import LISTED, alike, check_names, spelling
from fairquant.data.prepare import prepare
from fairquant.data.problems import summarise
from fairquant.data.raw import Problem, RawDataset, RawSample
from fairquant.data.store import Store
from fairquant.errors import DataError

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "train", "val", "test")


def text_of(rows) -> str:
    return "".join(",".join(row.values()) + "\n" for row in rows)


@pytest.fixture
def prepared(tmp_path, folder_config):
    """Return a function that prepares rows, or a manifest of given bytes, and returns (meta.json, the images)."""

    def run(rows, content: bytes | None = None, options=None, **data):
        config = folder_config(rows, options, **data)
        if content is not None:
            (tmp_path / "raw" / "labels.csv").write_bytes(content)
        meta = prepare(config, tmp_path / "data" / "prepared")
        return meta, np.load(tmp_path / "data" / "prepared" / "images.npy")

    return run


@pytest.fixture
def refused(tmp_path, prepared):
    """Return a function that prepares what cannot be, and returns the error's one line; nothing else is written."""

    def run(*arguments, **named) -> str:
        with pytest.raises(DataError) as caught:
            prepared(*arguments, **named)
        written = {path.name for path in (tmp_path / "data").iterdir()} if (tmp_path / "data").is_dir() else set()
        assert written <= {"problems.csv"}
        line = str(caught.value)
        assert line.isprintable()
        return line

    return run


class TestImages:
    def test_sizes_and_names_that_are_unusual(self, tmp_path, manifest, prepared):
        rows = manifest(48)
        odd = {
            "one pixel.png": (1, 1), "a line.png": (40, 1), "a column.png": (1, 40), "hud, 皮膚 ü.png": (5, 9),
            'a "quoted" name.png': (8, 8), "two\nlines.png": (8, 8), f"{'n' * 250}.png": (8, 8), "%41 #1?.png": (8, 8),
        }  # fmt: skip
        for row, (name, size), colour in zip(rows, odd.items(), range(10, 90, 10), strict=False):
            Image.new("RGB", size, (colour, 2, 3)).save(tmp_path / "raw" / name)
            row["image"] = name
        os.symlink(tmp_path / "raw" / rows[20]["image"], tmp_path / "raw" / "link.png")
        rows[21]["image"] = "link.png"
        meta, images = prepared(rows)
        assert meta["samples"] == 48 and meta["dropped"] == {}
        assert [tuple(images[place, 4, 4]) for place in range(8)] == [(c, 2, 3) for c in range(10, 90, 10)]
        assert np.array_equal(images[20], images[21])

    def test_files_that_are_no_whole_image(self, tmp_path, manifest, refused, prepared):
        rows, raw = manifest(60), tmp_path / "raw"
        whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        whole.save(raw / "cut.jpg")
        (raw / "cut.jpg").write_bytes((raw / "cut.jpg").read_bytes()[:900])
        (raw / "empty.jpg").touch()
        (raw / "text.jpg").write_text("<html>404 Not Found</html>")
        Image.fromarray(np.array([[-1024, 3071]], np.int32)).save(raw / "scan.tif")
        Image.new("1", (16384, 8200)).save(raw / "bomb.png")  # 17 kilobytes that would become 400 megabytes
        assert (raw / "bomb.png").stat().st_size < 50_000
        (raw / "folder.jpg").mkdir()
        os.symlink(raw / "nowhere.png", raw / "broken link.png")
        os.symlink("itself.png", raw / "itself.png")
        unreadable = ("cut.jpg", "empty.jpg", "text.jpg", "scan.tif", "bomb.png")
        missing = ("folder.jpg", "broken link.png", "itself.png", "", "n" * 300 + ".png")
        for row, name in zip(rows[1:], (*unreadable, *missing), strict=False):
            row["image"] = name
        line = refused(rows)
        assert line.startswith("10 problems in the data: 5 missing file (row 7 'folder.jpg', row 8 'broken link.png', ")
        assert "5 unreadable image (row 2 'cut.jpg', row 3 'empty.jpg', row 4 'text.jpg', …)" in line
        with (tmp_path / "data" / "problems.csv").open(encoding="utf-8", newline="") as file:
            said = {row["value"]: row["message"] for row in csv.DictReader(file)}
        assert set(said) == {*unreadable, *missing}
        assert "truncated" in said["cut.jpg"] and "cannot identify image file" in said["empty.jpg"]
        assert "cannot identify image file" in said["text.jpg"]
        assert said["scan.tif"] == "ValueError: got grey values from -1024 to 3071; allowed: 0 to 65535, or 0.0 to 1.0"
        assert said["bomb.png"] == "ValueError: got 16384 × 8200 pixels; allowed: 134217728 in all"
        assert said["n" * 300 + ".png"] == "the file cannot be looked up (File name too long)"
        meta, images = prepared(rows, bad_rows="drop")
        assert meta["dropped"] == {"missing file": 5, "unreadable image": 5}
        assert meta["samples"] == len(images) == 50

    def test_a_bomb_takes_no_memory(self, tmp_path, manifest, refused):
        rows = manifest(8)
        Image.new("1", (16384, 8200)).save(tmp_path / "raw" / "bomb.png")
        rows[0]["image"] = "bomb.png"
        tracemalloc.start()
        refused(rows)
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()

    def test_damaged_metadata_is_no_reason_to_refuse_pixels(self, tmp_path, manifest, prepared):
        rows, exif = manifest(40), Image.Exif()
        exif[0x0112] = 6
        pixels = np.full((8, 8, 3), 60, np.uint8)
        damaged = exif.tobytes()[:12]
        Image.fromarray(pixels).save(tmp_path / "raw" / "a.jpg", exif=damaged, quality=100)
        rows[0]["image"] = "a.jpg"
        _, images = prepared(rows)
        assert np.array_equal(images[0], pixels)


class TestTables:
    def test_a_byte_order_mark_windows_line_ends_blank_lines_and_more_columns(self, manifest, prepared):
        rows = manifest(40)
        body = "\r\n\r\n".join(f'{r["image"]},{r["label"]},{r["group"]},"two\nlines"' for r in rows)
        meta, _ = prepared(rows, f"\ufeffimage,label,group,note\r\n{body}\r\n\r\n".encode())
        assert meta["samples"] == 40 and meta["classes"] == ["a", "b"] and meta["groups"] == ["x", "y"]

    @pytest.mark.parametrize(("sign", "said"), [(";", "';'"), ("\t", "'\\t'"), ("|", "'|'")])
    def test_other_signs_between_fields(self, manifest, refused, sign, said):
        rows = manifest(8)
        content = f"image,label,group\n{text_of(rows)}".replace(",", sign).encode()
        assert refused(rows, content).endswith(f"labels.csv: got fields separated by {said}; allowed: by ','")

    def test_a_header_with_spaces_shows_them(self, manifest, refused):
        rows = manifest(8)
        line = refused(rows, f"image, label, group\n{text_of(rows)}".encode())
        assert "2 missing column (labels.csv has no column 'label'; its columns: image, ' label', ' group'" in line

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "got an empty file; allowed: csv with a header row"),
            (b"\n\n", "got an empty file; allowed: csv with a header row"),
            (b"image,label,group\r\n", "got a header and no rows; allowed: at least one row"),
            (b"image,label,label,group\n", "got the column 'label' more than once; allowed: each column once"),
            (b"image,label,gr\0oup\n", "not UTF-8 text; save it as csv in UTF-8"),
            ("image,label,group\n".encode("utf-16-le"), "not UTF-8 text; save it as csv in UTF-8"),
            (b'image,label,group\n"a,b', "not valid csv at line 2 (unexpected end of data)"),
            (
                b"image,label,group\n" + b"x" * 200_000,
                "not valid csv at line 2 (field larger than field limit (131072))",
            ),
        ],
    )
    def test_a_file_that_is_no_table(self, manifest, refused, content, said):
        assert refused(manifest(4), content).endswith(f"labels.csv: {said}")

    def test_rows_that_are_damaged_are_named_together(self, tmp_path, manifest, refused, prepared):
        rows = manifest(40)
        lines = text_of(rows).splitlines()
        lines[3] += ",more"
        lines[5] = "images/5.png"
        lines[7] = ",,"
        lines[9] = lines[9].replace("png", "p\0g")
        content = ("image,label,group\n" + "\n".join(lines) + "\n").encode()
        content = content.replace(b"images/11.png,b", b"images/11.png,\xe9")
        line = refused(rows, content)
        assert line.startswith(
            "5 problems in the data: 2 wrong number of fields (labels.csv row 4 'images/3.png,b,y,more', labels.csv "
            "row 6 'images/5.png'); 1 empty row (labels.csv row 8 every field of the row is empty); 1 NUL byte "
            "(labels.csv row 10 the row holds a NUL byte, the file is damaged); 1 not UTF-8 (labels.csv row 12 the row "
        )
        meta, _ = prepared(rows, content, bad_rows="drop")
        assert meta["dropped"] == {"NUL byte": 1, "empty row": 1, "not UTF-8": 1, "wrong number of fields": 2}
        assert meta["samples"] == 35

    def test_labels_and_splits_with_spaces(self, manifest, refused):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        rows[0]["split"], rows[1]["label"], rows[2]["group"] = " train", "  ", "\t"
        line = refused(rows)
        assert "1 bad split value (row 1 got the split ' train'; allowed: train | val | test)" in line
        assert "1 empty label (row 2 the label is empty)" in line
        assert "1 empty group value (row 3 the group column 'group' is empty)" in line


class TestNames:
    @pytest.mark.parametrize(
        ("column", "first", "second", "where"),
        [
            ("label", "1", "1.0", "label"),
            ("label", "a ", "a", "label"),
            ("group", "caf\u00e9", "cafe\u0301", "group column 'group'"),
            ("group", "60", "060", "group column 'group'"),
        ],
    )
    def test_one_value_in_two_spellings(self, manifest, refused, column, first, second, where):
        rows = manifest(48)
        for place, row in enumerate(rows):
            row[column] = (first, second, "other")[place % 3]
        low, high = sorted((first, second))
        said = f"1 value spelled in two ways (the {where} has {low!r} and {high!r}; allowed: one spelling of a value)"
        assert said in refused(rows)
        assert said in refused(rows, bad_rows="drop")

    @pytest.mark.parametrize(("first", "second"), [("3", "3.0"), ("p3", "p3 "), ("caf\u00e9", "cafe\u0301")])
    def test_a_patient_in_two_spellings(self, manifest, refused, first, second):
        rows = manifest(48, patient=lambda i: (first, second)[i % 2] if i < 8 else f"q{i // 4}")
        low, high = sorted((first, second))
        said = f"(the split_by column has {low!r} and {high!r}; allowed: one spelling of a value)"
        assert said in refused(rows, split_by="patient")
        assert said in refused(rows, split_by="patient", bad_rows="drop")

    def test_ids_that_are_two_numbers_in_other_forms_are_two(self, manifest, prepared):
        rows = manifest(48, patient=lambda i: ("1e3", "1000", "07", "7")[i % 4] + "_" * (i // 8))
        meta, _ = prepared(rows, split_by="patient")
        assert meta["samples"] == 48

    def test_class_names_may_unite_spellings(self, manifest, prepared):
        rows = manifest(40)
        for place, row in enumerate(rows):
            row["label"] = ("1", "1.0", "0")[place % 3]
        meta, _ = prepared(rows, options={"class_names": {"0": "no", "1": "yes", "1.0": "yes"}})
        assert meta["classes"] == ["no", "yes"]

    @pytest.mark.parametrize("sign", ["\r", "\r\n", "\n", "\u2028", "\x0b", "\x85"])
    def test_signs_that_end_lines_come_back_from_the_table(self, tmp_path, manifest, prepared, sign):
        rows = manifest(40, note=lambda i: f"one{sign}two" if i % 3 else "plain", patient=lambda i: f"p{sign}{i // 2}")
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([rows[0], *(row.values() for row in rows)])
        prepared(rows, content=text.getvalue().encode(), split_by="patient")
        store = Store.open(tmp_path / "data" / "prepared")
        assert len(store.ids) == 40
        assert list(store.columns["note"]) == [row["note"] for row in rows]

    def test_capitals_are_told(self, manifest, prepared, caplog):
        rows = manifest(40)
        for row in rows[:20]:
            row["group"] = "X"
        prepared(rows)
        assert "names that differ in capitals only: X, x" in caplog.text

    def test_numbers_that_would_fill_the_memory_are_left_as_they_are(self):
        assert spelling("1e999999999") == spelling("1e999999999 ") != spelling("1e99")
        assert spelling("9" * 40) == "9" * 40 != spelling("9" * 40 + ".0")
        assert alike(["1", "1.00", "01", "+1", "2", "٣"], spelling) == [("+1", "01", "1", "1.00")]

    def test_labels_that_are_no_class_are_not_compared(self):
        samples = [RawSample(str(row), row, label, ("x",), lambda: None) for row, label in enumerate(("a", "a "), 1)]
        assert check_names(RawDataset("test", ("a",), ("g",), samples)) == []


class TestCounts:
    def test_one_class(self, manifest, refused):
        rows = manifest(40)
        for row in rows:
            row["label"] = "a"
        assert "1 one class (every sample has the label 'a'; allowed: two or more labels)" in refused(rows)

    def test_one_group_is_allowed(self, manifest, prepared):
        rows = manifest(40)
        for row in rows:
            row["group"] = "all"
        assert prepared(rows)[0]["groups"] == ["all"]

    def test_a_group_of_one(self, manifest, refused, prepared):
        rows = manifest(40)
        rows[0]["group"] = "rare"
        said = "the group 'rare' has no sample in val and test (train 1, val 0, test 0); allowed: at least one in each"
        assert said in refused(rows)
        meta, _ = prepared(rows, bad_rows="drop")
        assert meta["dropped"] == {"group absent from a split": 1} and "rare" not in meta["groups"]

    def test_a_group_that_a_given_split_leaves_out(self, manifest, refused):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        for row in rows:
            row["group"] = "x" if row["split"] == "test" else row["group"]
        assert "the group 'y' has no sample in test (train 12, val 4, test 0)" in refused(rows)

    def test_a_class_of_one_is_kept_and_told_where_it_cannot_be_learned(self, manifest, prepared, caplog):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        rows[12]["label"] = "rare"  # a test image
        meta, _ = prepared(rows)
        assert meta["classes"] == ["a", "b", "rare"] and meta["class_counts"]["test"]["rare"] == 1
        assert "1 of 3 classes have no training sample: rare" in caplog.text

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (("train",), "1 empty split (no sample is left in test)"),
            (("test",), "2 empty split (no sample is left in train, no sample is left in val)"),
            (("val", "test"), "1 empty split (no sample is left in train)"),
        ],
    )
    def test_splits_that_stay_empty(self, manifest, refused, given, said):
        assert said in refused(manifest(40, split=lambda i: given[i // 4 % len(given)]))

    def test_an_empty_val_is_drawn_from_train(self, manifest, prepared):
        meta, _ = prepared(manifest(80, split=lambda i: ("train", "test")[i // 4 % 2]))
        assert sum(meta["splits"]["val"].values()) == 4
        assert meta["split_source"] == "publisher; val drawn from train"

    def test_a_subset_too_small_for_all_groups(self, manifest, refused, prepared):
        rows = manifest(160, group=lambda i: f"g{i % 16:02}")
        assert refused(rows, train_subset=9).startswith(
            "data.train_subset: got 9, which leaves 7 groups without a sample in train, 'g0"
        )
        assert refused(rows, test_subset=0.3).startswith("data.test_subset: got 0.3, which leaves ")
        meta, _ = prepared(rows, train_subset=32)
        assert min(meta["splits"]["train"].values()) == 2

    def test_duplicate_ids(self, manifest, refused):
        rows = manifest(40, key=str)
        rows[7]["key"] = "3"
        assert "1 duplicate id (row 8 the id '3' stands in row 4 already)" in refused(rows, options={"id": "key"})

    def test_one_file_in_two_splits(self, tmp_path, manifest, refused, prepared):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        rows[12]["image"] = "./images/../images/0.png"
        line = refused(rows)
        assert "2 image on two sides (row 1 '0.png', row 13 '0.png')" in line
        meta, _ = prepared(rows, bad_rows="drop")
        assert meta["dropped"] == {"image on two sides": 2} and meta["samples"] == 38

    def test_one_file_twice_in_a_split_is_allowed(self, manifest, prepared):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        rows[4]["image"] = "./images/0.png"
        assert prepared(rows)[0]["samples"] == 40

    def test_copies_in_other_splits_are_counted(self, tmp_path, manifest, prepared, caplog):
        rows = manifest(40, split=lambda i: SPLITS[i // 4 % 4])
        shutil.copy(tmp_path / "raw/images/0.png", tmp_path / "raw/images/12.png")
        meta, _ = prepared(rows)
        assert meta["notes"] == {"images that also stand in another split": 2}
        assert "2 images stand in several splits, pixel for pixel" in caplog.text


class TestScale:
    def test_ten_thousand_classes_and_two_hundred_groups(self, tmp_path, folder_config, caplog):
        colours = [f"{place}.png" for place in range(250)]
        (tmp_path / "raw").mkdir()
        for place, name in enumerate(colours):
            Image.new("RGB", (8, 8), (place, 0, 0)).save(tmp_path / "raw" / name)
        rows = [
            {"image": f"{'./' * (i // 250)}{colours[i % 250]}", "label": f"c{i % 10_000}", "group": f"g{i // 5 % 200}",
             "split": ("train", "train", "val", "test", "test")[i % 5]}
            for i in range(12_000)
        ]  # fmt: skip
        meta = prepare(folder_config(rows), tmp_path / "data" / "prepared")
        assert len(meta["classes"]) == 10_000 and len(meta["groups"]) == 200 and meta["samples"] == 12_000
        assert sum(meta["class_counts"]["train"].values()) == sum(meta["splits"]["train"].values()) == 4800
        assert all(len(line) < 400 for line in caplog.text.splitlines()), "lines name a few and count the rest"

    def test_a_message_lists_some_of_many_classes(self, manifest, refused):
        rows = manifest(8)
        rows[0]["label"] = "z"
        line = refused(rows, options={"class_names": ["a", "b", *map(str, range(10_000))]})
        assert line.count(" | ") == LISTED and "17 | … (10002 in all)" in line

    def test_a_hundred_thousand_problems_are_summarised_in_one_pass(self):
        problems = [Problem(f"kind {row % 500}", row, "value", "message") for row in range(1, 100_001)]
        assert summarise(problems, full_list=Path("p")).startswith("100000 problems in the data: 200 kind 1 (row 1 ")


def test_the_stage_says_it_in_one_line_and_writes_nothing(tmp_path, manifest, folder_config):
    rows = manifest(12)
    (tmp_path / "raw" / rows[0]["image"]).write_bytes(b"")
    rows[1]["label"] = ""
    folder_config(rows)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    settings = (tmp_path / "params.yaml").read_text(encoding="utf-8").replace("name: synthderm", "name: folder", 1)
    (tmp_path / "params.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "raw").rename(tmp_path / "data" / "raw")
    command = [sys.executable, "-m", "stages.prepare"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "1 empty label (row 2 " in done.stderr and "1 unreadable image (row 1 " in done.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["problems.csv", "raw"]
    assert json.dumps(done.stderr).isascii()
