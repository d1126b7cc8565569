"""A small learnable problem and a small network for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fairquant.config.schema import TrainSection
from fairquant.data.store import Store
from fairquant.train.hooks import Hooks

CPU = torch.device("cpu")


@pytest.fixture
def store(make_store: Callable[..., Store], tmp_path: Path) -> Store:
    """96 training samples of two classes in two groups, 8 × 8 pixels."""
    return make_store(tmp_path / "prepared", n_per_group=80, size=8)


@pytest.fixture
def at_epoch() -> type[EpochHook]:
    """Return hooks that call a function at the start of each epoch."""
    return EpochHook


@pytest.fixture
def network() -> Callable[[], nn.Module]:
    """Return a factory of equal networks with batch norm and dropout."""
    return make_network


class EpochHook(Hooks):
    """Calls a function with the number of each epoch before it starts."""

    def __init__(self, function: Callable[[int], object] | None) -> None:
        self.function = function

    def epoch_start(self, epoch: int) -> None:
        if self.function is not None:
            self.function(epoch)


def make_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 2)
        )


@pytest.fixture
def section() -> Callable[..., TrainSection]:
    """Return a factory of quick settings; keyword arguments change them."""
    quick = {"epochs": 3, "batch_size": 32, "lr": 0.01, "augment": "off"}
    return lambda **changes: TrainSection(**(quick | changes))
