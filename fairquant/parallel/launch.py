"""How a stage comes to run in several processes: it starts them itself, or torchrun or Slurm did. No torch here.

``parallel`` of params.yaml says devices × nodes. One process and no launcher: nothing happens and nothing is imported.
On one machine the stage starts its own processes; in an allocation of Slurm it runs itself again through srun; what
torchrun or a job step of Slurm started is taken as it is.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

from fairquant.config import Config
from fairquant.errors import ConfigError
from fairquant.parallel import slurm
from fairquant.parallel.supervise import supervise
from fairquant.parallel.world import check, from_environment


def start(config: Config) -> AbstractContextManager[None]:
    """Return the context in which a process does its part; give it to ``stage.run``.

    The process that starts others does not return from here: it ends with their exit code.
    Raises ``ConfigError`` where ``parallel`` does not fit the launcher, or needs one that is not there.
    """
    world = from_environment(os.environ)
    if world is None:
        nodes, devices = config.parallel.nodes, _devices(config)
        if (devices, nodes) == (1, 1):
            return nullcontext()
        if slurm.in_allocation(os.environ):
            raise SystemExit(slurm.run_again(devices, nodes))
        if nodes > 1:
            raise ConfigError(
                f"parallel.nodes: got {nodes}, with nothing that starts processes on other machines; allowed: 1, or "
                f"a Slurm allocation, or on each machine: torchrun --nnodes {nodes} --nproc-per-node {devices} ... "
                "-m stages.NAME (docs/scaling.md)"
            )
        raise SystemExit(supervise(devices))
    check(world, config)
    if world.size == 1:
        return nullcontext()
    from fairquant.parallel.member import member

    return member(world, config.device)


def _devices(config: Config) -> int:
    """Return the number of processes on a machine; ``auto`` is every GPU where there are some, else 1."""
    devices = config.parallel.devices
    if devices != "auto":
        return devices
    if config.device in ("cpu", "mps"):
        return 1
    on_node = slurm.gpus(os.environ)
    if on_node is not None:
        return on_node
    import torch

    return max(1, torch.cuda.device_count())
