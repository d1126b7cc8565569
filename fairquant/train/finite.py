"""A loss that is NaN or infinite ends the training with one line that says where it was first seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairquant.errors import UserError


def require_finite(losses: Sequence[Tensor], epoch: int, first_step: int) -> None:
    """Raise ``UserError`` for the first of some steps' losses, scalars, that is not finite; waits for the device."""
    if not losses:
        return
    values = torch.stack(list(losses)).cpu()
    broken = torch.nonzero(~torch.isfinite(values))
    if len(broken):
        step = int(broken[0])
        raise not_finite(f"training loss at epoch {epoch}, step {first_step + step}", values[step].item())


def not_finite(where: str, value: float) -> UserError:
    """Return the error for ``value``.

    >>> not_finite("validation loss after epoch 1", float("nan"))
    UserError('validation loss after epoch 1: got nan; allowed: a finite number (lower lr, or precision: fp32)')
    """
    return UserError(f"{where}: got {value}; allowed: a finite number (lower lr, or precision: fp32)")
