"""The same pictures through ``folder`` and through the data set's own loader, by way of its published layout."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.store import Store
from scripts import publish_layout

FACES = ("age", "gender", "race", "service_test", "official_split")
LESIONS = ("dx", "sex", "age", "age_group", "localization", "dx_type", "lesion_id")


def write_folder(folder: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        for number, row in enumerate(rows):
            Image.fromarray(random.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(folder / f"images/{number}.jpg")
            writer.writerow([f"images/{number}.jpg", *row])
    return folder


def faces(folder: Path) -> Path:
    rows = [("20-29", gender, race, "True", split) for gender in ("Male", "Female") for race in ("Black", "White")
            for split in ("train", "train", "train", "train", "val")]  # fmt: skip
    return write_folder(folder, FACES, rows)


def lesions(folder: Path) -> Path:
    rows = [(dx, sex, "45.0", "<60", "back", "histo", f"HAM_{dx}{sex}{n}") for dx in ("mel", "nv")
            for sex in ("female", "male") for n in range(6)]  # fmt: skip
    return write_folder(folder, LESIONS, rows)


def pixels(path: Path, out: Path, **data: object) -> dict[str, bytes]:
    """Prepare ``path`` and return each image's pixels by its file's stem."""
    config = parse_config({"data": {"path": str(path), "image_size": 8, **data}, "workers": 1})
    prepare(config, out)
    store = Store.open(out)
    return {Path(name).stem: store.images[row].tobytes() for row, name in enumerate(store.ids)}


@pytest.mark.parametrize(
    ("name", "write", "data"),
    [
        ("fairface", faces, {"label": "gender", "group": "race"}),
        ("ham10000", lesions, {"label": "dx", "group": "sex", "split_by": "lesion_id"}),
    ],
)
def test_folder_and_loader_agree(name, write, data, tmp_path, monkeypatch):
    source, target = write(tmp_path / "mine"), tmp_path / "published"
    monkeypatch.setattr(sys, "argv", ["publish_layout", name, str(source), str(target)])
    publish_layout.main()
    fractions = {"val_fraction": 0.25, "test_fraction": 0.25}
    by_manifest = pixels(source, tmp_path / "a", name="folder", **data, **fractions)
    by_loader = pixels(target, tmp_path / "b", name=name, **data, **fractions)
    assert by_manifest == by_loader
    assert len(by_loader) == len(list((source / "images").iterdir()))


class TestMistakes:
    """One line, exit code 2, and nothing is written."""

    def refused(self, capsys, *arguments: object) -> str:
        assert publish_layout.main([str(argument) for argument in arguments]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    def test_no_table(self, tmp_path, capsys):
        assert "labels.csv: not found; expected " in self.refused(capsys, "fairface", tmp_path, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_another_table(self, tmp_path, capsys):
        source = lesions(tmp_path / "mine")
        line = self.refused(capsys, "fairface", source, tmp_path / "out")
        assert "has no column 'official_split'" in line and "allowed: the columns image,official_split,age," in line
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_an_image_is_absent(self, tmp_path, capsys):
        source = faces(tmp_path / "mine")
        (source / "images/3.jpg").unlink()
        assert "3.jpg: not found (1 images in all)" in self.refused(capsys, "fairface", source, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_twice(self, tmp_path, capsys):
        source = faces(tmp_path / "mine")
        assert publish_layout.main(["fairface", str(source), str(tmp_path / "out")]) == 0
        before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
        assert "out: is there already" in self.refused(capsys, "fairface", source, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
