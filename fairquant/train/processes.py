"""What training in several processes adds to the loop: which last batch is left out, seeds, one state for all.

Every process draws the same order and the same augmentation, and has a part of each batch (``data.batches``). Where
batch norm sees the whole batch (``parallel.batch_norm: global``) a run computes what one process computes, up to the
rounding of sums and the masks of dropout, and a killed one may go on in another number of processes. Where it sees each
part (``local``), the running statistics of the processes are averaged at the end of every epoch, and the number of
processes is a setting of the run like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from fairquant.config.parallel import ParallelSection
from fairquant.errors import DataError, UserError
from fairquant.parallel.collectives import add_up, copy_from_first, gather_objects, rank, world_size
from fairquant.train.checkpoint import fingerprint

ALONE = ParallelSection()
"""The default section: what it says of several processes does not matter to one."""


def last_is_left_out(samples: int, batch_size: int, parallel: ParallelSection) -> bool:
    """Return whether a smaller last batch is too small for batch norm, which cannot normalise a single sample.

    Of a last batch some processes may have nothing, where batch norm is global.

    Raises:
        UserError: a whole batch is too small: one sample in each process, or two where batch norm is local.
        DataError: there is not one such batch.

    >>> last_is_left_out(65, 32, ALONE), last_is_left_out(66, 32, ALONE)  # one process
    (True, False)
    """
    local = parallel.batch_norm == "local"
    least = max(2, world_size() * (2 if local else 1))
    if batch_size < least:
        other = ", or parallel.batch_norm: global" if local else ""
        raise UserError(
            f"batch_size: got {batch_size} for {world_size()} processes; allowed: at least {least}, "
            f"{'two samples' if local else 'one sample'} for each{other}"
        )
    if samples < least:
        raise DataError(f"training: got {samples} train samples; allowed: at least {least}")
    return 0 < samples % batch_size < (least if local else 2)


def epoch_seeds(seed: int, epoch: int) -> tuple[int, int]:
    """Return the seeds of dropout, another on every process, and of order and augmentation, the same on all."""
    own, shuffle = np.random.SeedSequence([seed, epoch]).generate_state(2).tolist()
    if rank():
        own = int(np.random.SeedSequence([seed, epoch, rank()]).generate_state(1)[0])
    return own, shuffle


def parallel_key(parallel: ParallelSection) -> list[str | int]:
    """Return what a run's results depend on, beyond rounding, JSON-like: its part of the checkpoint's name."""
    if parallel.batch_norm == "global":
        return [parallel.strategy, "global"]
    return [parallel.strategy, "local", world_size()]


def same_everywhere(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers; what modules cache in eval mode is dropped."""
    if world_size() > 1:
        was_training = model.training
        model.train()
        copy_from_first(model.state_dict().values())
        model.train(was_training)


@torch.no_grad()
def average_statistics(model: nn.Module, parallel: ParallelSection) -> None:
    """Replace running statistics that follow each process's part of the batches by their averages."""
    if world_size() == 1:
        return
    kind = _InstanceNorm if parallel.batch_norm == "global" else _NormBase
    found = [buffer for module in model.modules() if isinstance(module, kind) for buffer in module.buffers()]
    running = [buffer for buffer in found if buffer.is_floating_point()]
    add_up(running)
    for buffer in running:
        buffer.div_(world_size())


def require_same_run(key: str) -> None:
    """Raise ``UserError`` where the processes do not train the same: ``key`` is that of the checkpoint."""
    if len(set(gather_objects(key))) > 1:
        raise UserError(
            "parallel: got processes with different settings, data, code or versions of torch; allowed: the same on "
            "every machine"
        )


def require_same_end(state: Mapping[str, Tensor]) -> None:
    """Raise ``UserError`` where the processes have not come to the same weights, bit for bit."""
    if world_size() == 1:
        return
    found = gather_objects(fingerprint(state))
    others = [number + 1 for number, one in enumerate(found) if one != found[0]]
    if others:
        raise UserError(
            f"parallel: got other weights in process {others[0]} of {len(found)} than in the first; allowed: machines "
            "and GPUs of one kind, which compute alike"
        )
