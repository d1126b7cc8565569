"""Fairness losses: a contract for every plug-in, and each against a float64 oracle that shares no code with it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fairquant import plugins
from fairquant.config import Section
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError, UserError
from fairquant.train.losses import compression_drop, gap, group_dro, none
from fairquant.train.terms import LossBatch

NAMES = plugins.names("loss")
CPU = torch.device("cpu")


def example(seed: int = 0, n: int = 40, groups: int = 4, n_groups: int | None = None) -> LossBatch:
    """Return logits of student and teacher (the teacher is right more often) in float64."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 3, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 3, (n,), generator=random)
    codes = torch.randint(0, groups, (n,), generator=random)
    teacher = logits + 2 * torch.nn.functional.one_hot(labels, 3)
    return LossBatch(logits.requires_grad_(), labels, codes, n_groups or groups, teacher)


def fresh(name, n_groups, **settings):
    """Return the plug-in, its options and a new state."""
    module = plugins.load("loss", name)
    options = module.Options(**settings)
    return module, options, module.start(n_groups, options, CPU) if hasattr(module, "start") else {}


def run(name, batches, **settings):
    """Return the values of a fresh loss on ``batches`` in turn, and its state after them."""
    module, options, state = fresh(name, batches[0].n_groups, **settings)
    return [module.loss(batch, options, state) for batch in batches], state


def sample_losses(batch):
    """-log softmax, sample by sample in python floats."""
    rows = zip(batch.logits.tolist(), batch.labels.tolist(), strict=True)
    return [math.log(sum(math.exp(x) for x in row)) - row[label] for row, label in rows]


def group_losses(batch, weights=None):
    """Group code -> (weighted) mean of the samples' losses, present groups only."""
    found: dict[int, list[tuple[float, float]]] = {}
    parts = [1.0] * len(batch.labels) if weights is None else [weights[label] for label in batch.labels.tolist()]
    for loss, part, group in zip(sample_losses(batch), parts, batch.groups.tolist(), strict=True):
        found.setdefault(group, []).append((loss * part, part))
    return {g: sum(loss for loss, _ in pairs) / sum(part for _, part in pairs) for g, pairs in found.items()}


