"""The command line, what it asks of git, and one real suite on a pipeline of one stage through DVC's queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fairquant.config.load import parse_config
from fairquant.errors import DataError, UserError
from scripts.suite import __main__ as command_line
from scripts.suite import drive
from scripts.suite.check import check_inputs
from scripts.suite.queue import Entry, Experiment, Queue, Status

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import json, pathlib, yaml
params = yaml.safe_load(open("params.yaml"))
value = 0.8 - 0.01 * params["seed"] - (0.1 if params["quant_mode"] == "uniform" else 0)
pair = {"before": 0.8, "after": value, "change": value - 0.8}
pathlib.Path("metrics").mkdir(exist_ok=True)
json.dump({"overall": pair, "worst_group": pair, "gap": {"after": {"max_minus_min": 0.1, "eodd": 0.2}},
           "group": {"I": {"n": 5, **pair}, "II": {"n": 5, **pair}, "III": {"n": 5, **pair}},
           "cost": {"packed_mb": 1.0, "ratio": 4.0, "avg_bits": {"by_parameter": 8.0}}},
          open("metrics/evaluate.json", "w"))
"""
PIPELINE = {
    "stages": {
        "make": {
            "cmd": "python make.py",
            "deps": ["make.py"],
            "params": ["seed", "quant_mode", "quantize"],
            "metrics": [{"metrics/evaluate.json": {"cache": False}}],
        }
    }
}


