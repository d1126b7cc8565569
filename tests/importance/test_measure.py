"""The loop against float64 brute force written out with ``backward()``."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.errors import UserError
from fairquant.importance.measure import measure_importance
from fairquant.models.layers import quantizable_layers

CPU = torch.device("cpu")
GROUPS = ("light", "medium", "dark × old")
EVERY = plugins.names("importance")


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "prepared", n_per_group=30, groups=GROUPS, classes=("a", "b"), size=16, seed=1)


def measure(model, store, **change):
    settings = {"metric": "grape", "batch_size": 7, "device": CPU, "seed": 4, **change}
    return measure_importance(model, store, **settings)


def scores(metric, gradient, weight):
    return np.abs(gradient) if metric == "gradient" else (gradient * weight) ** 2


def brute_force(model, store, marks, index, *, metric, normalize, batch_size, seed, limit=None):
    """One group's maps: float64, one batch after the other, from the definition."""
    model = copy.deepcopy(model).double().eval()
    train = store.indices("train")
    rows = np.random.default_rng(seed).permutation(train[marks[train] == index])[:limit]
    mean, std = np.array(store.meta["mean"]), np.array(store.meta["std"])
    sums = dict.fromkeys(quantizable_layers(model), 0.0)
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        pixels = (store.images[chosen] / 255.0 - mean) / std
        model.zero_grad()
        log_probabilities = torch.log_softmax(model(torch.tensor(pixels.transpose(0, 3, 1, 2))), 1)
        (-log_probabilities[range(len(chosen)), store.labels[chosen]].mean()).backward()
        for name, layer in quantizable_layers(model).items():
            share = len(chosen) / len(rows) if normalize == "sample" else 1
            sums[name] = sums[name] + share * scores(metric, layer.weight.grad.numpy(), layer.weight.detach().numpy())
    return sums


@pytest.mark.parametrize("metric", ["gradient", "grape"])
@pytest.mark.parametrize("normalize", ["sample", "none"])
@pytest.mark.parametrize("by", ["group", "class"])
def test_agrees_with_brute_force(tiny_model, store, metric, normalize, by):
    model = tiny_model()
    maps = measure(model, store, metric=metric, normalize=normalize, by=by)
    names, marks = (GROUPS, store.groups) if by == "group" else (("a", "b"), store.labels)
    assert maps.groups == names
    assert list(maps.layers) == ["0", "3", "7"]
    for index in range(len(names)):
        wanted = brute_force(model, store, marks, index, metric=metric, normalize=normalize, batch_size=7, seed=4)
        for layer, value in wanted.items():
            assert maps.layers[layer].dtype == np.float32
            np.testing.assert_allclose(maps.layers[layer][index], value, rtol=2e-3, atol=1e-5 * value.max())


def test_last_small_batch_counts_by_its_samples(tiny_model, store):
    """18 samples in batches of 7 leave 4; with one sample per batch the order cannot matter."""
    one = measure(tiny_model(), store, batch_size=1, seed=0)
    other = measure(tiny_model(), store, batch_size=1, seed=9)
    for layer in one.layers:
        np.testing.assert_allclose(one.layers[layer], other.layers[layer], rtol=1e-4, atol=1e-9)
    assert one.counts == (18, 18, 18)


def test_group_size_does_not_scale_the_map(tiny_model, store):
    """A group of copies of one image: one sample or ten give the same map; without normalising, ten times it."""
    train = store.indices("train")
    images = np.array(store.images)
    rows = train[store.groups[train] == 0]
    images[rows] = images[rows[0]]
    labels = store.labels.copy()
    labels[rows] = labels[rows[0]]
    same = replace(store, images=images, labels=labels)
    few, many = (measure(tiny_model(), same, samples_per_group=n, batch_size=1) for n in (1, 10))
    raw = measure(tiny_model(), same, samples_per_group=10, batch_size=1, normalize="none")
    for layer in few.layers:
        np.testing.assert_allclose(few.layers[layer][0], many.layers[layer][0], rtol=1e-5)
        np.testing.assert_allclose(raw.layers[layer][0], 10 * many.layers[layer][0], rtol=1e-5)


@pytest.mark.parametrize("metric", EVERY)
def test_renumbering_the_groups_permutes_the_maps(tiny_model, store, metric):
    order = [2, 0, 1]
    renumbered = replace(
        store, groups=np.argsort(order)[store.groups], group_names=tuple(GROUPS[index] for index in order)
    )
    one, two = (measure(tiny_model(), data, metric=metric) for data in (store, renumbered))
    assert two.groups == tuple(one.groups[index] for index in order)
    assert all(np.array_equal(one.layers[name][order], two.layers[name]) for name in one.layers)


@pytest.mark.parametrize("metric", EVERY)
def test_one_group_is_enough(tiny_model, store, metric):
    single = replace(store, groups=np.zeros_like(store.groups), group_names=("all",))
    maps = measure(tiny_model(), single, metric=metric)
    assert maps.groups == ("all",)
    assert maps.counts == (54,)
    assert maps.layers["7"].shape == (1, 2, 32)


