"""Batch norm and biases corrected for rounding, against regressions over all that the layers took and gave."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from timm.layers import BatchNormAct2d
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fairquant.data.batches import iterate
from fairquant.errors import UserError
from fairquant.models.layers import quantizable_layers
from fairquant.train import correction
from fairquant.train.predict import predict

CPU = torch.device("cpu")
NORMS, BIASED = (1, 5), (0, 4, 7)


@pytest.fixture(autouse=True)
def one_batch(monkeypatch):
    """All images at once, where a test asks for nothing else: then every promise holds exactly."""
    monkeypatch.setattr(correction, "BATCH", 1000)


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


class Tokens(nn.Module):
    """An image as four tokens (B, 4, 6), each through one linear layer; no batch norm."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patch, self.mix, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 7), nn.Linear(7, 2)
        self.eval()

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(tokens).relu().mean(dim=1))


def small_transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=2).eval()


def coarse(model, share=3):
    """Return a copy with weights at multiples of max |w| / share: what a quantizer does, without one."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for layer in quantizable_layers(found).values():
            step = layer.weight.abs().max() / share
            layer.weight.div_(step).round_().mul_(step)
    return found


def correct(model, reference, store, samples=10_000, seed=0, **more):
    return correction.correct(model, reference, store, samples=samples, device=CPU, seed=seed, **more)


def images(store, rows=None):
    rows = store.indices("train") if rows is None else rows
    (batch,) = iterate(store, rows, batch_size=len(rows), device=CPU)
    return batch.images


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def hooks_of(*models):
    modules = [module for model in models for module in model.modules()]
    return [hook for module in modules for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def fitted(x, y, mean, variance):
    """Return what (y − mean') / √variance' is to be nearest to (x − mean) / √variance, for one channel.

    From x ≈ a + b y: the input standardised is (a + b y − mean) / s = (y − (mean − a) / b) / (s / b).
    """
    slope = 1.0 if np.ptp(y) < 1e-9 else float(np.clip(linregress(y, x).slope, 0.5, 2))
    intercept = x.mean() - slope * y.mean()
    return (mean - intercept) / slope, variance / slope**2


def by_channel(x):
    return x.movedim(1, 0).flatten(1).numpy()


def by_hand(model, reference, batches):
    """Return {layer: (corrected values, …)} of two_layers, in float64: the procedure, keeping everything seen."""
    model, reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    first = copy.deepcopy(reference)
    seen = {at: ([], []) for at in (*NORMS, *BIASED)}
    with torch.no_grad():
        for batch in batches:
            x = y = batch.double()
            for at, (old, new) in enumerate(zip(reference, model, strict=True)):
                if at in NORMS:
                    seen[at][0].append(by_channel(x))
                    seen[at][1].append(by_channel(y))
                    pairs = zip(*(np.concatenate(side, axis=1) for side in seen[at]), strict=True)
                    values = [
                        fitted(*pair, float(first[at].running_mean[k]), float(first[at].running_var[k]))
                        for k, pair in enumerate(pairs)
                    ]
                    mean, variance = np.transpose(values)
                    new.running_mean.copy_(torch.from_numpy(mean))
                    new.running_var.copy_(torch.from_numpy(variance))
                if at in BIASED:
                    new.bias.copy_(first[at].bias)
                    seen[at][0].append(by_channel(old(x)))
                    seen[at][1].append(by_channel(new(y)))
                    before, after = (np.concatenate(side, axis=1).mean(axis=1) for side in seen[at])
                    new.bias.add_(torch.from_numpy(before - after))
                x, y = old(x), new(y)
    values = {at: (model[at].running_mean.numpy(), model[at].running_var.numpy()) for at in NORMS}
    return values | {at: (model[at].bias.detach().numpy(),) for at in BIASED}


def assert_corrected(model, expected):
    for at, wanted in expected.items():
        layer = model[at]
        found = (layer.running_mean, layer.running_var) if at in NORMS else (layer.bias.detach(),)
        for value, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)


class TestBatchNorm:
    FACTORS = (1.0, 0.8, 1.9, 5.0, 0.1, -1.0)
    """What rounding makes of the weights of each channel."""
    RATIOS = (1.0, 0.8, 1.9, 2.0, 0.5, 2.0)
    """var y / cov(x, y) of y = factor · x is the factor; taken between ½ and 2, and 2 for a covariance below 0."""

    def pair(self, factors):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            reference = nn.Sequential(nn.Conv2d(3, len(factors), 2, bias=False), nn.BatchNorm2d(len(factors))).eval()
            reference[1].running_mean.normal_()
            reference[1].running_var.uniform_(0.5, 2)
        model = copy.deepcopy(reference)
        with torch.no_grad():
            model[0].weight.mul_(torch.tensor(factors)[:, None, None, None])
        return reference, model

    def test_scaled_channels_by_the_formula(self, store):
        reference, model = self.pair(self.FACTORS)
        with torch.no_grad():
            x = by_channel(reference[0](images(store))).astype(np.float64).mean(axis=1)
        mean, variance = (
            value.double().numpy().copy() for value in (reference[1].running_mean, reference[1].running_var)
        )
        assert correct(model, reference, store) == 1
        ratio = np.array(self.RATIOS)
        expected = np.array(self.FACTORS) * x + ratio * (mean - x)
        np.testing.assert_allclose(model[1].running_mean, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model[1].running_var, ratio**2 * variance, rtol=1e-5)

    def test_a_channel_without_relation_to_what_it_was_is_damped(self, store):
        reference, model = self.pair((1.0, 1.0))
        with torch.no_grad():
            x = images(store).double()
            reference[0].weight.zero_()[:, 0, 0, 0] = 1.0
            model[0].weight.zero_()
            model[0].weight[0, 1, 1, 1] = -1.0  # another pixel and colour, with little and negative covariance
            model[0].weight[1, 2, 0, 1] = 1e-3  # the same, faint: what rounding left of it is not blown up
        colours = [x[:, 0, :-1, :-1], -x[:, 1, 1:, 1:], 1e-3 * x[:, 2, :-1, 1:]]
        old, noise, faint = (colour.flatten().numpy() for colour in colours)
        assert np.cov(old, noise)[0, 1] < 0 < np.cov(old, faint)[0, 1]
        mean, variance = (value.clone() for value in (reference[1].running_mean, reference[1].running_var))
        correct(model, reference, store)
        torch.testing.assert_close(model[1].running_var, torch.tensor([4.0, 0.25]) * variance)
        for k, (y, ratio) in enumerate([(noise, 2.0), (faint, 0.5)]):
            expected = y.mean() + ratio * (float(mean[k]) - old.mean())
            assert float(model[1].running_mean[k]) == pytest.approx(expected, rel=1e-5)

    def test_a_constant_channel_keeps_its_variance(self, store):
        reference = two_layers()
        with torch.no_grad():
            reference[0].weight[2] = 0
        model = coarse(reference)
        with torch.no_grad():
            model[0].weight[3] = 0  # pruned by the rounding: a constant from now on
        correct(model, reference, store)
        assert torch.equal(model[1].running_var[2:4], reference[1].running_var[2:4])
        assert float(model[1].running_mean[2]) == pytest.approx(float(reference[1].running_mean[2]), rel=1e-6)
        with torch.no_grad():  # the pruned one puts out what the channel did on average
            old, new = (which[:2](images(store)).mean(dim=(0, 2, 3)) for which in (reference, model))
        torch.testing.assert_close(new[2:4], old[2:4], rtol=1e-4, atol=1e-5)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())

    def test_no_other_statistics_bring_the_output_nearer(self, store):
        reference = two_layers()
        model = coarse(reference)
        correct(model, reference, store)

        def distance():
            with torch.no_grad():
                x = images(store).double()
                old, new = (copy.deepcopy(which).double()[:6](x) for which in (reference, model))
            return (old - new).square().mean(dim=(0, 2, 3))

        best = distance()
        ratio = (model[5].running_var / reference[5].running_var).sqrt()
        free = (ratio > 0.51) & (ratio < 1.99)
        assert int(free.sum()) >= 2
        for value, step in [(model[5].running_mean, 0.02), (model[5].running_var, 0.04)]:
            for sign in (-1, 1):
                value.add_(sign * step)
                assert (distance() > best)[free].all()
                value.sub_(sign * step)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_one_batch_by_hand(store, make):
    reference = two_layers(make=make)
    model = coarse(reference)
    expected = by_hand(model, reference, [images(store)])
    assert correct(model, reference, store) == 5
    assert_corrected(model, expected)
    assert not np.allclose(expected[5][0], reference[5].running_mean, rtol=0.01)
    assert not np.allclose(expected[7][0], reference[7].bias.detach(), rtol=0.01)


def test_several_batches_by_hand(store, monkeypatch):
    monkeypatch.setattr(correction, "BATCH", 30)
    reference = two_layers()
    model, at_once = coarse(reference), coarse(reference)
    rows = np.random.default_rng(7).permutation(store.indices("train"))
    assert len(rows) == 96
    expected = by_hand(model, reference, [images(store, part) for part in np.array_split(rows, 3)])
    correct(model, reference, store, seed=7)
    assert_corrected(model, expected)
    monkeypatch.setattr(correction, "BATCH", 96)
    correct(at_once, reference, store, seed=7)
    assert not torch.allclose(at_once[5].running_mean, model[5].running_mean, rtol=1e-4)


def test_batches_are_even(store, monkeypatch):
    monkeypatch.setattr(correction, "BATCH", 64)
    sizes = []
    reference = two_layers()
    reference.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for samples in (95, 96):
        correct(coarse(two_layers()), reference, store, samples=samples)
    assert sizes == [95, 48, 48]


def test_a_sample_is_drawn_by_the_seed(store):
    reference = two_layers()
    models = [coarse(reference) for _ in range(3)]
    rows = np.random.default_rng(3).permutation(store.indices("train"))[:20]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        correct(model, reference, store, samples=20, seed=seed)
    assert_corrected(models[0], by_hand(coarse(reference), reference, [images(store, rows)]))
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["1.running_mean"], states[2]["1.running_mean"])


def mean_output(value):
    """Return the mean of an output (N, C, H, W) or (…, C) by channel."""
    return value.mean((0, 2, 3)) if value.ndim == 4 else value.flatten(0, -2).mean(0)


@pytest.mark.parametrize("make", [two_layers, Tokens, small_transformer])
def test_every_biased_layer_has_the_mean_output_it_had(store, make):
    reference = make()
    model = coarse(reference)
    correct(model, reference, store)
    means = []
    for which in (reference, model, coarse(reference)):
        found = {}
        for name, layer in quantizable_layers(which).items():
            layer.register_forward_hook(lambda module, _, output, at=name, found=found: found.update({at: output}))
        with torch.no_grad():
            which(images(store))
        means.append({at: mean_output(value) for at, value in found.items()})
    for name, value in means[0].items():
        torch.testing.assert_close(means[1][name], value, rtol=1e-4, atol=1e-5)
    assert any((means[2][name] - value).abs().max() > 0.01 for name, value in means[0].items())


@pytest.mark.parametrize("make", [two_layers, Tokens, small_transformer])
def test_nothing_rounded_is_nothing_changed(store, make, monkeypatch):
    monkeypatch.setattr(correction, "BATCH", 30)
    reference = make()
    model = copy.deepcopy(reference)
    correct(model, reference, store)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_statistics_and_biases_of_the_model_alone_change(store):
    reference = two_layers()
    model = coarse(reference)
    before, full = state_of(model), state_of(reference)
    correct(model, reference, store)
    for name, value in model.state_dict().items():
        corrected = name.endswith(("running_mean", "running_var")) or name in {f"{at}.bias" for at in BIASED}
        assert torch.equal(value, before[name]) != corrected, name
    assert all(torch.equal(value, full[name]) for name, value in reference.state_dict().items())
    assert not hooks_of(model, reference)
    for which in (model, reference):
        assert not any(module.training for module in which.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in which.parameters())


@pytest.mark.parametrize("failing", ["model", "reference"])
def test_nothing_is_left_behind_by_a_failure(store, failing):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")

    models = {"reference": two_layers(), "model": coarse(two_layers())}
    models[failing][6] = Fails()
    with pytest.raises(RuntimeError, match="out of memory"):
        correct(models["model"], models["reference"], store)
    assert not hooks_of(*models.values())


class Twice(nn.Module):
    """One convolution, and if asked for one batch norm, used twice in a forward pass."""

    def __init__(self, norm):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), norm

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.norm(self.conv(x.relu()))


def test_a_layer_used_twice_is_corrected_over_both_uses(store):
    reference = Twice(nn.Identity()).eval()
    model = coarse(reference)
    with torch.no_grad():
        old, new = (copy.deepcopy(which.conv).double() for which in (reference, model))
        x = images(store).double()
        first_old, first_new = old(x), new(x)
        lost = (first_old - first_new).mean((0, 2, 3))
        second_old, second_new = old(first_old.relu()), new((first_new + lost[:, None, None]).relu())
        lost = (lost + (second_old - second_new).mean((0, 2, 3))) / 2
    assert correct(model, reference, store) == 1
    torch.testing.assert_close(model.conv.bias.double(), old.bias + lost, rtol=1e-5, atol=1e-6)
    assert lost.abs().max() > 0.01


def test_a_batch_norm_used_twice_keeps_apart_what_it_was_given(store):
    reference = Twice(nn.BatchNorm2d(3)).eval()
    model = copy.deepcopy(reference)
    assert correct(model, reference, store) == 2
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_inputs_that_a_model_changes_afterwards_are_seen_as_they_were(store):
    class Adds(nn.Module):
        def __init__(self, norm, in_place):
            super().__init__()
            self.norm, self.in_place = norm, in_place

        def forward(self, x):
            y = self.norm(x).relu()
            return x.add_(y) if self.in_place else x + y

    found = []
    for in_place in (False, True):
        layers = two_layers()
        reference = nn.Sequential(layers[0], Adds(layers[1], in_place), nn.Flatten(), nn.Linear(54, 2)).eval()
        with torch.no_grad():
            reference[3].weight.fill_(0.1)
            reference[3].bias.zero_()
        model = coarse(reference)
        correct(model, reference, store)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_layers_with_nothing_to_correct_are_left(store):
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LayerNorm(144), nn.Linear(144, 2, bias=False),
    ).eval()  # fmt: skip
    model = coarse(plain)
    before = state_of(model)
    assert correct(model, plain, store) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_no_image_passes_through_are_not_counted(store):
    """The output projection of torch's attention is read, not called."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1))

    reference = Attends().eval()
    model = coarse(reference)
    assert correct(model, reference, store) == 1
    assert torch.equal(model.attention.out_proj.bias, reference.attention.out_proj.bias)
    with torch.no_grad():
        old, new = (which(images(store)).mean(dim=0) for which in (reference, model))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


def test_reduced_precision_is_close(store):
    reference = two_layers()
    exact, rough = coarse(reference), coarse(reference)
    correct(exact, reference, store)
    correct(rough, reference, store, precision="bf16")
    for at in NORMS:
        torch.testing.assert_close(rough[at].running_mean, exact[at].running_mean, rtol=0.05, atol=0.02)
    torch.testing.assert_close(rough[7].bias, exact[7].bias, rtol=0.05, atol=0.02)
    assert rough[7].bias.dtype == torch.float32
    assert not torch.equal(rough[1].running_mean, exact[1].running_mean)


@pytest.mark.parametrize("samples", [0, 1])
def test_one_image_has_no_variance(store, samples):
    line = f"^quantize.correction_images: got {samples} images; allowed: 2 or more of the train split$"
    reference = two_layers()
    with pytest.raises(UserError, match=line):
        correct(two_layers(), reference, store, samples=samples)
    assert not hooks_of(reference)


@pytest.mark.parametrize(
    "make",
    [two_layers, lambda seed: two_layers(seed, BatchNormAct2d), Tokens, small_transformer],
    ids=["batch_norm", "batch_norm_act", "tokens", "transformer"],
)
def test_rounded_models_come_nearer_to_full_precision(store, make):
    """Logits of the validation split: mean squared error, corrected over not, the geometric mean of trained models."""
    ratios = []
    for seed in range(3):
        reference = trained(make(seed), store)
        expected = logits_of(reference, store)
        for share in (1, 2, 3, 5):
            model = coarse(reference, share)
            before = np.square(logits_of(model, store) - expected).mean()
            correct(model, reference, store)
            ratios.append(np.square(logits_of(model, store) - expected).mean() / before)
    assert np.exp(np.mean(np.log(ratios))) < 0.9


def trained(model, store):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    (batch,) = iterate(store, store.indices("train"), batch_size=96, device=CPU)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
    return model.eval()


def logits_of(model, store):
    return predict(model, store, "val", batch_size=64, device=CPU).logits
