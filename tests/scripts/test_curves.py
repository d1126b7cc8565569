"""Curves end to end on a tiny classifier: what the pipeline would give, resuming, shards, mistakes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from fairquant.artifacts import read_json
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.spec import ModelSpec
from fairquant.report.curves import CurveRow, read_rows
from scripts.curves import __main__ as command_line
from scripts.curves import session
from scripts.curves.budgets import byte_limit
from scripts.curves.points import parse_setting, with_settings
from scripts.curves.session import Session
from scripts.curves.workspace import Workspace
from stages import assign, baseline, evaluate, importance, quantize
from tests.conftest import write_store

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "device": "cpu",
    "data.name": "folder",
    "data.path": "/data/tiny/labels.csv",
    "data.label": "lesion",
    "importance.batch_size": 16,
    "quantize.epochs": 1,
    "quantize.batch_size": 24,
    "quantize.lr": 0.01,
    "evaluate.bootstrap.resamples": 50,
}


def make_workspace(folder: Path, *, seed: int = 0) -> Path:
    store = write_store(folder / "data/prepared", n_per_group=60, size=16)
    spec = ModelSpec("test_resnet", store.classes, 16, tuple(store.meta["mean"]), tuple(store.meta["std"]))
    with torch.random.fork_rng():
        save_model(folder / "models/pretrained.safetensors", build(spec, seed=seed), spec)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump(with_settings(params, {**SETTINGS, "seed": seed})))
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def run(*arguments: object) -> int:
    return command_line.main([str(argument) for argument in arguments])


POINTS = ("--methods", "uniform", "levels_max", "--budgets", "2", "4")
TASK = "tiny lesion by group, test_resnet"


@pytest.fixture(scope="module")
def measured(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "curves.csv"
    assert run("measure", workspace, "--out", out, *POINTS, "--tune", "none", "equal") == 0
    return out


def timeless(rows: list[CurveRow]) -> list[dict[str, object]]:
    ordered = sorted(rows, key=lambda row: row.key)
    return [{name: value for name, value in vars(row).items() if name != "seconds"} for row in ordered]


def test_rows_of_every_point(measured):
    rows = read_rows(measured)
    assert [(row.method, row.tuned, row.budget) for row in rows] == [
        (method, tuned, budget)
        for method in ("uniform", "levels_max") for tuned in (False, True) for budget in (2.0, 4.0)
    ]  # fmt: skip
    assert {(row.task, row.seed) for row in rows} == {(TASK, 0)}
    for row in rows:
        assert row.avg_bits == pytest.approx(row.budget, abs=0.1)
        assert set(row.test_group_after) == set(row.val_loss_change) == {"light", "dark"}
        assert row.test_worst_after == min(row.test_group_after.values())
        assert row.test_group_after[row.test_worst_group] == row.test_worst_after
        assert row.test_group_before[row.test_worst_group_before] == row.test_worst_before
        assert row.worst_change_low <= row.worst_change_high
        assert row.packed_mb < row.fp32_mb and row.predicted == {} and row.seconds > 0
    plain, tuned = rows[1], rows[3]
    assert plain.test_loss_change != tuned.test_loss_change


@pytest.mark.parametrize("place", [1, 6])
def test_a_row_is_what_the_pipeline_gives_with_its_settings(place, measured, workspace, tmp_path, monkeypatch):
    """The oracle is the stages themselves, run one after the other with the row's settings."""
    row = read_rows(measured)[place]
    for name in ("data", "models"):
        shutil.copytree(workspace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    config = parse_config(with_settings(params, dict(map(parse_setting, shlex.split(row.settings)))))
    for stage in (baseline, importance, assign, quantize, evaluate):
        stage.main(config)
    metrics = read_json("metrics/evaluate.json")
    for name, values in metrics["group"].items():
        assert row.test_group_before[name] == pytest.approx(values["before"], abs=1e-6)
        assert row.test_group_after[name] == pytest.approx(values["after"], abs=1e-6)
    assert row.test_worst_after == pytest.approx(metrics["worst_group"]["after"], abs=1e-6)
    assert row.val_worst_after == pytest.approx(metrics["val"]["worst_group"]["after"], abs=1e-6)
    assert row.test_gap_after == pytest.approx(metrics["gap"]["after"]["max_minus_min"], abs=1e-6)
    assert row.test_eodd_after == pytest.approx(metrics["gap"]["after"]["eodd"], abs=1e-6)
    assert row.test_loss_change == pytest.approx(metrics["excessive_loss"]["group"], abs=2e-6)
    assert row.packed_mb == pytest.approx(metrics["cost"]["packed_mb"], abs=1e-6)
    ends = metrics["interval"]["worst_group"]["change"]
    assert (row.worst_change_low, row.worst_change_high) == pytest.approx((ends["low"], ends["high"]), abs=1e-6)
    assert len(row.harmed) == metrics["harmed_groups"]


def test_uniform_takes_the_bytes_of_its_budget(measured, workspace):
    info = Workspace.open(str(workspace)).info
    for row in read_rows(measured):
        if row.method == "uniform":
            assert row.packed_mb == byte_limit(info, row.budget) / 1e6


def test_a_second_sitting_measures_what_is_missing(measured, workspace, tmp_path, monkeypatch, capsys):
    out = tmp_path / "curves.csv"
    shutil.copy(measured, out)
    shutil.copytree(measured.with_name("curves.cache"), tmp_path / "curves.cache")
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:30])  # killed while it wrote the third point
    asked: list[object] = []
    measure = Session.measure
    monkeypatch.setattr(Session, "measure", lambda self, point: asked.append(point.key) or measure(self, point))
    monkeypatch.setattr(Session, "_measure_importance", lambda *_: pytest.fail("the maps are there"))
    assert run("measure", workspace, "--out", out, *POINTS) == 0
    assert [key[2:] for key in asked] == [("levels_max", False, 2.0), ("levels_max", False, 4.0)]
    kept = {row.key: row for row in read_rows(measured)}
    assert timeless(read_rows(out)) == timeless([kept[row.key] for row in read_rows(out)])
    assert "[1/2] " in capsys.readouterr().err
    asked.clear()
    assert run("measure", workspace, "--out", out, *POINTS) == 0 and asked == []
    assert run("measure", workspace, "--out", out, *POINTS, "--redo", "uniform") == 0
    assert [key[2:] for key in asked] == [("uniform", False, 2.0), ("uniform", False, 4.0)]


