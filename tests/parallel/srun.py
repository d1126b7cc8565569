"""What srun does, on this machine: one process per task, told of itself in Slurm's variables."""

from __future__ import annotations

import os
import subprocess
import sys


def main(arguments: list[str]) -> int:
    """Start the tasks that ``arguments`` ask for; return the largest exit code, as srun does."""
    options: dict[str, str] = {}
    while arguments[0].startswith("--"):
        name, has, value = arguments.pop(0).partition("=")
        options[name] = value if has else arguments.pop(0)
    nodes, tasks, each = (int(options[name]) for name in ("--nodes", "--ntasks", "--ntasks-per-node"))
    assert tasks == nodes * each
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS_PER_NODE": str(each),
        "SLURM_NODELIST": "127.0.0.1",
    }
    running = []
    for rank in range(tasks):
        place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % each, "SLURM_NODEID": rank // each}
        environ = {**os.environ, **step, **{name: str(value) for name, value in place.items()}}
        running.append(subprocess.Popen(arguments, env=environ))
    return max(process.wait() for process in running)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
