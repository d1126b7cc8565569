"""How processes find one another: Lightning Fabric joins torch's default process group, as the launcher describes it.

gloo on the CPU, nccl on CUDA.
"""

from __future__ import annotations

import logging
import os
import warnings

import torch
import torch.distributed as dist
from torch.distributed import DistNetworkError

from fairquant.devices import resolve_device
from fairquant.errors import UserError
from fairquant.parallel.collectives import wait_for_all
from fairquant.parallel.world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that Fabric imports
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy


def meet(world: World, device: str) -> None:
    """Return when every process of ``world`` is there. On CUDA, make this process's GPU the current one.

    Raises ``UserError`` where the machine has not a GPU for each of its processes, for a device other than cpu and
    cuda, or where the first process's address is taken or out of reach.
    """
    kind = resolve_device(device).type
    if kind == "mps":
        raise UserError(f"device: got {device!r}, here mps, for {world.size} processes; allowed: cpu | cuda")
    devices = [torch.device("cpu")] * world.local_size if kind == "cpu" else _gpus(world)
    for name in ("lightning_fabric", "lightning_utilities", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = DDPStrategy(parallel_devices=devices, cluster_environment=_environment(world))
        fabric = Fabric(accelerator=kind, num_nodes=world.size // world.local_size, strategy=strategy)
        try:
            fabric.launch()
        except DistNetworkError as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(f"{address}: {world.name} did not meet the others there; {_reason(error)}") from None


def _reason(error: DistNetworkError) -> str:
    """Return the first sentence of what the network said."""
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _gpus(world: World) -> list[torch.device]:
    """Return the GPU of each of this machine's processes. Slurm may show each its own one only."""
    found = torch.cuda.device_count()
    if found == 1 and world.launcher == "srun":
        return [torch.device("cuda", 0)] * world.local_size
    if found < world.local_size:
        raise UserError(
            f"parallel.devices: got {world.local_size} processes on this machine, which has {found} GPUs; "
            f"allowed: 1 to {found}, or auto, or device cpu"
        )
    return [torch.device("cuda", number) for number in range(world.local_size)]


def _environment(world: World) -> ClusterEnvironment:
    """Return Fabric's reader of what the launcher left in the environment."""
    if world.launcher == "torchrun":
        return TorchElasticEnvironment()
    if world.launcher == "stage":
        return LightningEnvironment()
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(world.local_size))  # Fabric asks for it; srun --ntasks has none
    return SLURMEnvironment(auto_requeue=False)


def part() -> None:
    """Leave the process group, when all have come to the end."""
    wait_for_all()
    dist.destroy_process_group()
