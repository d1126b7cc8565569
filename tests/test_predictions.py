"""Predictions survive the disk, and refuse arrays that do not belong together."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.artifacts import write_tensors
from fairquant.errors import ArtifactError
from fairquant.predictions import Predictions, SplitPredictions


def split(n: int, seed: int = 0) -> SplitPredictions:
    random = np.random.default_rng(seed)
    return SplitPredictions(
        random.normal(size=(n, 3)).astype(np.float32), random.integers(0, 3, n), random.integers(0, 2, n), np.arange(n)
    )


def test_save_and_load_are_exact(tmp_path):
    saved = Predictions(("a", "b.c", "ä"), ("female × <60", "x"), {"val": split(4), "test": split(7, 1)})
    saved.save(tmp_path / "p.safetensors")
    loaded = Predictions.load(tmp_path / "p.safetensors")
    assert (loaded.classes, loaded.groups, set(loaded.splits)) == (saved.classes, saved.groups, {"val", "test"})
    for name in ("val", "test"):
        for field in ("logits", "labels", "groups", "indices"):
            before, after = getattr(saved[name], field), getattr(loaded[name], field)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def test_bytes_depend_on_content_alone(tmp_path):
    for name in ("one", "two"):
        Predictions(("a", "b", "c"), ("x", "y"), {"val": split(5)}).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_predicted_is_the_first_of_equal_logits():
    logits = np.array([[0, 1, 1], [2, 1, 0]], np.float32)
    part = SplitPredictions(logits, np.zeros(2, np.int64), np.zeros(2, np.int64), np.arange(2))
    assert part.predicted.tolist() == [1, 0]
    assert part.predicted.dtype == np.int64


def test_lengths_that_differ_are_refused():
    with pytest.raises(ArtifactError, match=r"predictions: got shapes .*; allowed: logits \(N, C\) and the others"):
        SplitPredictions(np.zeros((3, 2), np.float32), np.zeros(2, np.int64), np.zeros(3, np.int64), np.arange(3))


def test_unknown_split_is_one_line():
    with pytest.raises(ArtifactError, match="got split 'train'; allowed: test | val"):
        Predictions(("a",), ("x",), {"val": split(1), "test": split(1)})["train"]


def test_foreign_files_are_refused(tmp_path):
    write_tensors(tmp_path / "f", {"val.logits": np.zeros((1, 2), np.float32)}, meta={"splits": ["val"]})
    with pytest.raises(ArtifactError, match="got a file without 'val.labels'; allowed: predictions of a stage"):
        Predictions.load(tmp_path / "f")
    with pytest.raises(ArtifactError, match="not found"):
        Predictions.load(tmp_path / "absent")
