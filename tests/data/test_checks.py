from pathlib import Path

import numpy as np

from fairquant.data.checks import check_clusters, check_presence, check_rows
from fairquant.data.raw import RawDataset, RawSample


def sample(row, **changes):
    given = {"id": f"s{row}", "label": "a", "groups": ("x",), "image": lambda: None, "split": None}
    return RawSample(row=row, **{**given, **changes})


def found(samples, classes=("a", "b")):
    raw = RawDataset("test", classes, ("sex",), samples)
    return [(position, problem.kind, problem.row) for position, problem in check_rows(raw)]


def test_good_samples_have_no_problem():
    assert found([sample(1), sample(2, label="b")]) == []


def test_each_kind_is_found_with_its_row(tmp_path):
    samples = [
        sample(1, image=tmp_path / "none.jpg", split="train"),
        sample(2, label="c", split="train"),
        sample(3, label=" ", split="train"),
        sample(4, groups=("",), split="train"),
        sample(5, id="s1", split="train"),
        sample(6, split="Train"),
        sample(7, split=""),
        sample(8, cluster="", split="test"),
    ]
    assert found(samples) == [
        (0, "missing file", 1),
        (1, "unknown label", 2),
        (2, "empty label", 3),
        (3, "empty group value", 4),
        (4, "duplicate id", 5),
        (5, "bad split value", 6),
        (6, "missing split value", 7),
        (7, "empty split_by value", 8),
    ]


def test_a_row_can_have_several_problems():
    assert [kind for _, kind, _ in found([sample(1, label="c", groups=("",))])] == [
        "unknown label",
        "empty group value",
    ]


def test_splits_empty_everywhere_are_none_at_all():
    assert found([sample(1, split=""), sample(2, split="")]) == []


def test_messages_name_what_is_allowed():
    raw = RawDataset("test", ("a", "b"), ("sex",), [sample(1, label="c", split="dev")])
    messages = [problem.message for _, problem in check_rows(raw)]
    assert messages == ["got the label 'c'; allowed: a | b", "got the split 'dev'; allowed: train | val | test"]


def test_a_folder_is_no_image(tmp_path: Path):
    assert found([sample(1, image=tmp_path)]) == [(0, "missing file", 1)]


def test_clusters_on_two_sides_are_reported_with_every_row():
    samples = [sample(row, cluster=name) for row, name in enumerate("ppqqr", 1)]
    splits = np.array(["train", "test", "val", "val", "test"])
    problems = check_clusters(samples, range(5), splits)
    assert [(position, problem.value) for position, problem in problems] == [(0, "p"), (1, "p")]
    assert problems[0][1].message == "'p' stands in train and test"


def test_presence():
    problems = check_presence(["x", "x", "x", "y", "y"], ["train", "val", "test", "train", "test"], ["x", "y"])
    assert [problem.message for problem in problems] == [
        "the group 'y' has no sample in val (train 1, val 0, test 1); allowed: at least one in each"
    ]
    assert check_presence(["x", "x"], ["train", "test"], ["x"])[0].message == "no sample is left in val"
    assert all(problem.fatal for problem in check_presence(["x", "x"], ["train", "test"], ["x"]))
