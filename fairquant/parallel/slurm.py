"""A stage inside a Slurm allocation: srun starts its processes on the nodes. No torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

from fairquant.errors import UserError
from fairquant.parallel.supervise import free_port


def in_allocation(environ: Mapping[str, str]) -> bool:
    """Return whether this process lies in an allocation, but not in a job step of it: in a batch script or a shell.

    >>> in_allocation({"SLURM_JOB_ID": "7"}), in_allocation({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    (True, False)
    """
    return "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ


def gpus(environ: Mapping[str, str]) -> int | None:
    """Return the number of GPUs that the allocation has on a node, None where it does not say.

    >>> gpus({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"})
    4
    """
    given = environ.get("SLURM_GPUS_ON_NODE", "") if in_allocation(environ) else ""
    return int(given) if given.isdecimal() and int(given) > 0 else None


def command(devices: int, nodes: int, environ: Mapping[str, str]) -> list[str]:
    """Return what starts this process's own command ``devices`` times on each of ``nodes`` nodes.

    A task gets its part of the node's cores, which srun does not take from the allocation by itself, and one task that
    fails ends the others.
    """
    options = ["--nodes", str(nodes), "--ntasks", str(devices * nodes), "--ntasks-per-node", str(devices)]
    given, on_node = environ.get("SLURM_CPUS_PER_TASK", ""), environ.get("SLURM_CPUS_ON_NODE", "")
    if given.isdecimal():
        options += ["--cpus-per-task", given]
    elif on_node.isdecimal():
        options += ["--cpus-per-task", str(max(1, int(on_node) // devices))]
    return ["srun", *options, "--kill-on-bad-exit=1", sys.executable, *sys.orig_argv[1:]]


def run_again(devices: int, nodes: int) -> int:
    """Run this process's own command as a job step; return its exit code.

    Its processes meet at a port of this step: that of the job would be the same for two stages at a time.
    """
    line = command(devices, nodes, os.environ)
    try:
        return subprocess.call(line, env={"MASTER_PORT": str(free_port()), **os.environ})
    except KeyboardInterrupt:
        return 130
    except FileNotFoundError:
        raise UserError(
            f"srun: not found in this Slurm allocation; allowed: a PATH that holds it ({shlex.join(line)})"
        ) from None
