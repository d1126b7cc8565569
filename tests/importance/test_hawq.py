"""hawq against the exact Hessian: torch.autograd.functional.hessian in float64, and hand-made diagonal ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from fairquant.errors import UserError
from fairquant.importance.measure import measure_importance
from fairquant.importance.metrics import hawq
from fairquant.importance.metrics.hawq import Options
from fairquant.importance.twice import twice_differentiable
from fairquant.models.layers import quantizable_layers

CPU = torch.device("cpu")
GROUPS = ("light", "medium", "dark × old")


@pytest.fixture
def store(tmp_path, make_store):
    return make_store(tmp_path / "prepared", n_per_group=30, groups=GROUPS, classes=("a", "b"), size=16, seed=1)


def measure(model, store, **change):
    settings = {"metric": "hawq", "batch_size": 7, "device": CPU, "seed": 4, **change}
    return measure_importance(model, store, **settings)


class Attention(nn.Module):
    """Patches → one block of two-headed attention with layer norm and GELU → the mean token → logits."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 4, 4, stride=4, bias=False), nn.LayerNorm(4)
        self.qkv, self.proj, self.head = nn.Linear(4, 12, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, images):
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        b, n, width = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).reshape(b, n, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        return self.head(F.gelu(tokens + self.proj(mixed)).mean(1))


def convolutional():
    """Grouped convolution, batch norm with statistics of its own, and the activations of the mobile networks."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.SiLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Hardswish(),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 2, 1),
        nn.Hardsigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model[1].running_mean.normal_(0, 0.1)
    model[1].running_var.uniform_(0.5, 2)
    return model


def problem(make):
    """A model in float64 and four labelled images."""
    torch.manual_seed(3)
    model = make().double().eval()
    return model, torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0])


def exact_hessian(model, images, labels):
    """The full Hessian of the mean cross-entropy over the weights of all quantizable layers, in a row."""
    names = [f"{name}.weight" for name in quantizable_layers(model)]
    start = [model.get_parameter(name).detach() for name in names]

    def loss(flat):
        parts = flat.split([value.numel() for value in start])
        values = {name: part.view_as(old) for name, part, old in zip(names, parts, start, strict=True)}
        return F.cross_entropy(functional_call(model, values, (images,)), labels)

    with twice_differentiable():
        return torch.autograd.functional.hessian(loss, torch.cat([value.flatten() for value in start]))


def estimated(model, images, labels, *, samples, seeds=(0, 0)):
    weights = [layer.weight for layer in quantizable_layers(model).values()]
    with hawq.forward(CPU, "fp32"):
        loss = F.cross_entropy(model(images), labels)
    return torch.cat([value.flatten() for value in hawq.derivative(loss, weights, Options(samples=samples), seeds)])


@pytest.mark.parametrize("make", [convolutional, Attention])
def test_the_estimate_converges_to_the_exact_diagonal(make):
    """Its standard deviation is known: Var(v_i (Hv)_i) = Σ_{j≠i} H_ij². Six of them bound every entry."""
    model, images, labels = problem(make)
    hessian, samples = exact_hessian(model, images, labels), 300
    diagonal = hessian.diagonal()
    deviation = (hessian.square().sum(1) - diagonal.square()).sqrt()
    error = (estimated(model, images, labels, samples=samples) - diagonal).abs()
    assert bool((error <= 6 * deviation / math.sqrt(samples) + 1e-12).all())
    assert 0.7 < float((error / (deviation / math.sqrt(samples) + 1e-12)).square().mean().sqrt()) < 1.3
    assert bool((diagonal < -1e-3 * diagonal.max()).any())  # the sign of the curvature is kept until score


def test_one_vector_is_exact_where_the_hessian_is_diagonal():
    weight, curvature = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True), torch.tensor([[2.0, -3.0, 0.25]])
    loss = (curvature * weight.square()).sum() / 2
    [value] = hawq.derivative(loss, [weight], Options(samples=1), (0, 0))
    assert torch.equal(value, curvature)
    assert hawq.score(value, weight.detach()).tolist() == [[2.0, 12.0, 0.0625]]  # |h| w²


def test_more_vectors_begin_with_the_same_ones_and_seeds_change_them():
    model, images, labels = problem(convolutional)
    one, two = (estimated(model, images, labels, samples=n) for n in (1, 2))
    again, batch, seed = (estimated(model, images, labels, samples=1, seeds=s) for s in ((0, 0), (0, 1), (1, 0)))
    assert torch.equal(one, again)
    assert not torch.equal(one, batch) and not torch.equal(one, seed) and not torch.equal(batch, seed)
    assert not torch.equal(one, two)


class Curve(nn.Module):
    """One weight and a loss of either curvature: logits (0, 2 sin(w · mean pixel)). Its Hessian is one number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, 1.5)

    def forward(self, images):
        logit = 2 * torch.sin(self.layer(images.mean((1, 2, 3))[:, None]))
        return torch.cat([torch.zeros_like(logit), logit], 1)


