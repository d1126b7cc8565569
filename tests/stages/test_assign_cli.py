"""The assign stage as DVC runs it: a process of its own, in a folder with params.yaml and its inputs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fairquant.allocate.bitmap import BitMap
from fairquant.artifacts import write_json
from fairquant.importance.maps import ImportanceMaps

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
