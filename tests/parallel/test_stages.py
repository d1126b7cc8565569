"""Stages in two processes against the same stages in one, on a tiny data set, run as the pipeline runs them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fairquant.importance.maps import ImportanceMaps
from fairquant.quantize.state import load_quantized
from tests.conftest import REPO, write_store

pytestmark = pytest.mark.xdist_group("parallel")

GROUPS = ("female × <60", "male v1.5")
ALL = ("pretrain", "baseline", "importance", "assign", "quantize", "evaluate")
PARAMS: dict[str, Any] = {
    "device": "cpu",
    "model": {"name": "test_resnet"},
    "pretrain": {"epochs": 2, "batch_size": 14, "augment": "light"},
    "importance": {"samples_per_group": 20, "batch_size": 8},
    "quantize": {"epochs": 2, "batch_size": 14, "augment": "light"},
    "evaluate": {"batch_size": 5, "bootstrap": {"resamples": 50}},
}
LOSS = 1e-5
"""How far a loss of two epochs may lie from that of one process, relative."""
SAMPLE = 1 / 8 + 1e-6
"""How far an accuracy may: one of a group's eight samples may turn over."""


def run(folder: Path, *stages: str, devices: int = 1) -> str:
    """Run stages in ``folder``, one after the other; return what they print on stderr."""
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"parallel": {"devices": devices}}), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_") and name != "DVC_ROOT"}
    environ = {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    if devices > 1:
        commands = [["-m", f"stages.{stage}"] for stage in stages]
    else:  # one start for all
        commands = [["-c", f"import runpy\nfor s in {stages}: runpy.run_module('stages.' + s, run_name='__main__')"]]
    said = ""
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=folder, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        said += done.stderr
    return said


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run in one process."""
    folder = tmp_path_factory.mktemp("one")
    write_store(folder / "data/prepared", n_per_group=40, groups=GROUPS, size=16)
    (folder / "said.txt").write_text(run(folder, *ALL), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it in which parallel stages have run again in two processes, each from what one process made.

    The stages run in such an order that none reads what another one wrote here.
    """
    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(one, folder)
    written = [*folder.glob("metrics/*"), *folder.glob("plots/*/*"), *folder.glob("models/quantized_predictions.*")]
    for path in written:
        path.unlink()
    said = run(folder, "evaluate", "quantize", "importance", "pretrain", devices=2)
    (folder / "said.txt").write_text(said, encoding="utf-8")
    return folder


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """The bytes of files, and of all files below folders, by name."""
    found = [path for name in names for path in ([folder / name] if "." in name else (folder / name).rglob("*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found) if path.is_file()}


def curve(folder: Path, stage: str) -> list[dict[str, str]]:
    with (folder / f"plots/{stage}/curve.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_evaluation_is_the_same_byte_for_byte(one, two):
    names = ("metrics/evaluate.json", "plots/evaluate", "models/quantized_predictions.safetensors")
    expected = files(one, *names)
    assert len(expected) == 5
    assert files(two, *names) == expected


def test_importance_maps_are_those_of_one_process(one, two):
    expected, found = (ImportanceMaps.load(folder / "models/importance.safetensors") for folder in (one, two))
    assert (found.groups, found.counts, found.meta) == (expected.groups, expected.counts, expected.meta)
    assert list(found.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        assert np.abs(found.layers[name] - layer).max() <= 1e-6 * np.abs(layer).max()


@pytest.mark.parametrize("stage", ["pretrain", "quantize"])
def test_training_follows_that_of_one_process(one, two, stage):
    expected, found = curve(one, stage), curve(two, stage)
    assert len(found) == len(expected) == 2
    for before, after in zip(expected, found, strict=True):
        assert list(before) == list(after)
        for name in ("train_loss", "val_loss"):
            assert float(after[name]) == pytest.approx(float(before[name]), rel=LOSS)
        for name in (name for name in before if "accuracy" in name):
            assert float(after[name]) == pytest.approx(float(before[name]), abs=SAMPLE)


@pytest.mark.parametrize("stage", ["pretrain", "quantize"])
def test_metrics_are_within_one_sample(one, two, stage):
    expected, found = (plain(json.loads((folder / f"metrics/{stage}.json").read_text())) for folder in (one, two))
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, abs=SAMPLE) if isinstance(value, float) else value), key


def plain(value: Any, path: str = "") -> dict[str, Any]:
    """Nested metrics as one table; the name of the worst group may change where two are about as bad."""
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in plain(item, f"{path}/{name}").items()}
    return {} if path.endswith("/worst_group") else {path: value}


def test_widths_are_the_same(one, two, monkeypatch):
    widths = []
    for folder in (one, two):
        monkeypatch.chdir(folder)
        widths.append(load_quantized("models/quantized.safetensors")[2].layers)
    assert all(np.array_equal(widths[0][name], widths[1][name]) for name in widths[0])


def test_one_process_speaks(one, two):
    assert "Traceback" not in (two / "said.txt").read_text(encoding="utf-8")
    lines = [line for line in (two / "said.txt").read_text(encoding="utf-8").splitlines() if line.startswith("epoch")]
    assert len(lines) == 4  # two of each training stage


def test_nothing_else_is_left_behind(one, two):
    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    alone = {"metrics/baseline.json", "metrics/bits.json", *(name for name in names(one) if "plots/bits" in name)}
    assert names(two) == names(one) - alone
