"""The device a stage runs on, its precision, and its seeds. Importing this module changes nothing."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from fairquant.errors import UserError

PRECISIONS = ("fp32", "bf16")


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first of cuda, mps, cpu that this machine has.

    Raises ``UserError`` for an unknown name or a device that is not there.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    present = _present()
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise UserError(f"device: got {name!r}, not on this machine; allowed: auto | {' | '.join(present)}")
    return torch.device(name)


def _present() -> list[str]:
    """Device types of this machine, the fastest first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context of a forward pass: nothing for ``fp32``, torch autocast to bfloat16 for ``bf16``.

    Parameters and their gradients stay float32 in both. Raises ``UserError`` for another precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision: got {precision!r}; allowed: {' | '.join(PRECISIONS)}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, and make torch choose deterministic algorithms.

    An operation without a deterministic version on the device still runs, and torch warns about it by name.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid
    torch.backends.cudnn.benchmark = False
