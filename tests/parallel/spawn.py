"""Run a function in several processes that form torch's default process group, as ranks of one run."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def in_processes(function: Callable[..., T], *arguments: Any, count: int = 2) -> list[T]:
    """Return what ``function(*arguments)`` returns in each of ``count`` processes (gloo, one thread each).

    ``function`` stands at a module's top level, so that the processes can import it; arguments and results are
    pickled (tensors as numpy arrays). Starting costs some seconds, so one call measures all that a module compares.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(count, mp_context=context) as pool:
        meeting = (Path(folder) / "meeting").as_uri()
        waiting = [pool.submit(_member, rank, count, meeting, function, arguments) for rank in range(count)]
        return [future.result(timeout=300) for future in waiting]


def _member(rank: int, count: int, meeting: str, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=timedelta(seconds=120))
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()