@pytest.fixture
def repository(tmp_path):
    """A git repository with the real params.yaml and a pipeline of one quick stage."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "make.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (tmp_path / ".gitignore").write_text("/suite/\n/ignored/\n.coverage*\n")
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/README.md").write_text("here\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.email", "test@example.org")
    git(tmp_path, "config", "user.name", "test")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "state")


def main(folder: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return command_line.main(arguments)


def test_status_is_read_as_dvc_prints_it():
    text = (
        "Task     Name       Created       Status\n060a9ea  s-fp32-s0  09:12 AM      Running\n"
        "edaed7d  s-a-s0     Nov 20, 2026  Failed\n\nWorker status: 1 active, 1 idle\n"
    )
    assert Status.parse(text) == Status(
        (Entry("060a9ea", "s-fp32-s0", "Running"), Entry("edaed7d", "s-a-s0", "Failed")), workers=2
    )
    assert Status.parse("No experiment tasks in the queue.\n\nWorker status: 0 active, 0 idle") == Status((), 0)
    with pytest.raises(UserError, match="dvc queue status: got 'something else'"):
        Status.parse("something else")


def test_experiments_are_read_from_git(repository):
    head = git(repository, "rev-parse", "HEAD")
    git(repository, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/s-fp32-s0", head)
    git(repository, "update-ref", "refs/exps/celery/stash", head)
    queue = Queue(repository)
    assert queue.experiments() == [Experiment("s-fp32-s0", head, head)]
    assert queue.head() == head
    assert queue.params(head) == yaml.safe_load((ROOT / "params.yaml").read_text())


def test_changed_files_are_tracked_ones(repository):
    queue = Queue(repository)
    (repository / "new.txt").write_text("x")
    assert queue.changed() == []
    (repository / "make.py").write_text("x")
    assert queue.changed() == ["make.py"]


def test_a_failing_command_is_one_line(repository):
    with pytest.raises(UserError, match=r"^git show nothing:x: exited 128 \(fatal: .*\)$"):
        Queue(repository).git("show", "nothing:x")


def test_processes_are_recognised_by_what_they_run(repository):
    folder = repository / ".dvc/tmp/exps/run" / ("ab12345" + "0" * 33)
    folder.mkdir(parents=True)
    info = folder / f"{folder.name}.json"
    queue, entry = Queue(repository), Entry("ab12345", "s", "Running")
    info.write_text(json.dumps({"pid": os.getpid(), "returncode": None}))
    assert not queue.alive(entry)  # the number is in use, by another program
    child = subprocess.Popen([sys.executable, "-c", "input()", folder.name], stdin=subprocess.PIPE)
    try:
        info.write_text(json.dumps({"pid": child.pid, "returncode": None}))
        assert queue.alive(entry)
    finally:
        child.communicate(b"\n")
    assert not queue.alive(entry)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"path": "nowhere"}, "data.path: got 'nowhere', which does not exist; allowed: an existing path"),
        ({"path": "ignored"}, "data.path: got 'ignored' with untracked files (ignored/a.csv), which queued experiments "
         "do not see; allowed: an absolute path, or files tracked by git or dvc add"),
    ],
)  # fmt: skip
def test_data_that_a_copy_would_miss_is_refused(repository, settings, text):
    (repository / "ignored").mkdir()
    (repository / "ignored/a.csv").write_text("x")
    with pytest.raises(DataError) as caught:
        check_inputs(parse_config({"data": settings}), Queue(repository))
    assert str(caught.value) == text


def test_data_in_git_in_dvc_or_by_absolute_path_is_fine(repository):
    queue = Queue(repository)
    (repository / "ignored").mkdir()
    (repository / "ignored/a.csv").write_text("x")
    check_inputs(parse_config({}), queue)
    check_inputs(parse_config({"data": {"path": str(repository / "ignored")}}), queue)
    (repository / "ignored.dvc").write_text("outs: []\n")
    check_inputs(parse_config({"data": {"path": "ignored"}}), queue)


def test_weights_that_a_copy_would_miss_are_refused(repository):
    (repository / "data/weights").mkdir()
    (repository / "data/weights/a.pt").write_text("x")
    with pytest.raises(DataError, match="model.weights: got 'data/weights/a.pt' with untracked files"):
        check_inputs(parse_config({"model": {"weights": "data/weights/a.pt"}}), Queue(repository))


def test_dry_run_prints_the_commands(repository, monkeypatch, capsys):
    arguments = (
        "--name",
        "d",
        "--methods",
        "fp32",
        "uniform4",
        "--seeds",
        "0",
        "--data",
        "group=[sex,age]",
        "--dry-run",
    )
    assert main(repository, *arguments, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dvc exp run --queue -n d-fp32-s0 -S 'data.group=[sex,age]' -S quant_mode=none -S seed=0",
        "dvc exp run --queue -n d-uniform4-s0 -S 'data.group=[sex,age]' -S quant_mode=uniform -S "
        "quantize.uniform_bits=4 -S seed=0",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "best"], "error: method: got 'best'; allowed: fp32 | "),
        (["--jobs", "0", "--dry-run"], "error: --jobs: got 0; allowed: whole numbers from 1"),
        (["--set", "precision=fp16"], "error: params.yaml: precision: got 'fp16'; allowed: fp32 | bf16"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(repository, monkeypatch, capsys, arguments, text):
    assert main(repository, *arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith(text)
    assert error.count("\n") == 1


def test_params_are_needed(tmp_path, monkeypatch, capsys):
    assert main(tmp_path, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: params.yaml: not found; run from the repository's folder\n"


@pytest.mark.xdist_group("dvc")
def test_a_real_suite(repository, monkeypatch, capsys):
    """Through DVC's queue; one method cannot work with three groups; the second sitting only writes the tables."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=repository, check=True)
    commit(repository)
    monkeypatch.setattr(drive, "POLL", 0.5)
    arguments = ("--name", "r", "--methods", "fp32", "fairquantize", "--seeds", "1", "--set",
                 "assign.reducers.subtractive.unprivileged=I", "assign.reducers.subtractive.privileged=II")  # fmt: skip
    assert main(repository, *arguments, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["queued r-fp32-s1", "finished r-fp32-s1 (1/1)"]
    page = (repository / "suite/r/suite.md").read_text()
    assert "| fp32 | 1 | 79.0 | 79.0 | 10.0 | 20.0 | -1.0 | 1.00 | 8.00 | 4.00 |" in page
    assert "- fairquantize: reducer: got 'subtractive' with 3 groups (I, II, III); allowed: exactly two groups" in page
    assert git(repository, "status", "--porcelain") == ""

    before = {path.name: path.read_bytes() for path in (repository / "suite/r").iterdir()}
    assert set(before) == {"runs.csv", "summary.csv", "groups.csv", "tests.csv", "suite.md", "suite.tex", "radar.png",
                           "heat_map.png"}  # fmt: skip
    assert main(repository, *arguments, monkeypatch=monkeypatch) == 0
    assert "queued" not in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (repository / "suite/r").iterdir()} == before
