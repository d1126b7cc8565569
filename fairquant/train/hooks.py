"""What a mode may do inside the training loop, beside its loss terms. Every method here does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class Hooks:
    """Base class: a mode overrides what it needs. State that a resumed run must find again goes through ``state``."""

    def begin(self, epochs: int, steps_per_epoch: int) -> None:
        """Be told how long the run is; called once, before ``load_state``."""

    def epoch_start(self, epoch: int) -> None:
        """Act before the first step of ``epoch`` (from 1)."""

    def before_step(self, step: int) -> None:
        """Act between backward and optimizer step ``step``; ``grad`` is that of the whole batch, on every process."""

    def after_step(self, step: int) -> None:
        """Act after optimizer step ``step`` (from 1, counted over all epochs); gradients are still there."""

    def selectable(self, epoch: int) -> bool:
        """Return whether the weights at the end of ``epoch`` may be the ones that are kept."""
        return True

    def learning_rates(self) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """Return groups of parameters with a learning rate of their own; the schedule scales it alike."""
        return ()

    def state(self) -> Mapping[str, Any]:
        """Return plain numbers, strings and tensors that a resumed run needs."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
