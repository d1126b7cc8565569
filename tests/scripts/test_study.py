"""The study end to end on a tiny classifier; fair and unfair training sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fairquant.data.store import Store
from fairquant.errors import UserError
from fairquant.report.analysis_study import PointSummary, by_point, read_rows
from scripts import study
from scripts.analysis.skew import shares, subsample, target_counts
from scripts.study import StudySession
from tests.conftest import write_store
from tests.scripts.test_curves import TASK, make_workspace

SETTINGS = ("--set", "quantize.calibration.batches=2", "evaluate.bootstrap.resamples=0", "pretrain.epochs=1")


def run(*arguments: object) -> int:
    return study.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def measured(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "out"
    assert run(workspace, "--out", out, "--bits", "8", "4", "--data", "as_is", "unfair", *SETTINGS) == 0
    return out


class TestTrainingSets:
    @pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0, 57.0])
    def test_the_profile(self, ratio):
        counts = [60, 200, 100, 100]
        found = shares("unfair", counts, ratio)
        assert sum(found) == pytest.approx(1)
        assert found[1] / found[0] == pytest.approx(ratio)
        if ratio > 1:
            assert found[1] > found[2] > found[3] > found[0]  # ties by number
            assert found[1] / found[2] == pytest.approx(found[2] / found[3])

    @pytest.mark.parametrize("counts", [[60, 200, 100, 100], [5000] * 10, [37, 41], [12]])
    @pytest.mark.parametrize("ratio", [1.0, 3.3, 10.0])
    def test_both_sets_have_the_same_size_and_nothing_is_invented(self, counts, ratio):
        fair, unfair = (target_counts(data, counts, ratio) for data in ("fair", "unfair"))
        assert sum(fair) == sum(unfair)
        assert max(fair) - min(fair) <= 1
        assert all(n <= there for found in (fair, unfair) for n, there in zip(found, counts, strict=True))

    def test_a_larger_set_would_not_do(self):
        # long-tailed 2 : 1 needs two thirds of one class: 30 of 20 + 30 would be 33.3 of the first and 16.7
        assert target_counts("unfair", [20, 30], 2.0) == [13, 27]
        assert target_counts("fair", [20, 30], 2.0) == [20, 20]

    def test_too_few(self):
        with pytest.raises(UserError, match=r"^--ratio: got 100 for 4 images of 2 classes; allowed: less$"):
            target_counts("unfair", [4, 4], 100.0)

    def test_a_store(self, tmp_path):
        store = write_store(tmp_path, n_per_group=60)
        made = subsample(store, "unfair", by="group", ratio=4.0, seed=0)
        counts = np.bincount(made.groups[made.indices("train")])
        assert counts.tolist() == target_counts("unfair", [36, 36], 4.0) == [36, 9]
        for split in ("val", "test"):
            assert np.array_equal(made.indices(split), store.indices(split))
        assert set(made.indices("train")) < set(store.indices("train"))
        assert made.meta["checksum"] != store.meta["checksum"]
        again, other = (subsample(store, "unfair", by="group", ratio=4.0, seed=seed) for seed in (0, 1))
        assert np.array_equal(again.splits, made.splits) and not np.array_equal(other.splits, made.splits)
        assert subsample(store, "as_is", by="class", ratio=4.0, seed=0) is store

    def test_a_class_without_images(self, tmp_path):
        store = write_store(tmp_path)
        store = Store(**{**vars(store), "classes": (*store.classes, "none")})
        with pytest.raises(
            UserError, match="^--by: got class with no training image of 'none'; allowed: some of each$"
        ):
            subsample(store, "fair", by="class", ratio=4.0, seed=0)


def test_rows_of_every_point(measured):
    rows = read_rows(measured / "study.csv")
    points = by_point(rows)
    assert list(points) == [
        (TASK, data, 0, way, bits) for data in ("as_is", "unfair") for way in ("ptq", "qat") for bits in (8, 4)
    ]
    for key, found in points.items():
        assert [row.kind for row in found] == ["class", "class", "group", "group", "all"]
        assert f"assign.uniform_bits={key[4]}" in found[0].settings
        assert f"quantize.activations.bits={key[4]}" in found[0].settings
        assert found[-1].n == sum(row.n for row in found if row.kind == "class")
        summary = PointSummary.of(found)
        assert summary.phi_class >= 0 and summary.worst_class <= summary.overall
    before = {key[1]: found[-1].loss_before for key, found in points.items()}
    assert before["as_is"] != before["unfair"]  # a classifier of its own


def test_the_classifier_of_a_training_set_is_trained_once(measured, workspace, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    shutil.copytree(measured, out)
    lines = (out / "study.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "study.csv").write_text("".join(lines[:-3]) + lines[-3][:20], encoding="utf-8")
    asked = []
    measure = StudySession.study
    monkeypatch.setattr(StudySession, "study", lambda self, *point: asked.append(point[0]) or measure(self, *point))
    monkeypatch.setattr("scripts.analysis.trained._train", lambda *_: pytest.fail("it is trained"))
    options = ("--bits", "8", "4", "--data", "as_is", "unfair")
    assert run(workspace, "--out", out, *options, *SETTINGS) == 0
    assert asked == [(TASK, "unfair", 0, "qat", 4)]
    assert (out / "study.csv").read_bytes() == (measured / "study.csv").read_bytes()
    assert run(workspace, "--out", out, "--bits", "2", "--data", "unfair", "--ratio", "3", *SETTINGS) == 2
    assert run(workspace, "--out", out, "--bits", "4", "--set", "quantize.lr=1") == 2
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert first.endswith("a classifier trained otherwise; allowed: the same settings, or another")
    assert "as_is seed 0 ptq W4A4 with other settings (" in second


def test_tables_and_figures(measured, tmp_path, capsys):
    names = {path.suffix for path in measured.iterdir() if path.is_file()}
    assert names == {".csv", ".md", ".png"}
    page = (measured / "study.md").read_text(encoding="utf-8")
    assert "| unfair | QAT | W4A4 | 1 |" in page
    shutil.copy(measured / "study.csv", tmp_path)
    assert run("no workspace is opened", "--out", tmp_path, "--tables") == 0
    assert (tmp_path / "study.md").read_text(encoding="utf-8") == page
    assert capsys.readouterr().err.endswith("study.md: tables, figures beside it\n")


def test_a_point_that_cannot_be_met(workspace, tmp_path, monkeypatch, capsys):
    def refuse(self, key, point):
        if key[4] == 8:
            raise UserError("quantize: got\nnothing; allowed: something")
        raise KeyboardInterrupt

    monkeypatch.setattr(StudySession, "study", refuse)
    assert run(workspace, "--out", tmp_path, "--bits", "8", "4") == 130
    said = capsys.readouterr().err
    assert "as_is seed 0 ptq W8A8: FAILED, quantize: got nothing; allowed: something" in said
    assert said.splitlines()[-1].startswith("stopped: finished points are in the csv")


class TestMistakes:
    """One line on stderr and exit code 2."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--bits", "17"), "--bits: got 17; allowed: whole numbers from 2 to 16"),
            (("--bits", "4", "4"), "--bits: got 4 4; allowed: each value once"),
            (("--ratio", "0.5"), "--ratio: got 0.5; allowed: numbers from 1 to 1000"),
            (("--set", "x"), "--set: got 'x'; allowed: KEY=VALUE with a key of params.yaml"),
            (("--bits", "4", "--set", "x.y=1"), f"{TASK}, ptq, 4 bits: params.yaml: x: unknown key"),
        ],
    )
    def test_arguments(self, arguments, message, workspace, tmp_path, capsys):
        assert run(workspace, "--out", tmp_path, *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")

    def test_tables_of_nothing(self, tmp_path, capsys):
        assert run("w", "--out", tmp_path, "--tables") == 2
        assert "study.csv: not found; allowed: a file that `python -m scripts.study` wrote" in capsys.readouterr().err