@pytest.mark.parametrize("name", NAMES)
class TestEveryLoss:
    def test_is_a_finite_scalar_with_gradient_on_every_step(self, name):
        batches = [example(seed) for seed in range(4)]
        values, state = run(name, batches)
        for value, batch in zip(values, batches, strict=True):
            assert value.shape == () and torch.isfinite(value) and value >= 0
            value.backward()
            assert torch.isfinite(batch.logits.grad).all()
        assert all(torch.isfinite(tensor).all() and not tensor.requires_grad for tensor in state.values())

    def test_repeats_itself(self, name):
        (one, state), (two, other) = (run(name, [example(seed) for seed in range(3)]) for _ in range(2))
        assert torch.equal(torch.stack(one), torch.stack(two))
        assert all(torch.equal(state[key], other[key]) for key in state)

    def test_does_not_depend_on_the_numbering_of_groups(self, name):
        places = torch.tensor([2, 0, 3, 1])
        batches = [example(seed) for seed in range(3)]
        values, state = run(name, batches)
        others, moved = run(name, [dataclasses.replace(batch, groups=places[batch.groups]) for batch in batches])
        torch.testing.assert_close(torch.stack(values), torch.stack(others), rtol=1e-5, atol=1e-7)
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, moved[key][places], rtol=1e-5, atol=1e-6)

    def test_batches_of_one_group_and_of_one_sample(self, name):
        batch = example()
        batches = [dataclasses.replace(batch, groups=torch.full_like(batch.groups, 3)), example(n=1)]
        for value in run(name, batches)[0]:
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(batch.logits.grad).all()

    def test_float32_and_class_weights(self, name):
        batch = example()
        weights = torch.tensor([0.5, 1.0, 2.0])
        narrow = dataclasses.replace(batch, logits=batch.logits.float(), class_weights=weights)
        wide = dataclasses.replace(batch, class_weights=weights.double())
        (value,), _ = run(name, [narrow])
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(run(name, [wide])[0][0].item(), rel=1e-5, abs=1e-6)

    def test_never_waits_for_the_accelerator(self, name):
        """Tensors without data: whatever needs a value on the host fails."""
        batch = example()
        module, options, state = fresh(name, 4)
        tensors = {key: getattr(batch, key).to("meta") for key in ("logits", "labels", "groups", "teacher")}
        weights = torch.ones(3, dtype=torch.float64, device="meta")
        far = dataclasses.replace(batch, **tensors, class_weights=weights)
        remote = {key: tensor.to("meta") for key, tensor in state.items()}
        value = module.loss(far, options, remote)
        assert value.is_meta and value.shape == ()

    def test_options_are_frozen_and_refuse_the_unknown(self, name):
        assert issubclass(plugins.load("loss", name).Options, Section)
        with pytest.raises(ConfigError, match=rf"^params.yaml: quantize\.losses\.{name}\.ghost: unknown key, got 1"):
            parse_config({"quantize": {"losses": {name: {"ghost": 1}}}})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("group_dro.step", 0, "a number in (0, inf)"),
        ("compression_drop.tolerance", -0.1, "a number in [0, 1]"),
        ("compression_drop.step", 0, "a number in (0, inf)"),
        ("compression_drop.memory", 1, "a number in [0, 1)"),
    ],
)
def test_options_out_of_range_are_one_line(key, value, allowed):
    name, option = key.split(".")
    with pytest.raises(ConfigError) as error:
        parse_config({"quantize": {"losses": {name: {option: value}}}})
    assert str(error.value) == f"params.yaml: quantize.losses.{key}: got {value}; allowed: {allowed}"


@pytest.mark.parametrize("name", ["gap", "compression_drop", "fairalm"])  # group_dro: 1/G of the weight is everyone's
def test_groups_that_never_come_change_nothing(name):
    batches = [example(seed, groups=2) for seed in range(3)]
    values, _ = run(name, batches)
    shifted = [dataclasses.replace(batch, groups=batch.groups + 3, n_groups=9) for batch in batches]
    torch.testing.assert_close(torch.stack(run(name, shifted)[0]), torch.stack(values), rtol=1e-6, atol=1e-8)


class TestGap:
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_brute_force(self, seed):
        batch = example(seed)
        means = group_losses(batch).values()
        assert run("gap", [batch])[0][0].item() == pytest.approx(max(means) - min(means), rel=1e-12)

    def test_one_group_is_zero(self):
        batch = example()
        value = run("gap", [dataclasses.replace(batch, groups=torch.full_like(batch.groups, 3))])[0][0]
        value.backward()
        assert value.item() == 0.0 and batch.logits.grad.abs().max() < 1e-12

    def test_gradient_is_right_and_flows_from_the_extreme_groups_only(self):
        batch = example(groups=3)

        def value(logits):
            return gap.loss(dataclasses.replace(batch, logits=logits), gap.Options(), {})

        assert torch.autograd.gradcheck(value, (batch.logits,))
        value(batch.logits).backward()
        assert len({int(g) for g in batch.groups[batch.logits.grad.abs().sum(1) > 0]}) == 2


def test_none_has_zero_gradient():
    batch = example()
    none.loss(batch, none.Options(), {}).backward()
    assert torch.equal(batch.logits.grad, torch.zeros_like(batch.logits))


