"""Which process of how many this one is, as the launcher's environment says. No torch.

torchrun, a job step of Slurm and a stage that starts its own processes (``fairquant.parallel.supervise``) each describe
a process to itself in environment variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fairquant.config import Config
from fairquant.errors import ConfigError

Launcher = Literal["stage", "torchrun", "srun"]
LIFELINE = "FAIRQUANT_LIFELINE"
"""Names the pipe whose end tells a process that the stage which started it is gone."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: Launcher

    @property
    def name(self) -> str:
        """How messages call this process.

        >>> World(rank=1, size=4, local_rank=1, local_size=4, launcher="torchrun").name
        'process 2 of 4'
        """
        return f"process {self.rank + 1} of {self.size}"


def from_environment(environ: Mapping[str, str]) -> World | None:
    """Return what a launcher says of this process, None where there is none.

    A job step of one task is no launcher: a shell in an allocation is one.

    >>> torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    >>> from_environment(torchrun)
    World(rank=3, size=4, local_rank=1, local_size=2, launcher='torchrun')
    >>> from_environment({})
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return World(
            rank=_number(environ, "RANK"),
            size=_number(environ, "WORLD_SIZE"),
            local_rank=_number(environ, "LOCAL_RANK"),
            local_size=_number(environ, "LOCAL_WORLD_SIZE"),
            launcher="stage" if LIFELINE in environ else "torchrun",
        )
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_NTASKS", "1") != "1":
        size, nodes = _number(environ, "SLURM_NTASKS"), int(environ.get("SLURM_NNODES", "1"))
        if size % nodes:
            raise ConfigError(f"SLURM_NTASKS: got {size} tasks on {nodes} nodes; allowed: as many tasks on every node")
        rank, local_rank = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
        return World(rank=rank, size=size, local_rank=local_rank, local_size=size // nodes, launcher="srun")
    return None


def _number(environ: Mapping[str, str], name: str) -> int:
    """Return a variable that a launcher sets, as a number."""
    value = environ.get(name)
    if value is None or not value.isdecimal():
        given = "nothing" if value is None else repr(value)
        raise ConfigError(f"{name} (environment): got {given}; allowed: what torchrun or srun set, or no RANK at all")
    return int(value)


def check(world: World, config: Config) -> None:
    """Hold what a launcher started against ``parallel``; 1 device on 1 node, the default, asks for nothing.

    Raises ``ConfigError`` for other numbers of processes or machines.
    """
    devices, nodes = config.parallel.devices, config.parallel.nodes
    if (devices, nodes) == (1, 1):
        return
    started = world.size // world.local_size
    if devices != "auto" and devices != world.local_size:
        raise ConfigError(
            f"parallel.devices: got {devices}, where {world.launcher} started {world.local_size} on each machine; "
            f"allowed: {world.local_size}, or auto, or 1 with parallel.nodes 1 (whatever was started)"
        )
    if nodes != started and (nodes > 1 or devices != "auto"):
        raise ConfigError(
            f"parallel.nodes: got {nodes}, where {world.launcher} started processes on {started}; "
            f"allowed: {started}, or 1 with parallel.devices 1 (whatever was started)"
        )
