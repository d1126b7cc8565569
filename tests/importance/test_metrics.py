"""Hand values of each metric, and what every metric must do."""

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.importance.metrics import gradient, grape

EVERY = plugins.names("importance")
G = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
W = torch.tensor([[3.0, 0.5], [-2.0, 7.0]])


def test_gradient_by_hand():
    assert gradient.score(G, W).tolist() == [[1.0, 2.0], [0.5, 0.0]]


def test_grape_by_hand():
    assert grape.score(G, W).tolist() == [[9.0, 1.0], [1.0, 0.0]]


def test_the_published_metrics_are_there():
    assert {"gradient", "grape"} <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_metric_keeps_shape_sign_and_inputs(name):
    score = plugins.load("importance", name).score
    generator = torch.Generator().manual_seed(0)
    for shape in [(4,), (5, 3), (6, 2, 3, 3)]:
        g, w = (torch.randn(shape, generator=generator) for _ in range(2))
        before = g.clone(), w.clone()
        value = score(g, w)
        assert value.shape == g.shape
        assert bool((value >= 0).all())
        assert torch.equal(value, score(g, w))
        assert torch.equal(g, before[0])
        assert torch.equal(w, before[1])
        assert not bool(score(torch.zeros(shape), w).any())
        assert torch.allclose(score(-g, w), value)


@pytest.mark.parametrize("name", EVERY)
def test_every_metric_passes_nan_on(name):
    assert bool(torch.isnan(plugins.load("importance", name).score(torch.tensor([float("nan")]), torch.ones(1))).all())


@pytest.mark.parametrize("name", EVERY)
def test_every_metric_has_options(name):
    assert plugins.load("importance", name).Options() is not None


def perturbed(shape):
    random = np.random.default_rng(0)
    w = random.normal(size=shape).astype(np.float32)
    return w, (np.round(w * 4) / 4 - w).astype(np.float32)


def test_gradient_predicts_the_first_order_bound():
    w, delta = perturbed((5, 4))
    gradients = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    maps = gradient.score(torch.tensor(gradients), torch.tensor(w)).numpy()
    wanted = np.abs(gradients.astype(np.float64) * delta)
    np.testing.assert_allclose(gradient.predicted_increase(maps, delta, w), wanted, rtol=1e-6)


def test_grape_predicts_the_squared_change():
    w, delta = perturbed((5, 4))
    w[0, 0] = delta[0, 0] = 0  # a pruned weight that the quantizer leaves at 0
    gradients = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    maps = grape.score(torch.tensor(gradients), torch.tensor(w)).numpy()
    wanted = (gradients.astype(np.float64) * delta) ** 2
    np.testing.assert_allclose(grape.predicted_increase(maps, delta, w), wanted, rtol=1e-5)


def test_grape_cannot_predict_a_move_away_from_zero():
    with pytest.raises(ValueError, match="^delta: got 1 non-zero values on weights that are 0; allowed: 0 there$"):
        grape.predicted_increase(np.ones(2, np.float32), np.ones(2, np.float32), np.array([0, 1], np.float32))
