"""What quantizers of weights share: the copy kept for evaluation, and the memory used again in training."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from fairquant.quantize.layout import identity
from fairquant.quantize.rows import Workspace


class KeptWeight(nn.Module):
    """Parametrization of a weight that is computed once for evaluation; each mode drops the memory of the other."""

    _kept: tuple[weakref.ref[Tensor], tuple[object, ...], Tensor] | None

    def __init__(self) -> None:
        """Start with nothing kept."""
        super().__init__()
        self._kept = None
        self._workspace = Workspace()

    @property
    def workspace(self) -> Workspace | None:
        """Memory for the result of a training step; None outside of training, where results outlive the step."""
        return self._workspace if self.training and torch.is_grad_enabled() else None

    def kept(self, weight: Tensor, compute: Callable[[Tensor], Tensor], *state: Tensor | None, learns: bool) -> Tensor:
        """Return ``compute(weight)``; in evaluation without gradients, the copy made at the first call.

        Args:
            weight: the full-precision weight.
            compute: the quantization.
            state: what it depends on besides; the copy is made anew when one of these, or the weight, changes.
            learns: whether a gradient may be asked for.
        """
        if self.training or (torch.is_grad_enabled() and learns) or weight.is_inference():
            return compute(weight)
        key = (identity(weight), *(None if tensor is None else identity(tensor) for tensor in state))
        if self._kept is None or self._kept[0]() is not weight or self._kept[1] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (weakref.ref(weight), key, compute(weight))
        return self._kept[2]

    def train(self, mode: bool = True) -> Self:
        """Set the mode."""
        if mode:
            self._kept = None
        else:
            self._workspace = Workspace()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept: a copy makes its own."""
        return self.__dict__ | {"_kept": None, "_workspace": Workspace()}
