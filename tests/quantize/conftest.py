"""Weights, widths and small networks for the quantization tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap, Granularity, unit_shape
from fairquant.models.layers import quantizable_layers

GRANULARITIES: tuple[Granularity, ...] = ("per_tensor", "per_channel", "per_param")
SCALES = ("absmax", "lsq", "mse", "percentile", "weighted")


def draw_bits(
    model: nn.Module, granularity: Granularity, widths: Sequence[int] = (0, 1, 2, 4, 8, 32), seed: int = 0
) -> BitMap:
    """Return widths drawn at random for every unit of every layer."""
    random = np.random.default_rng(seed)
    shapes = {name: tuple(layer.weight.shape) for name, layer in quantizable_layers(model).items()}
    layers = {
        name: np.asarray(random.choice(widths, size=unit_shape(granularity, shape)), dtype=np.uint8)
        for name, shape in shapes.items()
    }
    return BitMap(granularity, layers)


def small_network(seed: int = 0) -> nn.Module:
    """Return a network with plain, grouped, reflected and pointwise convolutions: (B, 3, 8, 8) → (B, 2)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.Conv2d(8, 4, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 2),
        )


def brute_force(weight: np.ndarray, bits: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Quantize weight by weight in float64, by the book."""
    out = np.empty(weight.shape)
    bits, delta = np.broadcast_to(bits, weight.shape), np.broadcast_to(delta, weight.shape)
    for place in np.ndindex(*weight.shape):
        w, b, d = float(weight[place]), int(bits[place]), float(delta[place])
        if b == 32:
            out[place] = w
        elif b == 0:
            out[place] = 0.0
        elif b == 1:
            out[place] = d if w >= 0 else -d
        else:
            top = 2 ** (b - 1) - 1
            out[place] = max(-top, min(top, round(w / d))) * d
    return out


@pytest.fixture
def random_bits() -> Callable[..., BitMap]:
    return draw_bits


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    return small_network


@pytest.fixture
def by_the_book() -> Callable[..., np.ndarray]:
    return brute_force


@pytest.fixture(params=GRANULARITIES)
def granularity(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SCALES)
def scale(request: pytest.FixtureRequest) -> str:
    return str(request.param)
