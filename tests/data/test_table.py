from pathlib import Path

import pytest

from fairquant.data.table import read_table
from fairquant.errors import DataError


def read(tmp_path: Path, content: bytes):
    (tmp_path / "t.csv").write_bytes(content)
    return read_table(tmp_path / "t.csv", layout="image,label")


def test_text_is_kept_exactly(tmp_path):
    table = read(tmp_path, '\ufeffimage,label\r\n a ,"x, ""y"""\r\nNA,\n"two\nlines",007\n'.encode())
    assert table.columns == ("image", "label")
    assert [row.values["image"] for row in table.rows] == [" a ", "NA", "two\nlines"]
    assert [row.values["label"] for row in table.rows] == ['x, "y"', "", "007"]
    assert [row.number for row in table.rows] == [1, 2, 3]
    assert table.problems == []


def test_defective_rows_are_named_and_the_others_kept(tmp_path):
    table = read(tmp_path, b"image,label\na,1\nb\nc,\xff1\nd,1,2\ne,2\n")
    assert [row.values["image"] for row in table.rows] == ["a", "e"]
    assert [(p.row, p.kind) for p in table.problems] == [
        (2, "wrong number of fields"),
        (3, "not UTF-8"),
        (4, "wrong number of fields"),
    ]
    assert table.problems[0].message == "the row has 1 fields, the header 2"
    assert table.problems[1].value == "c,\\udcff1"


def test_every_missing_column_is_a_fatal_problem(tmp_path):
    problems = read(tmp_path, b"image,label\na,1\n").missing(["sex", "image", "age", "sex"])
    assert [(p.value, p.fatal) for p in problems] == [("sex", True), ("age", True)]
    assert problems[0].message == "t.csv has no column 'sex'; its columns: image, label"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file; allowed: csv with a header row"),
        (b"image,label\n", "got a header and no rows; allowed: at least one row"),
        (b"image,image\na,1\n", "got the column 'image' more than once; allowed: each column once"),
        ("image,label\na,1\n".encode("utf-16"), "not UTF-8 text; save it as csv in UTF-8"),
        (b'image,label\na,"1\n', r"not valid csv at line 2 \(unexpected end of data\)"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"t.csv: {message}$"):
        read(tmp_path, content)


def test_an_absent_file_names_the_layout(tmp_path):
    with pytest.raises(DataError, match="none.csv: not found; expected image,label$"):
        read_table(tmp_path / "none.csv", layout="image,label")
    with pytest.raises(DataError, match="not found; expected image,label$"):
        read_table(tmp_path, layout="image,label")


def test_blank_lines_before_the_header_are_none(tmp_path):
    (tmp_path / "t.csv").write_text("\n\na,b\n\n1,2\n")
    table = read_table(tmp_path / "t.csv", layout="")
    assert table.columns == ("a", "b")
    assert [(row.number, row.values) for row in table.rows] == [(1, {"a": "1", "b": "2"})]