def curvatures(store, group, batch_size, seed):
    """Second derivatives of each batch's loss, by hand: s = 2 sin(wx), ℓ'' = σ(1−σ)s'² + (σ−y)s''."""
    train = store.indices("train")
    rows = np.random.default_rng(seed).permutation(train[store.groups[train] == group])
    x = ((store.images[rows] / 255 - store.meta["mean"]) / store.meta["std"]).mean((1, 2, 3))
    s, first, second = 2 * np.sin(1.5 * x), 2 * x * np.cos(1.5 * x), -2 * x**2 * np.sin(1.5 * x)
    p = 1 / (1 + np.exp(-s))
    each = p * (1 - p) * first**2 + (p - store.labels[rows]) * second
    parts = [each[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return np.array([part.mean() for part in parts]), np.array([len(part) for part in parts])


@pytest.mark.parametrize("samples", [1, 3])
def test_the_magnitude_is_taken_after_the_batches(store, samples):
    """18 samples in batches of 4 and 2: one magnitude per group; without normalising one per batch, summed."""
    options = Options(samples=samples)
    mean, plain = (measure(Curve(), store, batch_size=4, options=options, normalize=n) for n in ("sample", "none"))
    signs = set()
    for group in range(len(GROUPS)):
        h, sizes = curvatures(store, group, batch_size=4, seed=4)
        signs |= set(np.sign(h))
        wanted = abs((h * sizes).sum() / sizes.sum()) * 1.5**2
        np.testing.assert_allclose(mean.layers["layer"][group], [[wanted]], rtol=1e-4)
        np.testing.assert_allclose(plain.layers["layer"][group], [[np.abs(h).sum() * 1.5**2]], rtol=1e-4)
    assert signs == {-1.0, 1.0}


def test_the_map_is_the_groups_diagonal_times_the_squared_weight(tiny_model, store):
    """The whole loop against the exact Hessian of the group's mean loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2))
    samples = 200
    maps = measure(model, store, options=Options(samples=samples))
    train = store.indices("train")
    rows = np.random.default_rng(4).permutation(train[store.groups[train] == 1])
    pixels = (store.images[rows] / 255 - store.meta["mean"]) / store.meta["std"]
    images, labels = torch.tensor(pixels.transpose(0, 3, 1, 2)), torch.tensor(store.labels[rows])
    exact = torch.zeros(1)
    variance = torch.zeros(1)
    weight = torch.cat([layer.weight.detach().flatten() for layer in quantizable_layers(model).values()]).double()
    for start in range(0, len(rows), 7):
        part = slice(start, start + 7)
        hessian, share = exact_hessian(model.double(), images[part], labels[part]), len(labels[part]) / len(labels)
        exact = exact + share * hessian.diagonal()
        variance = variance + share**2 * (hessian.square().sum(1) - hessian.diagonal().square()) / samples
    got = torch.cat([torch.tensor(array[1]).flatten() for array in maps.layers.values()]).double()
    error = (got - exact.abs() * weight.square()).abs()
    assert bool((error <= (6 * variance.sqrt() + 1e-6) * weight.square()).all())


def test_groups_of_the_same_samples_get_the_same_map(tiny_model, store):
    """The vectors of a batch do not depend on the group."""
    same = replace(store, images=np.broadcast_to(store.images[:1], store.images.shape), labels=store.labels * 0)
    maps = measure(tiny_model(), same)
    assert all(np.array_equal(array[0], array[1]) and array.any() for array in maps.layers.values())


def test_bfloat16_leaves_second_derivatives_in_float32(tiny_model, store):
    one, two = (measure(tiny_model(), store, precision=precision) for precision in ("fp32", "bf16"))
    assert all(np.array_equal(one.layers[name], two.layers[name]) for name in one.layers)


def test_no_graph_is_kept_between_batches(tiny_model, store):
    """Everything a batch's graphs saved is gone when the next batch begins."""
    alive: set[int] = set()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen, self.peak = tiny_model(), [], 0

        def forward(self, images):
            self.seen.append(len(alive))
            output = self.inner(images)
            self.peak = max(self.peak, len(alive))
            return output

    model = Watched()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        measure(model, store)
    assert model.seen == [0] * 9
    assert model.peak > 0


def test_hard_sigmoid_in_its_equal_form():
    x = torch.linspace(-5, 5, 41, dtype=torch.float64, requires_grad=True)
    with twice_differentiable():
        value, module = F.hardsigmoid(x), nn.Hardsigmoid(inplace=True)(x + 0)
    torch.testing.assert_close(value, F.hardsigmoid(x))
    assert torch.equal(value, module)
    inner = (x.detach().abs() - 3).abs() > 0.1
    [slope], [wanted] = (torch.autograd.grad(f.sum(), x) for f in (value, F.hardsigmoid(x)))
    torch.testing.assert_close(slope[inner], wanted[inner])


def test_attention_gives_what_the_fused_kernel_gives():
    model, images, _ = problem(Attention)
    with twice_differentiable():
        plain = model(images)
    torch.testing.assert_close(plain, model(images))


def test_multi_head_attention_of_torch_is_measured():
    """Its fast path, taken where nothing needs a gradient, has no derivative at all; out_proj is used by its parent."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, images):
            tokens = self.patch(images).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    model, images, labels = problem(Tokens)
    model.requires_grad_(False)
    for layer in quantizable_layers(model).values():
        layer.weight.requires_grad_(True)
    hessian = exact_hessian(model, images, labels)
    deviation = (hessian.square().sum(1) - hessian.diagonal().square()).sqrt()
    error = (estimated(model, images, labels, samples=100) - hessian.diagonal()).abs()
    assert bool((error <= 6 * deviation / 10 + 1e-12).all())


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_an_operation_without_second_derivative_is_one_line(tiny_model, store):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

        def forward(self, images):
            return OnceOnly.apply(self.inner(images))

    with pytest.raises(UserError) as error:
        measure(Custom(), store)
    assert str(error.value) == (
        "importance_metric: got 'hawq' for a model that cannot be differentiated twice (cannot differentiate twice "
        "through a function marked @once_differentiable); allowed: a metric of first derivatives"
    )
    weight = torch.ones(2, 2, requires_grad=True)  # the same through torch's own operations, outside the context
    with pytest.raises(UserError, match="differentiated twice .*hardsigmoid_backward is not implemented"):
        hawq.derivative(F.hardsigmoid(weight).square().sum(), [weight], Options(), (0, 0))


class Out(torch.autograd.Function):
    """A backward pass that writes in place, as fast quantizers do."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.mul(gradient, 2, out=torch.empty_like(gradient))


def test_a_backward_pass_that_cannot_be_followed_is_one_line():
    weight = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(UserError, match="differentiated twice .*don't support automatic differentiation"):
        hawq.derivative(Out.apply(weight).square().sum(), [weight], Options(), (0, 0))


def test_other_errors_are_not_renamed():
    with pytest.raises(RuntimeError, match="does not require grad"):
        hawq.derivative(torch.ones(()), [torch.ones(2)], Options(), (0, 0))


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    weight = torch.ones(2, 2, requires_grad=True)
    assert hawq.derivative(weight.sum(), [weight], Options(), (0, 0)) == [None]


def test_options_are_recorded_with_the_maps(tiny_model, store):
    assert measure(tiny_model(), store, options=Options(samples=3)).meta["options"] == {"samples": 3}
    assert measure(tiny_model(), store).meta["options"] == {"samples": 2}
    assert "options" not in measure(tiny_model(), store, metric="grape").meta


def test_it_predicts_half_the_curvature_times_the_squared_perturbation():
    random = np.random.default_rng(0)
    w, h = random.normal(size=(5, 4)).astype(np.float32), random.normal(size=(3, 5, 4)).astype(np.float32)
    delta = (np.round(w * 4) / 4 - w).astype(np.float32)
    w[0, 0] = delta[0, 0] = 0
    maps = hawq.score(torch.tensor(h), torch.tensor(w)).numpy()
    wanted = np.abs(h.astype(np.float64)) * delta.astype(np.float64) ** 2 / 2
    np.testing.assert_allclose(hawq.predicted_increase(maps, delta, w), wanted, rtol=1e-5)


def test_it_cannot_predict_a_move_away_from_zero():
    with pytest.raises(ValueError, match="^delta: got 1 non-zero values on weights that are 0; allowed: 0 there$"):
        hawq.predicted_increase(np.ones(2, np.float32), np.ones(2, np.float32), np.array([0, 1], np.float32))