@pytest.mark.parametrize("metric", EVERY)
def test_same_seed_same_bytes_other_seed_other_batches(tiny_model, store, tmp_path, metric):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        measure(tiny_model(), store, seed=seed, metric=metric).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_cap_takes_the_first_of_the_seeded_order(tiny_model, store):
    model = tiny_model()
    maps = measure(model, store, samples_per_group=5, batch_size=3)
    assert maps.counts == (5, 5, 5)
    wanted = brute_force(
        model, store, store.groups, 1, metric="grape", normalize="sample", batch_size=3, seed=4, limit=5
    )
    np.testing.assert_allclose(maps.layers["7"][1], wanted["7"], rtol=1e-3, atol=1e-9)
    assert measure(model, store, samples_per_group=999).counts == (18, 18, 18)


def test_a_batch_holds_one_group_in_evaluation_mode(tiny_model, store):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = tiny_model(), []

        def forward(self, images):
            self.seen.append((len(images), any(module.training for module in self.modules())))
            return self.inner(images)

    model = Watched().train()
    measure(model, store)
    assert model.seen == [(7, False), (7, False), (4, False)] * 3


@pytest.mark.parametrize("metric", EVERY)
def test_the_model_is_left_as_it_was(tiny_model, store, metric):
    model = tiny_model().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[7].weight.grad = torch.full_like(model[7].weight, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    maps = measure(model, store, metric=metric)
    assert maps.layers["0"].any()  # a frozen layer is measured all the same
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == training
    assert bool((model[7].weight.grad == 3).all())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "7.weight")


class Failing(nn.Module):
    """Turns to NaN at its fourth batch: the second group's first."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, images):
        self.calls += 1
        return self.inner(images) * (float("nan") if self.calls > 3 else 1)


@pytest.mark.parametrize("metric", EVERY)
def test_nan_names_layer_and_group_and_restores_the_model(tiny_model, store, metric):
    model = Failing(tiny_model()).train()
    with pytest.raises(UserError) as error:
        measure(model, store, metric=metric)
    assert str(error.value) == (
        "importance: layer 'inner.0', group 'medium': got NaN or infinite values; allowed: finite ones "
        "(a diverged model, or a learning rate too high in pretrain)"
    )
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_group_without_training_samples_is_named(tiny_model, store):
    more = replace(store, group_names=(*GROUPS, "V", "VI"))
    with pytest.raises(UserError, match="^importance.by: got 'group', but no training sample of V, VI; allowed: "):
        measure(tiny_model(), more)


@pytest.mark.parametrize("metric", EVERY)
def test_a_layer_the_loss_does_not_depend_on_is_worth_nothing(tiny_model, store, metric):
    model = nn.ModuleDict({"used": tiny_model(), "spare": nn.Linear(3, 2)})
    model.forward = model["used"].forward
    maps = measure(model, store, metric=metric)
    assert not maps.layers["spare"].any()
    assert maps.layers["used.7"].any()


@pytest.mark.parametrize("metric", EVERY)
def test_validation_and_test_images_are_not_read(tiny_model, store, metric):
    images = np.array(store.images)
    images[store.splits != "train"] = 255
    one, two = (measure(tiny_model(), data, metric=metric) for data in (store, replace(store, images=images)))
    assert all(np.array_equal(one.layers[name], two.layers[name]) for name in one.layers)


def test_bfloat16_gives_float32_maps_close_to_fp32(tiny_model, store):
    exact = measure(tiny_model(), store, metric="gradient")
    rough = measure(tiny_model(), store, metric="gradient", precision="bf16")
    for name, value in exact.layers.items():
        assert rough.layers[name].dtype == np.float32
        assert np.corrcoef(value.ravel(), rough.layers[name].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("metric", EVERY)
def test_every_metric_runs_through_the_loop(tiny_model, store, metric):
    maps = measure(tiny_model(), store, metric=metric)
    assert all(np.isfinite(array).all() and array.any() for array in maps.layers.values())
    assert maps.meta["metric"] == metric


@pytest.mark.parametrize("metric", EVERY)
def test_a_parametrized_weight_is_measured_where_it_is_stored(tiny_model, store, metric):
    model = tiny_model()
    plain = measure(model, store, metric=metric)
    for index in (0, 3):
        nn.utils.parametrize.register_parametrization(model[index], "weight", nn.Identity())
    maps = measure(model, store, metric=metric)
    assert all(np.array_equal(plain.layers[name], maps.layers[name]) for name in plain.layers)


@pytest.mark.parametrize("metric", EVERY)
def test_channels_last_weights_give_the_same_maps(tiny_model, store, metric):
    one = measure(tiny_model(), store, metric=metric)
    two = measure(tiny_model().to(memory_format=torch.channels_last), store, metric=metric)
    for name in one.layers:
        np.testing.assert_allclose(one.layers[name], two.layers[name], rtol=1e-3, atol=1e-9)


def test_an_unknown_metric_lists_the_known_ones(tiny_model, store):
    with pytest.raises(UserError, match="^importance: got 'magic'; allowed: .*gradient | grape"):
        measure(tiny_model(), store, metric="magic")
