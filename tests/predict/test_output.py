"""The csv as programs read it back, the table as people see it, and files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest

from fairquant.errors import UserError
from fairquant.predict import Prediction
from fairquant.predict.output import csv_writer, table_writer, written_whole

CLASSES = ("red", 'green, "so"\nto say', "blå 悪")


def prediction(name: str, *shares: float, classes: tuple[str, ...] = CLASSES) -> Prediction:
    best = max(range(len(shares)), key=lambda index: shares[index])
    return Prediction(Path(name), classes[best], shares[best], dict(zip(classes, shares, strict=True)))


def test_any_name_comes_back_from_the_csv():
    file = io.StringIO(newline="")
    write = csv_writer(file, CLASSES)
    names = ["a b.jpg", 'ü, "x".jpg', "a\nb.jpg", "caf\udce9.jpg"]
    for name in names:
        write(prediction(name, 0.1, 0.7, 0.2))
    file.seek(0)
    rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [*names[:3], "caf\\udce9.jpg"]
    assert list(rows[0]) == ["image", "class", "probability", *CLASSES]
    assert {row["class"] for row in rows} == {CLASSES[1]}
    assert [rows[0][name] for name in ("probability", *CLASSES)] == ["0.7", "0.1", "0.7", "0.2"]
    file.getvalue().encode("utf-8")


def test_the_csv_letter_for_letter():
    file = io.StringIO(newline="")
    write = csv_writer(file, ("a", "b"))
    write(prediction("x.jpg", 0.123456789, 0.876543211, classes=("a", "b")))
    write(prediction("y.jpg", 1.0, 1.5e-9, classes=("a", "b")))
    assert file.getvalue() == ("image,class,probability,a,b\nx.jpg,b,0.876543,0.123457,0.876543\ny.jpg,a,1,1,1.5e-09\n")


def test_classes_named_like_our_columns_stay_apart():
    file = io.StringIO(newline="")
    classes = ("image", "other")
    csv_writer(file, classes)(prediction("x.jpg", 0.25, 0.75, classes=classes))
    assert file.getvalue() == (
        "image,class,probability,probability of image,probability of other\nx.jpg,other,0.75,0.25,0.75\n"
    )


@pytest.mark.parametrize(
    ("top", "lines"),
    [
        (
            1,
            [
                "image      class                probability",
                'a b.jpg    green, "so"\\nto say       0.7000',
                "x\\ny悪.jpg  red                       0.9500",
            ],
        ),
        (
            9,
            [
                "image      class                probability  class                probability"
                "  class                probability",
                'a b.jpg    green, "so"\\nto say       0.7000  blå 悪                     0.2000'
                "  red                       0.1000",
                'x\\ny悪.jpg  red                       0.9500  green, "so"\\nto say       0.0300'
                "  blå 悪                     0.0200",
            ],
        ),
    ],
)
def test_the_table(top, lines):
    file = io.StringIO()
    made = [prediction("a b.jpg", 0.1, 0.7, 0.2), prediction("x\ny悪.jpg", 0.95, 0.03, 0.02)]
    write = table_writer(file, CLASSES, [answer.image for answer in made], top)
    for answer in made:
        write(answer)
    assert file.getvalue().splitlines() == lines


class TestWrittenWhole:
    def test_it_replaces_what_was_there(self, tmp_path):
        (tmp_path / "x.csv").write_text("old")
        with written_whole(tmp_path / "x.csv", keep=[]) as file:
            file.write("nü")
            assert (tmp_path / "x.csv").read_text() == "old"
        assert (tmp_path / "x.csv").read_bytes() == "nü".encode()
        assert os.listdir(tmp_path) == ["x.csv"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("x")])
    def test_nothing_is_left_of_a_run_that_ended_early(self, tmp_path, error):
        with pytest.raises(BaseException), written_whole(tmp_path / "x.csv", keep=[]) as file:  # noqa: B017, PT011
            file.write("half")
            raise error
        assert os.listdir(tmp_path) == []

    def test_no_folder(self, tmp_path):
        out = tmp_path / "absent" / "x.csv"
        self.refused(out, f"--out: got {out}, but {out.parent} is no folder; allowed: a file in a folder that exists")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("out", ["", "/dev/null"])
    def test_no_file(self, tmp_path, out):
        where = Path(out or tmp_path)
        self.refused(where, f"--out: got {where}, which is no file; allowed: a csv file, or - for standard output")
        assert where.exists()

    def test_never_one_of_the_files_read(self, tmp_path):
        (tmp_path / "a.jpg").write_text("pixels")
        out = tmp_path / ".." / tmp_path.name / "a.jpg"
        self.refused(out, f"--out: got {out}, which is read here; allowed: a csv file of its own", tmp_path / "a.jpg")
        assert (tmp_path / "a.jpg").read_text() == "pixels"

    def test_a_folder_that_takes_no_files(self, tmp_path, monkeypatch):
        def refuse(self, *arguments, **options):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
        out = tmp_path / "x.csv"
        self.refused(out, f"--out: {out} cannot be written (Permission denied)")

    def refused(self, out: Path, text: str, *keep: Path) -> None:
        with pytest.raises(UserError) as error, written_whole(out, keep=keep):
            pass
        assert str(error.value) == text
