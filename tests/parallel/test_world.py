"""What launchers say of a process, and what params.yaml may say beside it."""

from __future__ import annotations

import pytest

from fairquant.config.load import parse_config
from fairquant.errors import ConfigError
from fairquant.parallel.world import LIFELINE, World, check, from_environment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_each_launcher_is_understood():
    assert from_environment(TORCHRUN) == World(5, 8, 1, 4, "torchrun")
    assert from_environment(TORCHRUN | {LIFELINE: "3"}) == World(5, 8, 1, 4, "stage")
    assert from_environment(SRUN) == World(5, 8, 1, 4, "srun")


def test_torchrun_inside_slurm_is_torchrun():
    assert from_environment(SRUN | TORCHRUN) == World(5, 8, 1, 4, "torchrun")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "4"},
        {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        SRUN | {"SLURM_NTASKS": "1"},  # an interactive shell
    ],
)
def test_no_launcher(environ):
    assert from_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (TORCHRUN | {"LOCAL_RANK": "x"}, r"LOCAL_RANK \(environment\): got 'x'; allowed: what torchrun or srun set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"LOCAL_RANK \(environment\): got nothing; allowed: what torchrun or srun"),
        (SRUN | {"SLURM_NTASKS": "7"}, "SLURM_NTASKS: got 7 tasks on 2 nodes; allowed: as many tasks on every node"),
    ],
)
def test_a_broken_environment_is_one_line(environ, line):
    with pytest.raises(ConfigError, match=line):
        from_environment(environ)


WORLD = World(rank=5, size=8, local_rank=1, local_size=4, launcher="torchrun")


@pytest.mark.parametrize(
    "parallel", [{}, {"devices": 4, "nodes": 2}, {"devices": "auto"}, {"devices": "auto", "nodes": 2}]
)
def test_what_fits(parallel):
    check(WORLD, parse_config({"parallel": parallel}))


@pytest.mark.parametrize(
    ("parallel", "line"),
    [
        (
            {"devices": 2, "nodes": 4},
            "parallel.devices: got 2, where torchrun started 4 on each machine; allowed: 4, or auto, or 1 with "
            r"parallel.nodes 1 \(whatever was started\)",
        ),
        ({"devices": 4}, "parallel.nodes: got 1, where torchrun started processes on 2; allowed: 2, or 1 with"),
        ({"devices": "auto", "nodes": 3}, "parallel.nodes: got 3, where torchrun started processes on 2; allowed: 2"),
    ],
)
def test_what_does_not_fit_is_one_line(parallel, line):
    with pytest.raises(ConfigError, match=line):
        check(WORLD, parse_config({"parallel": parallel}))
