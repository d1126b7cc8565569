"""Every stage, run as DVC runs it, on a mistaken params.yaml: one line, exit code 2, no torch, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fairquant import plugins

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("prepare", "pretrain", "baseline", "importance", "assign", "quantize", "evaluate", "export", "report")
BAD = "reducer: no_such\nseed: -1\n"
LINE = (
    "error: params.yaml: seed: got -1; allowed: a number in [0, 4294967296); "
    f"reducer: got 'no_such'; allowed: {' | '.join(plugins.names('reducer'))}\n"
)
NO_TORCH = "import sys\nsys.modules['torch'] = None\nsys.modules['torchvision'] = None\n"
"""A ``sitecustomize`` under which any import of torch fails with a traceback."""


def run_stage(stage: str, folder: Path, *, torch: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``python -m stages.<stage>`` in ``folder``."""
    paths = [str(ROOT)]
    if not torch:
        blocker = folder.parent / "no_torch"
        blocker.mkdir(exist_ok=True)
        (blocker / "sitecustomize.py").write_text(NO_TORCH)
        paths.insert(0, str(blocker))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("stage", STAGES)
def test_a_mistake_is_one_line_before_torch_and_before_any_file(stage, folder):
    (folder / "params.yaml").write_text(BAD)
    done = run_stage(stage, folder, torch=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", LINE)
    assert [path.name for path in folder.rglob("*")] == ["params.yaml"]


MISTAKES = {
    "unknown key": ("pretrain: {lrr: 0.1}\n", "pretrain.lrr: unknown key (did you mean 'lr'?), got 0.1; allowed: "),
    "wrong type": ("pretrain: {epochs: many}\n", "pretrain.epochs: got 'many'; allowed: a whole number in [0, inf)"),
    "out of range": ("assign: {reducers: {cvar: {alpha: 2}}}\n", "alpha: got 2; allowed: a number in [0, 1]"),
    "levels do not sum to 1": ("assign: {levels: [0.5, 0.4, 0.2]}\n", "allowed: shares that sum to 1"),
    "bits and levels differ in length": ("assign: {bits: [2, 8]}\n", "allowed: one level per bit-width"),
    "subtractive without names": ("reducer: subtractive\n", "allowed: a group name (reducer: subtractive needs both)"),
    "subset": ("data: {train_subset: 0}\n", "got 0; allowed: a fraction in (0, 1] or a whole number above 1"),
    "device": ("device: gpu\n", "device: got 'gpu'; allowed: auto | cpu | cuda | mps"),
    "not YAML": ("seed: [1\n", "params.yaml: not valid YAML: "),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_each_kind_of_mistake(kind, folder):
    text, expected = MISTAKES[kind]
    (folder / "params.yaml").write_text(text)
    done = run_stage("prepare", folder, torch=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: params.yaml: ")
    assert expected in done.stderr
    assert [path.name for path in folder.rglob("*")] == ["params.yaml"]


def test_subtractive_with_other_than_two_groups(folder):
    (folder / "params.yaml").write_text(
        "reducer: subtractive\nassign: {reducers: {subtractive: {unprivileged: a, privileged: b}}}\n"
    )
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "data/prepared/meta.json").write_text('{"groups": ["a", "b", "c"]}')
    done = run_stage("pretrain", folder, torch=False)
    line = "error: params.yaml: reducer: got 'subtractive' with 3 groups (a, b, c); allowed: exactly two groups\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("stage", ("prepare", "report"))
def test_no_params(stage, folder):
    done = run_stage(stage, folder)
    line = "error: params.yaml: not found; run from the folder that holds params.yaml\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("stage", ("assign", "report"))
def test_no_inputs(stage, folder):
    """A stage whose input is missing says which, and needs no torch to say it."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = run_stage(stage, folder, torch=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(("error: m", "error: plots/"))
    assert done.stderr.endswith("not found; run the stage that writes it (dvc repro)\n")
    assert [path.name for path in folder.rglob("*")] == ["params.yaml"]


def test_report_runs_without_torch(folder):
    from tests.report.conftest import write_run

    write_run(folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = run_stage("report", folder, torch=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "female × ≥60 (worst after)" in (folder / "report/group_table.txt").read_text()