def test_shards_together_are_one_process(measured, workspace, tmp_path):
    out = tmp_path / "curves.csv"
    shutil.copytree(measured.with_name("curves.cache"), tmp_path / "curves.cache")
    for index in (1, 2):
        assert run("measure", workspace, "--out", out, *POINTS, "--shard", f"{index}/2") == 0
    shards = [tmp_path / f"curves-{index}of2.csv" for index in (1, 2)]
    assert [len(read_rows(shard)) for shard in shards] == [2, 2]
    assert run("merge", *shards, "--out", out) == 0
    assert timeless(read_rows(out)) == timeless([row for row in read_rows(measured) if not row.tuned])
    shards[0].unlink()
    assert run("measure", workspace, "--out", out, *POINTS, "--shard", "1/2") == 0
    assert read_rows(shards[0]) == []  # what is merged is not measured again


def test_ctrl_c_keeps_what_is_finished(workspace, tmp_path, monkeypatch, capsys):
    measure = Session.measure

    def once(self, point):
        if point.key[4] == 4.0:
            raise KeyboardInterrupt
        return measure(self, point)

    monkeypatch.setattr(Session, "measure", once)
    assert run("measure", workspace, "--out", tmp_path / "c.csv", "--methods", "uniform", "--budgets", "2", "4") == 130
    assert [row.budget for row in read_rows(tmp_path / "c.csv")] == [2.0]
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped: finished points are in the csv")


def test_a_point_that_cannot_be_met_is_said_and_the_rest_goes_on(workspace, tmp_path, monkeypatch, capsys):
    real = session.assign

    def refuse(config, *rest, **more):
        if config.assign.uniform_bits == 2:
            raise ConfigError("budget.size_mb: got 1;\nallowed: 2 or more")
        return real(config, *rest, **more)

    monkeypatch.setattr(session, "assign", refuse)
    out = tmp_path / "c.csv"
    assert run("measure", workspace, "--out", out, "--methods", "uniform", "--budgets", "2", "4") == 1
    assert [row.budget for row in read_rows(out)] == [4.0]
    said = capsys.readouterr().err
    assert f"[1/2] {TASK} seed 0 uniform 2 bits untuned: FAILED, budget.size_mb: got 1; allowed: 2 or more\n" in said


