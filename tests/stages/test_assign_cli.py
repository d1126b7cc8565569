"""The assign stage as DVC runs it: a process of its own, in a folder with params.yaml and its inputs."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fairquant.allocate.bitmap import BitMap
from fairquant.artifacts import write_json
from fairquant.importance.maps import ImportanceMaps
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"unprivileged": "x", "privileged": "y"}
SHAPES = {"conv": (10, 3, 1, 1), "fc": (4, 10)}


def _run(folder, *command, **params):
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    layers = {name: rng.random((2, *shape), dtype=np.float32) for name, shape in SHAPES.items()}
    ImportanceMaps(("dark", "light"), (4, 9), layers).save(tmp_path / "models/importance.safetensors")
    kinds = {"conv": "conv2d", "fc": "linear"}
    info = {
        "layers": {name: {"shape": shape, "kind": kinds[name]} for name, shape in SHAPES.items()},
        "roles": {"first": "conv", "last": "fc", "classifier": "fc"},
        "parameters": {"total": 84, "quantizable": 70, "rest": 14},
        "macs": {"conv": 3000, "fc": 40},
    }
    write_json(tmp_path / "models/pretrained.json", info)
    return tmp_path


def test_writes_bits_metrics_and_tables(folder):
    done = _run(folder, "-m", "stages.assign", reducer="cvar", granularity="per_param")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    bits = BitMap.load(folder / "models/bits.safetensors")
    assert {name: value.shape for name, value in bits.layers.items()} == SHAPES
    metrics = json.loads((folder / "metrics/bits.json").read_text())
    assert metrics["avg_bits"]["by_parameter"] == 5.2  # 70 weights: 14 at 2, 28 at 4, 28 at 8 bits
    assert metrics["share"]["2bit"]["parameters"] == 0.2
    assert set(metrics) == {"avg_bits", "size", "gbops", "share"}
    for name in ("layers", "bit_distribution"):
        with (folder / f"plots/bits/{name}.csv").open() as file:
            assert [row["layer"] for row in csv.DictReader(file)] == list(SHAPES)


def test_same_inputs_same_bytes(folder):
    written = ("models/bits.safetensors", "metrics/bits.json", "plots/bits/layers.csv")
    runs = []
    for _ in range(2):
        assert _run(folder, "-m", "stages.assign").returncode == 0
        runs.append([(folder / name).read_bytes() for name in written])
    assert runs[0] == runs[1]


def test_needs_no_torch(folder):
    code = "import sys, runpy; sys.argv = ['assign']; runpy.run_module('stages.assign', run_name='__main__')\n"
    done = _run(folder, "-c", code + "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'timm')])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    "params, line",
    [
        (
            {"assign": {"protect": {"layers": ["fcc"]}}},
            "error: assign.protect.layers: got 'fcc', which matches no layer; "
            "allowed: first | last | classifier | a pattern of layer names (close: fc)",
        ),
        (
            {
                "reducer": "subtractive",
                "assign": {"reducers": {"subtractive": {"unprivileged": "x", "privileged": "y"}}},
            },
            "error: assign.reducers.subtractive.unprivileged: got 'x'; allowed: one of the groups dark | light",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(folder, params, line):
    done = _run(folder, "-m", "stages.assign", **params)
    assert (done.returncode, done.stderr.strip()) == (2, line)
    assert not (folder / "models/bits.safetensors").exists()


def test_a_missing_input_is_one_line(folder):
    (folder / "models/importance.safetensors").unlink()
    done = _run(folder, "-m", "stages.assign")
    assert done.returncode == 2
    assert done.stderr == (
        "error: models/importance.safetensors: not found; run the stage that writes it (dvc repro)\n"
    )


def test_the_script_stays_thin():
    assert len((ROOT / "stages/assign.py").read_text().splitlines()) <= 40


class TestOptimal:
    """allocator: optimal, from a model and data of its own to every file; in this process, which has torch loaded."""

    WRITTEN = (
        "models/bits.safetensors", "metrics/bits.json", "plots/bits/layers.csv", "plots/bits/bit_distribution.csv",
        "plots/bits/bits.csv", "plots/bits/pareto.csv",
    )  # fmt: skip
    PARAMS = {
        "allocator": "optimal",
        "reducer": "max",
        "device": "cpu",
        "budget": {"avg_bits": 3},
        "assign": {"optimal": {"bits": [0, 1, 2, 4, 8]}, "explain": {"budgets": [1, 2]}},
        "quantize": {"scale": "weighted", "correction_images": 8},
    }

    @pytest.fixture
    def workspace(self, tmp_path, make_store, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        make_store(tmp_path / "data/prepared", n_per_group=20, size=16)
        spec = ModelSpec("test_resnet", ("benign", "malignant"), 16, (0.4,) * 3, (0.2,) * 3)
        save_model(tmp_path / "models/pretrained.safetensors", build(spec, seed=0), spec)
        info = json.loads((tmp_path / "models/pretrained.json").read_text())
        rng = np.random.default_rng(0)
        layers = {
            name: rng.gamma(0.5, size=(2, *layer["shape"])).astype(np.float32) for name, layer in info["layers"].items()
        }
        maps = ImportanceMaps(("light", "dark"), (9, 9), layers, {"metric": "fisher"})
        maps.save(tmp_path / "models/importance.safetensors")
        yield tmp_path
        torch.use_deterministic_algorithms(False)

    def run(self, **params):
        Path("params.yaml").write_text(yaml.safe_dump(self.PARAMS | params))
        runpy.run_path(str(ROOT / "stages/assign.py"), run_name="__main__")

    def refused(self, capsys, **params):
        with pytest.raises(SystemExit) as stop:
            self.run(**params)
        assert stop.value.code == 2
        assert not [name for name in self.WRITTEN if Path(name).exists()]
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    def test_end_to_end_twice_the_same_bytes(self, workspace):
        runs = []
        for _ in range(2):
            self.run()
            runs.append([(workspace / name).read_bytes() for name in self.WRITTEN])
        assert runs[0] == runs[1]
        metrics = json.loads((workspace / "metrics/bits.json").read_text())
        assert 2.9 < metrics["avg_bits"]["by_parameter"] <= 3
        assert set(metrics["predicted"]["loss"]) == {"light", "dark"} and metrics["predicted"]["gap"] <= 0.001
        bits = BitMap.load(workspace / "models/bits.safetensors")
        assert list(bits.steps) == list(bits.layers)
        with (workspace / "plots/bits/pareto.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["budget"] for row in rows] == ["chosen"] * 2 + ["1.0"] * 2 + ["2.0"] * 2
        assert all(0 <= float(row["accuracy"]) <= 1 and row["measured"] for row in rows)
        with (workspace / "plots/bits/bits.csv").open() as file:
            layers = list(csv.DictReader(file))
        total = sum(float(row["loss:dark"]) for row in layers)
        assert total == pytest.approx(metrics["predicted"]["loss"]["dark"], rel=1e-4)

    @pytest.mark.parametrize(
        "params, line",
        [
            (
                {
                    "reducer": "subtractive",
                    "assign": {"reducers": {"subtractive": {"unprivileged": "dark", "privileged": "light"}}},
                },
                "params.yaml: reducer: got 'subtractive' with allocator optimal; allowed: balanced | cvar | max | mean",
            ),
            (
                {"budget": {"avg_bits": None}},
                "params.yaml: budget: got null for avg_bits, size_mb, gbops with allocator optimal; allowed: at least "
                "one limit",
            ),
            (
                {"budget": {"avg_bits": 1}, "assign": {"optimal": {"bits": [2, 4]}}},
                "budget.avg_bits: got 1; allowed: at least 2, what 2 bits everywhere need (assign.optimal.bits, "
                "granularity per_channel)",
            ),
            (
                {"quant_mode": "baq_learnable"},
                "params.yaml: quantize.scale: got 'weighted' with quant_mode baq_learnable, which sets its own step "
                "sizes; allowed: absmax",
            ),
            (
                {"assign": {"optimal": {"couple": [["nowhere"]]}}},
                "assign.optimal.couple: got 'nowhere', which matches no layer; allowed: first | last | classifier | a "
                "pattern of layer names (close: ",
            ),
        ],
        ids=["subtractive", "no budget", "infeasible", "baq", "couple"],
    )
    def test_mistakes_are_one_line_and_write_nothing(self, workspace, capsys, params, line):
        assert self.refused(capsys, **params).startswith(f"error: {line}")

    def test_absent_data_are_one_line_and_write_nothing(self, workspace, capsys):
        (workspace / "data/prepared/images.npy").unlink()
        assert "data/prepared/images.npy" in self.refused(capsys)


def test_every_file_is_written_for_every_allocator(folder):
    assert _run(folder, "-m", "stages.assign").returncode == 0
    header = "budget,avg_bits,packed_mb,group,predicted,measured,accuracy\n"
    assert (folder / "plots/bits/pareto.csv").read_text() == header
    with (folder / "plots/bits/bits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == list(SHAPES)
    for group in ("dark", "light"):
        assert sum(float(row[f"importance_share:{group}"]) for row in rows) == pytest.approx(1, abs=1e-5)
