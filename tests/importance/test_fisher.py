"""fisher through the loop, against a float64 loop over samples; its prediction; what it says it does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fairquant.importance.measure import measure_importance
from fairquant.importance.metric import Metric
from fairquant.importance.metrics import fisher
from fairquant.models.layers import quantizable_layers

CPU = torch.device("cpu")
GROUPS = ("light", "medium", "dark × old")


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "prepared", n_per_group=30, groups=GROUPS, classes=("a", "b"), size=16, seed=1)


def measure(model, store, **change):
    settings = {"metric": "fisher", "batch_size": 7, "device": CPU, "seed": 4, **change}
    return measure_importance(model, store, **settings)


def squares(model, store, marks, index, seed=4):
    """Squared gradients of each of a group's samples in the loop's order: float64, one backward pass for each."""
    model = copy.deepcopy(model).double().eval()
    train = store.indices("train")
    rows = np.random.default_rng(seed).permutation(train[marks[train] == index])
    pixels = (store.images[rows] / 255.0 - np.array(store.meta["mean"])) / np.array(store.meta["std"])
    weights = {name: layer.weight for name, layer in quantizable_layers(model).items()}
    found = []
    for image, row in zip(torch.tensor(pixels.transpose(0, 3, 1, 2)), rows, strict=True):
        loss = F.cross_entropy(model(image[None]), torch.tensor([int(store.labels[row])]))
        gradients = torch.autograd.grad(loss, list(weights.values()))
        found.append({name: value.square().numpy() for name, value in zip(weights, gradients, strict=True)})
    return found


@pytest.mark.parametrize("normalize", ["sample", "none"])
@pytest.mark.parametrize("by", ["group", "class"])
def test_agrees_with_brute_force(tiny_model, store, normalize, by):
    """``none`` adds up the means of batches of 7, 7 and 4 (of classes: up to 27 samples)."""
    model = tiny_model()
    maps = measure(model, store, normalize=normalize, by=by)
    marks, names = (store.groups, GROUPS) if by == "group" else (store.labels, ("a", "b"))
    for index in range(len(names)):
        samples = squares(model, store, marks, index)
        for layer, array in maps.layers.items():
            values = [sample[layer] for sample in samples]
            means = [np.mean(values[start : start + 7], axis=0) for start in range(0, len(values), 7)]
            wanted = np.mean(values, axis=0) if normalize == "sample" else np.sum(means, axis=0)
            np.testing.assert_allclose(array[index], wanted, rtol=2e-3, atol=1e-5 * wanted.max())


def test_batches_and_order_do_not_matter(tiny_model, store):
    whole = measure(tiny_model(), store, batch_size=64)
    for change in ({"batch_size": 1}, {"batch_size": 5, "seed": 9}):
        other = measure(tiny_model(), store, **change)
        for name, value in whole.layers.items():
            np.testing.assert_allclose(other.layers[name], value, rtol=1e-4, atol=1e-6 * value.max())


def test_more_than_the_square_of_the_mean(tiny_model, store):
    """Jensen: the mean of squares is at least grape's square of the mean, once grape's w² is taken out."""
    model = tiny_model()
    ours, mean = measure(model, store, batch_size=64), measure(model, store, metric="grape", batch_size=64)
    for name, layer in quantizable_layers(model).items():
        squared = layer.weight.detach().numpy() ** 2
        assert bool((ours.layers[name] * squared >= mean.layers[name] * (1 - 1e-4) - 1e-12).all())
        assert bool((ours.layers[name] * squared > 1.5 * mean.layers[name]).any())


def test_bfloat16_gives_float32_maps_close_to_fp32(tiny_model, store):
    exact, rough = (measure(tiny_model(), store, precision=precision) for precision in ("fp32", "bf16"))
    for name, value in exact.layers.items():
        assert rough.layers[name].dtype == np.float32
        assert np.corrcoef(value.ravel(), rough.layers[name].ravel())[0, 1] > 0.98


def test_the_loop_is_told_to_score_samples():
    metric = Metric.load("fisher")
    assert metric.sample_scores is fisher.sample_scores
    assert not metric.averages_derivative
    assert Metric.load("grape").sample_scores is None


def test_prediction_by_hand():
    """½ · 4 · 0.5² = 0.5; a weight that is 0 may move; groups lead the shape."""
    maps = np.float32([[4, 3, 8], [0, 1, 2]])
    delta, weight = np.float32([-0.5, 0, 0.25]), np.float32([2, 1, 0])
    assert fisher.predicted_increase(maps, delta, weight).tolist() == [[0.5, 0, 0.25], [0, 0, 0.0625]]


def test_predicts_the_rise_of_the_loss_where_the_model_is_right():
    """Labels drawn from the model's own probabilities: the mean loss rises by ½ Σ F δ² along each weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    weight = torch.tensor([[0.5, -1.0, 0.3], [0.2, 0.4, -0.6]], dtype=torch.float64)
    probabilities = torch.softmax(x @ weight.T, 1)
    labels = (torch.rand(len(x), generator=generator) > probabilities[:, 0]).long()
    residual = probabilities - F.one_hot(labels, 2)
    diagonal = (residual.square().T @ x.square() / len(x)).float().numpy()  # what per-sample gradients give
    step = 0.1
    for place in np.ndindex(2, 3):
        delta = np.zeros((2, 3), np.float32)
        delta[place] = step
        predicted = fisher.predicted_increase(diagonal, delta, weight.float().numpy()).sum()
        moves = (weight + torch.tensor(delta), weight, weight - torch.tensor(delta))
        up, here, down = (float(F.cross_entropy(x @ w.T, labels)) for w in moves)
        assert predicted == pytest.approx((up + down) / 2 - here, rel=0.03)  # the slope, sampling noise, drops out
