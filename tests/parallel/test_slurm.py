"""The command that starts a stage's processes on the nodes of an allocation."""

from __future__ import annotations

import sys

import pytest

from fairquant.errors import UserError
from fairquant.parallel import slurm


@pytest.fixture
def own_command(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "ignore", "-m", "stages.pretrain"])
    return [sys.executable, "-W", "ignore", "-m", "stages.pretrain"]


@pytest.mark.parametrize(
    ("environ", "cores"),
    [
        ({}, []),
        ({"SLURM_CPUS_ON_NODE": "32"}, ["--cpus-per-task", "8"]),
        ({"SLURM_CPUS_ON_NODE": "2"}, ["--cpus-per-task", "1"]),
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "32"}, ["--cpus-per-task", "6"]),
    ],
)
def test_the_command(own_command, environ, cores):
    asked = ["--nodes", "2", "--ntasks", "8", "--ntasks-per-node", "4"]
    assert slurm.command(4, 2, environ) == ["srun", *asked, *cores, "--kill-on-bad-exit=1", *own_command]


def test_gpus_of_the_allocation():
    allocation = {"SLURM_JOB_ID": "1"}
    assert slurm.gpus(allocation | {"SLURM_GPUS_ON_NODE": "8"}) == 8
    assert slurm.gpus(allocation) is None
    assert slurm.gpus({"SLURM_GPUS_ON_NODE": "8"}) is None


def test_without_srun_it_is_one_line(own_command, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"srun: not found in this Slurm allocation; allowed: a PATH that holds it \(s"):
        slurm.run_again(2, 1)


def test_the_exit_code_is_srun_s(own_command, monkeypatch, tmp_path):
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 17\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.run_again(2, 1) == 17
