"""Learning rates against their formulas, class weights against scikit-learn, decay on kernels only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from fairquant.config.schema import TrainSection
from fairquant.train.schedule import class_weights, make_optimizer, make_scheduler

STEPS = 5


def rates(**settings) -> list[float]:
    section = TrainSection(epochs=4, lr=0.1, **settings)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=section.lr)
    scheduler = make_scheduler(optimizer, section, steps_per_epoch=STEPS)
    seen = []
    for _ in range(section.epochs * STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_follows_its_formula():
    expected = [0.1 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)]
    assert rates(schedule="cosine") == pytest.approx(expected, rel=1e-6)


def test_step_drops_after_whole_epochs():
    expected = [0.1] * 10 + [0.02] * 10
    assert rates(schedule="step", step_size=2, gamma=0.2) == pytest.approx(expected, rel=1e-9)


def test_constant_is_constant():
    assert rates(schedule="constant") == [0.1] * 20


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(labels, 3, "balanced").numpy(), expected, rtol=1e-6)


def test_absent_class_has_weight_zero_and_does_not_count():
    weights = class_weights(np.array([0, 0, 0, 2]), 4, "balanced")
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 0.0, 4 / (2 * 1), 0.0])


def test_no_weights():
    assert class_weights(np.array([0, 1]), 2, "none") is None


def test_vectors_and_scales_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(4, 1, 1, 1)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(4, 4), requires_grad=False))
    optimizer = make_optimizer(model, TrainSection(weight_decay=0.3), torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decay.get(id(p)) for name, p in model.named_parameters()}
    assert {name for name, value in by_name.items() if value == 0.3} == {"0.weight", "3.weight"}
    assert by_name["frozen"] is None
    assert by_name["scale"] == by_name["0.bias"] == by_name["1.weight"] == 0.0
