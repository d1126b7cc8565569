"""The whole way, interpreter and all: the stage's own processes, torchrun's, and those of a stand-in for srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.nursery import ROOT

pytestmark = pytest.mark.xdist_group("parallel")
TINY = ["-m", "tests.parallel.tiny"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("device: cpu\nparallel: {devices: 2}\n")
    return tmp_path


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_stage_that_starts_its_own_is_as_quiet_as_with_one(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    done = run(folder, "-W", "ignore", *TINY, TINY="fine")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 processes, sum 11\n")
    threads = {(folder / f"process-{rank}").read_text().split()[1] for rank in (0, 1)}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_torchrun_s_processes_are_taken(folder):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run(folder, "-W", "ignore", *torchrun, *TINY, TINY="mistake:1", OMP_NUM_THREADS="1")
    assert done.returncode == 1  # torchrun's own
    said = [line for line in done.stderr.splitlines() if line.startswith(("2 processes", "error: "))]
    assert said == ["2 processes, sum 11", "error: process 2 of 2: image 7: not an image; allowed: jpeg"]
    assert "raise DataError" not in done.stderr


def test_an_allocation_of_slurm_is_used_through_srun(folder):
    (folder / "params.yaml").write_text("device: cpu\nparallel: {devices: 1, nodes: 2}\n")
    (folder / "srun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.parallel.srun "$@"\n')
    (folder / "srun").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = run(folder, "-W", "ignore", *TINY, TINY="mistake:0", PATH=path, SLURM_JOB_ID="7", OMP_NUM_THREADS="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "2 processes, sum 11",
        "error: process 1 of 2: image 7: not an image; allowed: jpeg",
    ]