def dro_oracle(batches, step, weights=None):
    """Algorithm 1 of arXiv 1911.08731 in float64: values, gradients of the logits and the weights after each step."""
    q = np.full(batches[0].n_groups, 1 / batches[0].n_groups)
    history = []
    for batch in batches:
        means = group_losses(batch, weights)
        q = q * np.exp([step * means.get(g, 0.0) for g in range(len(q))])
        q = q / q.sum()
        probabilities = np.exp(batch.logits.detach().numpy())
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        labels, groups = batch.labels.numpy(), batch.groups.numpy()
        parts = np.ones(len(labels)) if weights is None else np.asarray(weights)[labels]
        share = q[groups] * parts / np.bincount(groups, parts, minlength=len(q))[groups]
        gradient = share[:, None] * (probabilities - np.eye(probabilities.shape[1])[labels])
        history.append((sum(q[g] * mean for g, mean in means.items()), gradient, q.copy()))
    return history


class TestGroupDro:
    @pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
    @pytest.mark.parametrize("step", [0.05, 2.0])
    def test_equals_the_published_algorithm(self, step, weights):
        """Group 4 never comes, group 3 in half of the batches only."""
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        batches = [
            dataclasses.replace(example(seed, groups=4 - seed % 2, n_groups=5), class_weights=tensor)
            for seed in range(6)
        ]
        module, options, state = fresh("group_dro", 5, step=step)
        for batch, (value, gradient, q) in zip(batches, dro_oracle(batches, step, weights), strict=True):
            got = module.loss(batch, options, state)
            got.backward()
            assert got.item() == pytest.approx(value, rel=1e-5)
            np.testing.assert_allclose(batch.logits.grad.numpy(), gradient, rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(state["log_weights"].exp().numpy(), q, rtol=1e-5)

    def test_one_group_is_its_cross_entropy(self):
        batch = example(groups=1)
        expected = cross_entropy(batch.logits, batch.labels).item()
        assert run("group_dro", [batch])[0][0].item() == pytest.approx(expected, rel=1e-6)

    def test_the_worst_group_takes_over_and_no_weight_is_lost_to_underflow(self):
        bad, good = torch.tensor([[-50.0, 0.0]]), torch.tensor([[50.0, 0.0]])
        labels, groups = torch.tensor([0, 0]), torch.tensor([0, 1])
        batches = [LossBatch(torch.cat([bad, good]), labels, groups, 2)] * 10
        swapped = [LossBatch(torch.cat([good, bad]), labels, groups, 2)] * 20
        assert run("group_dro", batches, step=1.0)[1]["log_weights"].exp().tolist() == [1.0, 0.0]
        _, state = run("group_dro", batches + swapped, step=1.0)
        assert state["log_weights"].exp().tolist() == [0.0, 1.0]


def drop_oracle(batches, *, tolerance, step, memory):
    """The docstring's three steps in numpy: value, gradient of the logits, multipliers after each step."""
    n_groups = batches[0].n_groups
    record, multipliers, history = [], np.zeros(n_groups), []
    for batch in batches:
        labels, groups = batch.labels.numpy(), batch.groups.numpy()
        logits = batch.logits.detach().numpy()
        change = (batch.teacher.numpy().argmax(1) == labels) * 1.0 - (logits.argmax(1) == labels)
        record.append((groups, change))
        fade = [memory ** (len(record) - 1 - t) for t in range(len(record))]
        lost = [sum(f * c[g == k].sum() for f, (g, c) in zip(fade, record, strict=True)) for k in range(n_groups)]
        seen = [sum(f * (g == k).sum() for f, (g, c) in zip(fade, record, strict=True)) for k in range(n_groups)]
        for k in range(n_groups):
            if seen[k]:
                violation = lost[k] / seen[k] - sum(lost) / sum(seen) - tolerance
                multipliers[k] = min(1, max(0, multipliers[k] + step * seen[k] / (seen[k] + 50) * violation))
        means = group_losses(batch)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        share = multipliers[groups] / np.bincount(groups, minlength=n_groups)[groups]
        gradient = share[:, None] * (probabilities - np.eye(logits.shape[1])[labels])
        history.append((sum(multipliers[g] * mean for g, mean in means.items()), gradient, multipliers.copy()))
    return history


def answers(right, groups, n_groups=2):
    """Return a batch of label 0 whose student is right where ``right`` says so; the teacher always is."""
    right = torch.tensor(right)
    logits = torch.stack([right.double(), 1 - right.double()], dim=1).requires_grad_()
    teacher = torch.tensor([[1.0, 0.0]]).expand(len(right), 2)
    return LossBatch(logits, torch.zeros(len(right), dtype=torch.int64), torch.tensor(groups), n_groups, teacher)


class TestCompressionDrop:
    @pytest.mark.parametrize(
        "settings",
        [
            {"tolerance": 0.0, "step": 0.2, "memory": 0.98},
            {"tolerance": 0.05, "step": 5.0, "memory": 0.5},
            {"tolerance": 0.0, "step": 1.0, "memory": 0.0},
        ],
    )
    def test_equals_the_oracle(self, settings):
        """Group 4 never comes, group 3 in half of the batches only."""
        batches = [example(seed, n=60, groups=4 - seed % 2, n_groups=5) for seed in range(8)]
        module, options, state = fresh("compression_drop", 5, **settings)
        moved = 0.0
        for batch, (value, gradient, multipliers) in zip(batches, drop_oracle(batches, **settings), strict=True):
            got = module.loss(batch, options, state)
            got.backward()
            assert got.item() == pytest.approx(value, rel=1e-4, abs=1e-6)
            np.testing.assert_allclose(batch.logits.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(state["multipliers"].numpy(), multipliers, rtol=1e-4, atol=1e-6)
            moved = max(moved, multipliers.max())
        assert moved > 0.01

    def test_is_the_surrogates_lagrangian_up_to_a_factor(self):
        """CE + λ Σ m CE_g = (1 + M) [CE + Σ μ (CE_g − CE)], and no sample's weight is negative."""
        batch, weight = example(n=60), 3.0
        module, options, state = fresh("compression_drop", 4, step=1.0)
        state["multipliers"] += torch.tensor([0.3, 0.0, 1.0, 0.0])
        value = cross_entropy(batch.logits, batch.labels) + weight * module.loss(batch, options, state)
        means, m = group_losses(batch), state["multipliers"].double().numpy()
        mean, total = np.mean(sample_losses(batch)), weight * m.sum()
        lagrangian = mean + sum(weight * m[g] / (1 + total) * (means[g] - mean) for g in range(4))
        assert value.item() == pytest.approx((1 + total) * lagrangian, rel=1e-6)
        value.backward()
        own = batch.logits.grad[torch.arange(60), batch.labels]
        assert (own < 0).all()  # every sample's own logit is pushed up

    def test_hand_value(self):
        """Group 0 loses 1 of 2, all lose 1 of 4: m = 1 · 2/52 · (1/2 − 1/4); CE_0 = (ln(1+1/e) + ln(1+e)) / 2."""
        batch = answers([True, False, True, True], [0, 0, 1, 1])
        (value,), state = run("compression_drop", [batch], step=1.0)
        assert state["multipliers"].tolist() == pytest.approx([2 / 52 / 4, 0.0])
        mean = (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2
        assert value.item() == pytest.approx(2 / 52 / 4 * mean, rel=1e-6)

    def test_the_harmed_group_gets_the_gradient(self):
        batch = answers([True, False, True, True], [0, 0, 1, 1])
        run("compression_drop", [batch])[0][0].backward()
        own = batch.logits.grad[:, 0]
        assert (own[:2] < 0).all() and (own[2:] == 0).all()

    def test_a_met_constraint_asks_for_nothing_and_releases_the_multiplier(self):
        harmed, even = answers([True, False, True, True], [0, 0, 1, 1]), answers([True, False] * 2, [0, 0, 1, 1])
        module, options, state = fresh("compression_drop", 2, memory=0.0)
        module.loss(harmed, options, state)
        before = state["multipliers"][0].item()
        module.loss(even, options, state)
        assert state["multipliers"][0].item() == before > 0
        module.loss(answers([True, True, True, False], [0, 0, 1, 1]), options, state)
        assert state["multipliers"][0].item() == 0.0
        (value,), state = run("compression_drop", [even])
        assert value.item() == 0.0 and not state["multipliers"].any()

    def test_one_group_never_violates(self):
        values, state = run("compression_drop", [example(seed, groups=1) for seed in range(3)])
        assert torch.stack(values).tolist() == [0.0] * 3 and not state["multipliers"].any()

    def test_tolerance_is_granted(self):
        batch = answers([True, False, True, True], [0, 0, 1, 1])
        assert run("compression_drop", [batch], tolerance=0.25)[0][0].item() == 0.0
        assert run("compression_drop", [batch], tolerance=0.2)[0][0].item() > 0.0

    def test_multipliers_stay_in_the_unit_interval(self):
        batch = answers([False, False, True, True], [0, 0, 1, 1])
        _, state = run("compression_drop", [batch] * 30, step=10.0)
        assert state["multipliers"].tolist() == [1.0, 0.0]

    def test_a_rare_group_keeps_its_average_and_moves_more_slowly(self):
        """Once 1 of 1 lost, then absent: the drop stays 1, the samples in memory fade."""
        batches = [answers([False, True, True, True], [0, 1, 1, 1])] + [answers([True] * 4, [1] * 4)] * 3
        _, state = run("compression_drop", batches, memory=0.5)
        assert (state["lost"] / state["seen"])[0].item() == 1.0 and state["seen"][0].item() == 0.125
        seldom = run("compression_drop", batches[:1])[1]["multipliers"][0]
        often = run("compression_drop", [answers([False] * 50 + [True] * 150, [0] * 50 + [1] * 150)])[1]["multipliers"]
        assert 0 < seldom < often[0] / 20

    def test_a_group_that_loses_more_weighs_more(self):
        right = [False] * 6 + [True] * 4 + [False] * 4 + [True] * 6 + [True] * 20
        _, state = run("compression_drop", [answers(right, [0] * 10 + [1] * 10 + [2] * 20, 3)] * 5)
        first, second, third = state["multipliers"].tolist()
        assert first > second > third == 0.0

    def test_without_teacher_is_refused(self):
        batch = dataclasses.replace(example(), teacher=None)
        message = "^loss: got a batch without teacher; allowed: one with the full-precision model's logits$"
        with pytest.raises(UserError, match=message):
            run("compression_drop", [batch])


def student_drops(name, factor):
    """Accuracy lost by 900 and 100 samples under a linear model that can serve one group: labels sign(x), sign(y)."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(1000, 2, generator=random, dtype=torch.float64)
    groups = (torch.arange(1000) >= 900).long()
    labels = (points.gather(1, groups[:, None])[:, 0] > 0).long()
    teacher = torch.nn.functional.one_hot(labels, 2).double()
    weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02)
    module, options, state = fresh(name, 2)
    for _ in range(400):
        rows = torch.randperm(1000, generator=random)[:100]
        logits = points[rows] @ weight
        batch = LossBatch(logits, labels[rows], groups[rows], 2, teacher[rows])
        optimizer.zero_grad()
        (cross_entropy(logits, labels[rows]) + factor * module.loss(batch, options, state)).backward()
        optimizer.step()
    right = ((points @ weight).argmax(1) == labels).double()
    return [1 - right[groups == g].mean().item() for g in (0, 1)]


def test_protected_groups_lose_less():
    """A student that cannot serve both groups gives the small one up, unless asked not to."""
    large, small = student_drops("none", 0.0)
    assert small > large + 0.3
    for name, factor in (("group_dro", 4.0), ("compression_drop", 1.0)):
        large, small = student_drops(name, factor)
        assert abs(small - large) < 0.15, name


def test_who_needs_a_teacher():
    assert [n for n in NAMES if getattr(plugins.load("loss", n), "TEACHER", False)] == ["compression_drop"]
    assert group_dro.Options().step == 0.05 and compression_drop.Options().memory == 0.98
