"""Frozen units: they do not move under any optimizer, the rest does, and the settled model is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.quantize.attach import bitmap_of, quantize_model, quantizers
from fairquant.quantize.frozen import attach_frozen, freeze, frozen_units, settle_frozen

OPEN = 32
HALF = {"0": np.array([2, 32, 8, 32, 4, 32], np.uint8), "3": np.array([32, 8], np.uint8)}
REST = {"0": np.array([8, 4, 2, 2, 8, 4], np.uint8), "3": np.array([4, 4], np.uint8)}
ALL = {"0": [2, 4, 8, 2, 4, 4], "3": [4, 8]}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 2, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in ("0", "3")}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_frozen_units_do_not_move_and_open_ones_do(optimizer):
    model = make_model()
    attach_frozen(model, "per_channel", scale="absmax", percentile=99.9)
    options = {"momentum": 0.9, "weight_decay": 0.1} if optimizer == "SGD" else {"weight_decay": 0.1}
    stepper = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05, **options)
    train(model, stepper)  # momentum exists before anything is frozen
    freeze(model, HALF)
    before = weights(model)
    train(model, stepper)
    after = weights(model)
    for name, bits in HALF.items():
        still = torch.from_numpy(bits != OPEN)
        assert torch.equal(before[name][still], after[name][still])
        assert (before[name][~still] != after[name][~still]).any()


@pytest.mark.parametrize("scale", plugins.names("scale"))
def test_values_are_those_of_the_quantizer(scale):
    model, expected = make_model(), make_model()
    attach_frozen(model, "per_channel", scale=scale, percentile=99.0)
    freeze(model, HALF)
    quantize_model(expected, BitMap("per_channel", HALF), scale=scale, percentile=99.0)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, weights(expected)[name], rtol=0, atol=1e-7)


def test_a_second_round_leaves_the_first():
    model = make_model()
    attach_frozen(model, "per_channel", scale="absmax", percentile=99.9)
    freeze(model, HALF)
    first = weights(model)
    freeze(model, REST)
    assert {name: units.bits.tolist() for name, units in frozen_units(model).items()} == ALL
    for name, bits in HALF.items():
        still = torch.from_numpy(bits != OPEN)
        assert torch.equal(first[name][still], weights(model)[name][still])


def maps(granularity: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = {"per_tensor": {"0": (), "3": ()}, "per_param": {"0": (6, 3, 3, 3), "3": (2, 216)}}
    if granularity == "per_channel":
        return [HALF, REST]
    rounds = []
    for _ in range(3):
        drawn = {n: rng.choice(np.array([0, 1, 2, 4, 8, 32], np.uint8), s) for n, s in shapes[granularity].items()}
        rounds.append({name: np.asarray(bits, np.uint8) for name, bits in drawn.items()})
    return rounds


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
@pytest.mark.parametrize("complete", [True, False])
def test_settled_is_the_same_model(granularity, complete):
    model, images = make_model(), torch.randn(4, 3, 8, 8)
    attach_frozen(model, granularity, scale="absmax", percentile=99.9)
    stepper = torch.optim.AdamW(model.parameters(), lr=0.01)
    for bits in maps(granularity):
        freeze(model, bits)
        train(model, stepper, steps=2)
    if complete:
        freeze(model, {name: np.full(u.bits.shape, 8, np.uint8) for name, u in frozen_units(model).items()})
    expected = {name: units.bits.numpy().copy() for name, units in frozen_units(model).items()}
    with torch.no_grad():
        before = model.eval()(images)
        settle_frozen(model, granularity)
        torch.testing.assert_close(model.eval()(images), before, rtol=0, atol=1e-6)
    assert not frozen_units(model) and set(quantizers(model)) == {"0", "3"}
    for name, bits in bitmap_of(model).layers.items():
        np.testing.assert_array_equal(bits, expected[name])
