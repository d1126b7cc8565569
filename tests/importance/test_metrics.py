"""Hand values of each metric, and what every metric must do."""

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.devices import autocast
from fairquant.importance.metric import Metric, gradients
from fairquant.importance.metrics import fisher, gradient, grape, hawq

EVERY = plugins.names("importance")
G = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
W = torch.tensor([[3.0, 0.5], [-2.0, 7.0]])


def test_gradient_by_hand():
    assert gradient.score(G, W).tolist() == [[1.0, 2.0], [0.5, 0.0]]


def test_grape_by_hand():
    assert grape.score(G, W).tolist() == [[9.0, 1.0], [1.0, 0.0]]


def test_hawq_by_hand():
    assert hawq.score(G, W).tolist() == [[9.0, 0.5], [2.0, 0.0]]


def test_fisher_by_hand():
    assert fisher.score(G, W).tolist() == [[1.0, 4.0], [0.25, 0.0]]


def test_the_metrics_users_know_are_there():
    assert {"gradient", "grape", "hawq", "fisher"} <= set(EVERY)


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
    options = plugins.load("importance", name).Options()
    assert Metric.load(name).options == options
    assert Metric.load(name, options).name == name


def test_what_a_metric_leaves_out_is_filled_in():
    plain, curved = Metric.load("gradient"), Metric.load("hawq")
    assert (plain.derivative, plain.forward, plain.averages_derivative) == (gradients, autocast, False)
    assert (curved.derivative, curved.forward, curved.averages_derivative) == (hawq.derivative, hawq.forward, True)


@pytest.mark.parametrize("name", EVERY)
def test_every_prediction_is_of_the_perturbations_shape_and_0_without_one(name):
    predict = plugins.load("importance", name).predicted_increase
    w, delta = perturbed((5, 4))
    maps = np.random.default_rng(1).uniform(size=(3, 5, 4)).astype(np.float32)
    value = predict(maps, delta, w)
    assert value.shape == maps.shape and value.dtype == np.float32
    assert bool((value >= 0).all()) and value.any()
    assert not predict(maps, np.zeros_like(w), w).any()
    assert np.array_equal(value[1], predict(maps[1], delta, w))


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
