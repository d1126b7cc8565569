"""Batch norm corrected for rounding, against a float64 loop over what the layers are given before and after."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from fairquant.data.batches import iterate
from fairquant.errors import UserError
from fairquant.train import batch_norm
from fairquant.train.batch_norm import correct_batch_norm
from fairquant.train.predict import predict

CPU = torch.device("cpu")
LAYERS = (1, 5)


def two_layers(seed=0, make=nn.BatchNorm2d):
    """A network whose running statistics are not those of the data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), make(6), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(6, 5, 2), make(5), nn.Flatten(), nn.Linear(20, 2),
        )  # fmt: skip
        for layer in (model[1], model[5]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


def coarse(model):
    """Return a copy whose weights are rounded to multiples of 0.2: what a quantizer does, without one."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for index in (0, 4, 7):
            found[index].weight.mul_(5).round_().div_(5)
    return found


def correct(model, reference, store, samples=10_000, seed=0, **more):
    return correct_batch_norm(model, reference, store, samples=samples, device=CPU, seed=seed, **more)


def images(store, rows):
    (batch,) = iterate(store, rows, batch_size=len(rows), device=CPU)
    return batch.images.double()


def moments(x):
    return np.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)])


def by_hand(model, reference, batches):
    """Return the corrected (mean, variance) of both layers in float64.

    Per batch, every layer of the model is corrected before the batch goes on; in the end by the means over batches.
    """
    model, reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    running = {at: (reference[at].running_mean.numpy(), reference[at].running_var.numpy()) for at in LAYERS}

    def corrected(at, old, new):
        ratio = np.sqrt(new[1] / old[1])
        return new[0] + ratio * (running[at][0] - old[0]), ratio**2 * running[at][1]

    seen = {at: [] for at in LAYERS}
    with torch.no_grad():
        for images in batches:
            x = y = images
            for at, (old, new) in enumerate(zip(reference, model, strict=True)):
                if at in LAYERS:
                    seen[at].append((moments(x), moments(y)))
                    mean, variance = corrected(at, *seen[at][-1])
                    new.running_mean.copy_(torch.from_numpy(mean))
                    new.running_var.copy_(torch.from_numpy(variance))
                x, y = old(x), new(y)
    return {at: corrected(at, *np.mean(values, axis=0)) for at, values in seen.items()}


def assert_statistics(model, expected):
    for at, (mean, variance) in expected.items():
        np.testing.assert_allclose(model[at].running_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model[at].running_var, variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_one_batch_by_hand(store, make):
    reference = two_layers(make=make)
    model = coarse(reference)
    expected = by_hand(model, reference, [images(store, store.indices("train"))])
    assert correct(model, reference, store) == 2
    assert_statistics(model, expected)
    assert not np.allclose(expected[5][0], reference[5].running_mean, rtol=0.01)


def test_several_batches_by_hand(store, monkeypatch):
    monkeypatch.setattr(batch_norm, "BATCH", 30)
    reference = two_layers()
    model = coarse(reference)
    rows = np.random.default_rng(7).permutation(store.indices("train"))
    assert len(rows) == 96
    expected = by_hand(model, reference, [images(store, part) for part in np.array_split(rows, 3)])
    correct(model, reference, store, seed=7)
    assert_statistics(model, expected)


def test_a_sample_is_drawn_by_the_seed(store):
    reference = two_layers()
    models = [coarse(reference) for _ in range(3)]
    rows = np.random.default_rng(3).permutation(store.indices("train"))[:20]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        correct(model, reference, store, samples=20, seed=seed)
    assert_statistics(models[0], by_hand(coarse(reference), reference, [images(store, rows)]))
    assert torch.equal(models[0][1].running_mean, models[1][1].running_mean)
    assert not torch.equal(models[0][1].running_mean, models[2][1].running_mean)


def test_the_input_standardised_has_the_mean_and_variance_it_had(store):
    reference = two_layers()
    model = coarse(reference)
    correct(model, reference, store)
    x = images(store, store.indices("train"))
    for at in LAYERS:
        values = []
        for which in (reference, model):
            mean, variance = moments(copy.deepcopy(which).double()[:at](x).detach())
            layer = which[at]
            values.append(np.stack([(mean - layer.running_mean.numpy()) / np.sqrt(layer.running_var.numpy()),
                                    variance / layer.running_var.numpy()]))  # fmt: skip
        np.testing.assert_allclose(values[1], values[0], rtol=1e-3, atol=1e-4)


def test_nothing_rounded_is_nothing_changed(store):
    reference = two_layers()
    model = copy.deepcopy(reference)
    correct(model, reference, store)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_a_channel_without_variance_keeps_its_running_variance(store):
    reference = two_layers()
    with torch.no_grad():
        reference[0].weight[2] = 0
    model = coarse(reference)
    with torch.no_grad():
        model[0].weight[3] = 0  # pruned by the rounding: a constant from now on
    correct(model, reference, store)
    assert model[1].running_var[2] == reference[1].running_var[2]
    assert model[1].running_mean[2] == pytest.approx(float(reference[1].running_mean[2]))
    assert model[1].running_var[3] == pytest.approx(0, abs=1e-9)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_running_statistics_of_the_model_alone_change(store):
    reference = two_layers()
    model = coarse(reference)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    full = {name: value.clone() for name, value in reference.state_dict().items()}
    correct(model, reference, store)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(("running_mean", "running_var")), name
    assert all(torch.equal(value, full[name]) for name, value in reference.state_dict().items())
    for which in (model, reference):
        assert not any(module.training or module._forward_pre_hooks for module in which.modules())
        assert all(parameter.grad is None for parameter in which.parameters())


def test_nothing_is_left_behind_by_a_failure(store):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")

    reference = two_layers()
    model = nn.Sequential(*coarse(reference)[:6], Fails()).eval()
    with pytest.raises(RuntimeError, match="out of memory"):
        correct(model, reference, store)
    for which in (model, reference):
        assert not any(module._forward_pre_hooks for module in which.modules())


def test_without_batch_norm_nothing_is_read(store, monkeypatch):
    monkeypatch.setattr(batch_norm, "iterate", lambda *_, **__: pytest.fail("read images"))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(144))
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    for model in (plain, untracked):
        assert correct(model, copy.deepcopy(model), store) == 0


def test_reduced_precision_is_close(store):
    reference = two_layers()
    exact, rough = coarse(reference), coarse(reference)
    correct(exact, reference, store)
    correct(rough, reference, store, precision="bf16")
    torch.testing.assert_close(rough[1].running_mean, exact[1].running_mean, rtol=0.05, atol=0.02)
    assert not torch.equal(rough[1].running_mean, exact[1].running_mean)


def test_one_image_has_no_variance(store):
    line = "^quantize.correction_images: got 1 images; allowed: 2 or more of the train split$"
    with pytest.raises(UserError, match=line):
        correct(two_layers(), two_layers(), store, samples=1)


def test_a_rounded_model_comes_nearer_to_full_precision(store):
    """On a trained model, the logits of the validation split."""
    reference = two_layers().train()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    (batch,) = iterate(store, store.indices("train"), batch_size=96, device=CPU)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(batch.images), batch.labels).backward()
        optimizer.step()
    reference.eval()
    model = coarse(reference)
    expected = predict(reference, store, "val", batch_size=64, device=CPU).logits
    errors = []
    for corrected in (False, True):
        if corrected:
            correct(model, reference, store)
        logits = predict(model, store, "val", batch_size=64, device=CPU).logits
        errors.append(float(np.square(logits - expected).mean()))
    assert errors[1] < 0.8 * errors[0]
