"""Step sizes measured anew at the start of every epoch, for the scale methods that ask for it (percentile, mse)."""

from __future__ import annotations

from torch import nn

from fairquant.quantize.attach import refresh_scales
from fairquant.train.hooks import Hooks


class RefreshScales(Hooks):
    """Refresh the step sizes of ``model``'s quantizers before each epoch."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model with quantizers."""
        self.model = model

    def epoch_start(self, epoch: int) -> None:
        """Measure the step sizes anew."""
        refresh_scales(self.model)
