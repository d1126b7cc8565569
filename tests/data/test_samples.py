"""The table of samples against the csv module, beyond the size of one part."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fairquant.data.samples import ROWS, SHARED, read_samples
from fairquant.errors import ArtifactError

HEADER = ["id", "label", "label_name", "group", "split", "age", "note"]


def write_table(path: Path, count: int) -> list[list[str]]:
    """Write ``count`` samples, some with a comma, a quote or a line break in their text; return the rows."""
    splits = ("train", "val", "test")
    rows = [
        [f"images/{row:09d} ä.jpg", str(row % 3), "abc"[row % 3], str(row % 2), splits[row % 5 % 3], str(row % 90),
         ("", 'a,"b"', "two\nlines")[row % 3]]
        for row in range(count)
    ]  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    return rows


@pytest.mark.parametrize("count", [0, 1, ROWS, ROWS + 1, 2 * ROWS + 17])
def test_equals_the_csv_module(tmp_path, count):
    rows = write_table(tmp_path / "samples.csv", count)
    samples = read_samples(tmp_path / "samples.csv")
    assert samples.labels.tolist() == [int(row[1]) for row in rows]
    assert samples.groups.tolist() == [int(row[3]) for row in rows]
    assert samples.splits.tolist() == [row[4] for row in rows]
    assert samples.labels.dtype == samples.groups.dtype == np.int64
    assert list(samples.columns) == HEADER and len(samples.columns) == len(HEADER)
    for place, name in enumerate(HEADER):
        assert samples.columns[name] == tuple(row[place] for row in rows)


def test_text_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    write_table(tmp_path / "samples.csv", 10)
    monkeypatch.chdir(tmp_path)
    samples = read_samples(Path("samples.csv"))
    monkeypatch.chdir("/")
    ages = samples.columns["age"]
    (tmp_path / "samples.csv").unlink()
    assert samples.columns["age"] is ages
    with pytest.raises(ArtifactError, match=r"samples\.csv: not found; run the stage that writes it"):
        _ = samples.columns["id"]
    with pytest.raises(KeyError):
        _ = samples.columns["sex"]
    assert "sex" not in samples.columns


def test_memory_does_not_grow_with_the_text(tmp_path):
    count = 60_000
    write_table(tmp_path / "samples.csv", count)
    tracemalloc.start()
    try:
        samples = read_samples(tmp_path / "samples.csv")
        held, peak = tracemalloc.get_traced_memory()
        assert held < 37 * count
        assert peak < 75 * count + 10_000_000  # arrays and their parts, and one part as text
        assert len(samples.columns["age"]) == count
        assert tracemalloc.get_traced_memory()[0] < held + 9 * count  # equal values are held once
    finally:
        tracemalloc.stop()


def test_many_different_values_are_not_remembered(tmp_path):
    rows = write_table(tmp_path / "samples.csv", SHARED + 100)
    ids = read_samples(tmp_path / "samples.csv").columns["id"]
    assert ids == tuple(row[0] for row in rows)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("s,1,a,0,train,5", ArtifactError, "got the columns .*; allowed: the samples.csv of the prepare stage"),
        ("s,1,a,0,trains,5,", ArtifactError, r"got the split 'trains'; allowed: train \| val \| test; dvc repro"),
        ("s,one,a,0,train,5,", ValueError, "'one'"),
        ("s,1e3,a,0,train,5,", ValueError, "'1e3'"),
        (f"s,{10**30},a,0,train,5,", OverflowError, "too large"),
        ('s,1,a,0,train,5,"', ArtifactError, "not valid csv"),
    ],
)
def test_a_defect_far_down_is_found(tmp_path, line, error, message):
    write_table(tmp_path / "samples.csv", ROWS + 3)
    with (tmp_path / "samples.csv").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(error, match=message):
        read_samples(tmp_path / "samples.csv")