def test_predicted_losses_are_kept(workspace, tmp_path):
    out = tmp_path / "c.csv"
    assert run("measure", workspace, "--out", out, "--methods", "optimal_max", "--budgets", "2.5") == 0
    [row] = read_rows(out)
    assert set(row.predicted) == {"light", "dark"} and min(row.predicted.values()) > 0
    limit = byte_limit(Workspace.open(str(workspace)).info, 2.5)
    assert limit * 0.98 <= row.packed_mb * 1e6 <= limit


def test_tables_and_plots(measured, tmp_path, capsys):
    assert run("tables", measured, "--out", tmp_path / "out") == 0
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert names == {".md", ".csv", ".png"}
    assert f"## {TASK}" in (tmp_path / "out/curves.md").read_text(encoding="utf-8")
    assert "curves.md: tables, plots beside it" in capsys.readouterr().err


class TestMistakes:
    """One line on stderr and exit code 2."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--methods", "best"), "--methods: got 'best'; allowed: uniform | "),
            (("--budgets", "0.1"), "--budgets: got 0.1; allowed: bits per weight from 0.4 to 12.8"),
            (("--shard", "3/2"), "--shard: got '3/2'; allowed: I/N with whole numbers 1 <= I <= N"),
            (("--methods", "uniform", "--redo", "ours"), "--redo: got 'ours'; allowed: of --methods (uniform)"),
            (("--methods", "uniform", "--redo", "uniform", "--shard", "1/2"), "--redo: got it with --shard 1/2; "),
            (("--methods", "uniform", "--set", "x.y=1"), f"{TASK}, uniform: params.yaml: x: unknown key"),
        ],
    )  # fmt: skip
    def test_arguments(self, arguments, message, workspace, tmp_path, capsys):
        assert run("measure", workspace, "--out", tmp_path / "c.csv", *arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
        assert not (tmp_path / "c.csv").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("params.yaml", "params.yaml: not found"),
            ("data/prepared/meta.json", "meta.json: not found; run the stage that writes it (dvc repro)"),
            ("data/prepared/images.npy", "images.npy: not found"),
            ("models/pretrained.json", "pretrained.json: not found; run the stage that writes it (dvc repro)"),
            ("models/pretrained.safetensors", "pretrained.safetensors: not found; run the stage"),
        ],
    )
    def test_files_of_the_workspace(self, name, message, workspace, tmp_path, capsys):
        copy = tmp_path / "copy"
        shutil.copytree(workspace, copy)
        (copy / name).unlink()
        assert run("measure", copy, "--out", tmp_path / "c.csv", *POINTS) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line

    def test_workspaces(self, workspace, tmp_path, capsys):
        out = tmp_path / "c.csv"
        assert run("measure", tmp_path / "none", "--out", out) == 2
        assert run("measure", workspace, f"{workspace}/.", "--out", out) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith("no folder; allowed: FOLDER or TASK=FOLDER")
        assert second.endswith("with seed 0; allowed: one of each, or names for them (TASK=FOLDER)")

    def test_another_classifier_under_the_same_name(self, measured, tmp_path, capsys):
        out = tmp_path / "curves.csv"
        shutil.copy(measured, out)
        other = make_workspace(tmp_path / "other")
        spec = ModelSpec.from_dict(read_json(other / "models/pretrained.json")["spec"])
        save_model(other / "models/pretrained.safetensors", build(spec, seed=5), spec)
        assert run("measure", other, "--out", out, *POINTS) == 2
        assert "of another classifier; allowed: --redo uniform to measure it again" in capsys.readouterr().err
        out = tmp_path / "c.csv"
        assert run("measure", f"mine={other}", "--out", out, "--methods", "uniform", "--budgets", "8") == 0
        assert [row.task for row in read_rows(out)] == ["mine"]

    def test_tables_of_nothing(self, tmp_path, capsys):
        assert run("tables", tmp_path / "none.csv", "--out", tmp_path) == 2
        assert capsys.readouterr().err.startswith("error: ")
