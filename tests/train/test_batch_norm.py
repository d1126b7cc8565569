"""Batch-norm statistics measured anew, against float64 means and variances of what the layers are given."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.data.batches import iterate
from fairquant.errors import UserError
from fairquant.quantize.attach import quantize_model
from fairquant.train import batch_norm
from fairquant.train.batch_norm import calibrate_batch_norm
from fairquant.train.predict import predict

CPU = torch.device("cpu")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def two_layers(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(6, 5, 2), nn.BatchNorm2d(5, momentum=0.03), nn.Flatten(), nn.Linear(20, 2),
        ).eval()  # fmt: skip


def calibrate(model, store, samples=10_000, seed=0, **more):
    return calibrate_batch_norm(model, store, samples=samples, device=CPU, seed=seed, **more)


def images(store, rows):
    (batch,) = iterate(store, rows, batch_size=len(rows), device=CPU)
    return batch.images.double()


def by_hand(model, batches):
    """Return (mean, unbiased variance) of each batch norm's input, averaged over batches, in float64.

    Earlier batch norms normalise by the batch; dropout is off.
    """
    model = copy.deepcopy(model).double()
    found = {}
    for x in batches:
        for name, layer in model.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
                found.setdefault(name, []).append((mean, variance))
                biased = x.var((0, 2, 3), unbiased=False)
                x = (x - mean[:, None, None]) / (biased[:, None, None] + layer.eps).sqrt()
                x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
                x = layer.act(layer.drop(x)) if hasattr(layer, "act") else x
            else:
                x = layer(x)
    return {name: tuple(torch.stack(part).mean(0) for part in zip(*values, strict=True)) for name, values in found.items()}


def assert_statistics(model, expected):
    for name, (mean, variance) in expected.items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-6)


def test_one_batch_is_exact(store):
    model = two_layers()
    expected = by_hand(model, [images(store, store.indices("train"))])
    assert calibrate(model, store) == 2
    assert list(expected) == ["1", "5"]
    assert_statistics(model, expected)


def test_several_batches_are_averaged(store, monkeypatch):
    monkeypatch.setattr(batch_norm, "BATCH", 30)
    model = two_layers()
    rows = np.random.default_rng(7).permutation(store.indices("train"))
    assert len(rows) == 96
    expected = by_hand(model, [images(store, part) for part in np.array_split(rows, 3)])
    calibrate(model, store, seed=7)
    assert_statistics(model, expected)
    assert model[1].num_batches_tracked == 3


def test_a_sample_is_drawn_by_the_seed(store):
    model, again, other = two_layers(), two_layers(), two_layers()
    rows = np.random.default_rng(3).permutation(store.indices("train"))[:20]
    calibrate(model, store, samples=20, seed=3)
    assert_statistics(model, by_hand(two_layers(), [images(store, rows)]))
    calibrate(again, store, samples=20, seed=3)
    calibrate(other, store, samples=20, seed=4)
    assert torch.equal(model[1].running_mean, again[1].running_mean)
    assert not torch.equal(model[1].running_mean, other[1].running_mean)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(store, training):
    model = two_layers().train(training)
    model[3].train(not training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    calibrate(model, store)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.03)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(STATISTICS), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_restored_after_a_failure(store):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")

    model = nn.Sequential(two_layers()[:2], Fails()).train()
    model[0][0].eval()
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(model, store)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert model[0][1].momentum == 0.1


def test_statistics_of_before_play_no_part(store):
    model, dirty = two_layers(), two_layers()
    dirty[1].running_mean.fill_(5.0)
    dirty[1].num_batches_tracked.fill_(100)
    for each in (model, dirty):
        calibrate(each, store)
    assert all(torch.equal(one, two) for one, two in zip(model.state_dict().values(), dirty.state_dict().values(), strict=True))


def test_without_batch_norm_nothing_is_done(store, monkeypatch):
    monkeypatch.setattr(batch_norm, "iterate", lambda *_, **__: pytest.fail("read images"))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 2))
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    for model in (plain, untracked):
        before = copy.deepcopy(model.state_dict())
        assert calibrate(model, store) == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_timms_batch_norm_with_activation(store):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 4, 3), BatchNormAct2d(4)).eval()
    expected = by_hand(model, [images(store, store.indices("train"))])
    assert calibrate(model, store) == 2
    assert_statistics(model, expected)


def test_reduced_precision_is_close(store):
    exact, rough = two_layers(), two_layers()
    calibrate(exact, store)
    calibrate(rough, store, precision="bf16")
    torch.testing.assert_close(rough[1].running_mean, exact[1].running_mean, rtol=0.05, atol=0.02)
    assert not torch.equal(rough[1].running_mean, exact[1].running_mean)


def test_one_image_has_no_variance(store):
    model = two_layers()
    line = "^quantize.calibrate_batch_norm: got 1 images; allowed: at least 2 of the train split$"
    with pytest.raises(UserError, match=line):
        calibrate(model, store, samples=1)
    assert model[1].running_mean.eq(0).all()


def test_a_rounded_model_comes_nearer_to_full_precision(store):
    """On a trained model at two bits, the logits of the validation split."""
    model = two_layers()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    (batch,) = iterate(store, store.indices("train"), batch_size=96, device=CPU)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    reference = predict(model, store, "val", batch_size=64, device=CPU).logits
    widths = {name: np.full(len(model.get_submodule(name).weight), 2, np.uint8) for name in ("0", "4", "7")}
    quantize_model(model, BitMap("per_channel", widths), scale="mse")
    errors = []
    for step in (lambda: None, lambda: calibrate(model, store)):
        step()
        rounded = predict(model, store, "val", batch_size=64, device=CPU).logits
        errors.append(float(np.square(rounded - reference).mean()))
    assert errors[1] < 0.8 * errors[0]
