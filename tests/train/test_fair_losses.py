"""Demographic parity, equalized odds and FairALM: float64 oracles, fairlearn on hard predictions, a worked case."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fairlearn.metrics import MetricFrame, demographic_parity_difference, false_positive_rate, true_positive_rate
from torch.nn.functional import cross_entropy

from fairquant import plugins
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError
from fairquant.evaluate import gaps
from fairquant.evaluate.groups import GroupTable
from fairquant.train.losses import fairalm
from fairquant.train.terms import LossBatch, LossTerm

CPU = torch.device("cpu")
PARITY = ("demographic_parity", "equalized_odds")
CLASSES, GROUPS = ["a", "b", "c"], ["0", "1", "2", "3"]


def example(seed=0, n=60, groups=4, classes=3, n_groups=None):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=random, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (n,), generator=random)
    return LossBatch(logits, labels, torch.randint(0, groups, (n,), generator=random), n_groups or groups)


def value_of(name, batch):
    module = plugins.load("loss", name)
    return module.loss(batch, module.Options(), {})


def certain(predicted, labels, groups, classes):
    """Return a batch whose probabilities are 0 or 1."""
    logits = 1000.0 * torch.nn.functional.one_hot(torch.tensor(predicted), classes).double()
    return LossBatch(logits.requires_grad_(), torch.tensor(labels), torch.tensor(groups), max(groups) + 1)


def spread_oracle(probabilities, groups, columns):
    """Mean over classes of max − min over groups; ``columns[k]``: the samples the rate of class k is over."""
    found = []
    for k, chosen in enumerate(columns):
        rates = [
            float(np.mean(probabilities[chosen & (groups == g), k]))
            for g in sorted(set(groups.tolist()))
            if (chosen & (groups == g)).any()
        ]
        if len(rates) > 1:
            found.append(max(rates) - min(rates))
    return float(np.mean(found)) if found else 0.0


def parity_oracle(name, batch):
    logits, labels, groups = batch.logits.detach().numpy(), batch.labels.numpy(), batch.groups.numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = range(logits.shape[1])
    if name == "demographic_parity":
        return spread_oracle(probabilities, groups, [np.ones(len(labels), bool) for _ in classes])
    own, other = [labels == k for k in classes], [labels != k for k in classes]
    return spread_oracle(probabilities, groups, own) + spread_oracle(probabilities, groups, other)


@pytest.mark.parametrize("name", PARITY)
class TestParityLosses:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(("n", "classes"), [(60, 3), (40, 2), (7, 4), (1, 2)])
    def test_equals_brute_force(self, name, seed, n, classes):
        """Small batches leave rates undefined in some groups, and classes without a gap."""
        batch = example(seed, n=n, classes=classes, n_groups=6)
        assert value_of(name, batch).item() == pytest.approx(parity_oracle(name, batch), rel=1e-12, abs=1e-15)

    def test_gradient_is_right(self, name):
        for batch in (example(n=24), example(seed=2, n=6)):
            assert torch.autograd.gradcheck(
                lambda logits, batch=batch: value_of(name, dataclasses.replace(batch, logits=logits)), (batch.logits,)
            )

    def test_one_group_is_zero_with_zero_gradient(self, name):
        batch = example()
        alone = dataclasses.replace(batch, groups=torch.full_like(batch.groups, 3))
        value = value_of(name, alone)
        value.backward()
        assert value.item() == 0.0 and batch.logits.grad.abs().max() < 1e-15

    def test_certain_predictions_give_the_reported_gap(self, name):
        """With probabilities 0 and 1 soft rates are rates: those of evaluate, which fairlearn confirms."""
        random = np.random.default_rng(0)
        labels, groups = random.integers(0, 3, 200).tolist(), random.integers(0, 4, 200).tolist()
        predicted = random.integers(0, 3, 200).tolist()
        value = value_of(name, certain(predicted, labels, groups, 3)).item()
        table = GroupTable.count(labels, predicted, groups, classes=CLASSES, groups=GROUPS)
        if name == "equalized_odds":
            assert value == pytest.approx(gaps.eodd(table))
        else:
            assert value == pytest.approx(np.mean([gaps.dp_difference(table, k) for k in range(3)]))

    def test_two_classes_agree_with_fairlearn(self, name):
        random = np.random.default_rng(1)
        labels, groups, predicted = (random.integers(0, high, 120).tolist() for high in (2, 3, 2))
        value = value_of(name, certain(predicted, labels, groups, 2)).item()
        if name == "demographic_parity":
            expected = demographic_parity_difference(labels, predicted, sensitive_features=groups)
        else:
            rates = {"tpr": true_positive_rate, "fpr": false_positive_rate}
            frame = MetricFrame(metrics=rates, y_true=labels, y_pred=predicted, sensitive_features=groups)
            expected = frame.difference(method="between_groups").sum()
        assert value == pytest.approx(expected)

    def test_which_class_is_positive_does_not_matter(self, name):
        batch = example(classes=2)
        swapped = dataclasses.replace(batch, logits=batch.logits.flip(1), labels=1 - batch.labels)
        assert value_of(name, swapped).item() == pytest.approx(value_of(name, batch).item(), rel=1e-12)

    def test_absent_groups_change_nothing(self, name):
        batch = example(groups=3)
        shifted = dataclasses.replace(batch, groups=batch.groups * 2 + 1, n_groups=9)
        assert value_of(name, shifted).item() == value_of(name, batch).item()


def test_a_step_of_descent_brings_selection_rates_together():
    batch = example(classes=2)
    value = value_of("demographic_parity", batch)
    value.backward()
    moved = dataclasses.replace(batch, logits=(batch.logits - 5 * batch.logits.grad).detach())
    assert value_of("demographic_parity", moved).item() < value.item() - 0.01


def test_a_group_without_positives_is_left_out_of_the_true_positive_rates():
    """Group 2 has no sample of class 1; taken as 0, its rate would widen the gap from .25 to .75."""
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    batch = LossBatch(probabilities.log(), torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 1, 0, 1, 2]), 3)
    assert value_of("equalized_odds", batch).item() == pytest.approx(0.25)


def two_groups(first, second, label=0):
    """Return a batch with one sample of each group, of cross-entropy ``first`` and ``second``."""
    logits = [[0.0, math.log(math.expm1(loss))] for loss in (first, second)]
    if label:
        logits = [row[::-1] for row in logits]
    return LossBatch(torch.tensor(logits, dtype=torch.float64), torch.tensor([label] * 2), torch.tensor([0, 1]), 2)


class TestFairalm:
    def test_worked_case_follows_the_published_update(self):
        """Algorithm 2 of arXiv 2004.01355 number by number, η = .5.

        step   μ_0    μ_1    λ       (λ + η) μ_0 − (λ − η) μ_1          λ ← λ + η (μ_0 − μ_1)
        1      2.0    1.0    0       .5 · 2 + .5 · 1         =  1.5     0 + .5 · 1      =  .5
        2      1.5    1.0    .5      1 · 1.5 − 0 · 1         =  1.5     .5 + .5 · .5    =  .75
        3      .5     2.5    .75     1.25 · .5 − .25 · 2.5   =  0       .75 − .5 · 2    = −.25
        4      1.0    1.0    −.25    .25 · 1 + .75 · 1       =  1       −.25
        """
        options = fairalm.Options(step=0.5)
        state = fairalm.start(2, options, CPU)
        steps = [(2.0, 1.0, 1.5, 0.5), (1.5, 1.0, 1.5, 0.75), (0.5, 2.5, 0.0, -0.25), (1.0, 1.0, 1.0, -0.25)]
        for first, second, term, multiplier in steps:
            assert fairalm.loss(two_groups(first, second), options, state).item() == pytest.approx(term, abs=1e-7)
            assert state["multipliers"].tolist() == [
                pytest.approx([multiplier, 0.0], abs=1e-6), pytest.approx([-multiplier, 0.0], abs=1e-6)
            ]  # fmt: skip

    def test_each_class_has_a_constraint_of_its_own(self):
        options = fairalm.Options(step=0.5)
        state = fairalm.start(2, options, CPU)
        fairalm.loss(two_groups(2.0, 1.0, label=1), options, state)
        fairalm.loss(two_groups(1.0, 4.0, label=0), options, state)
        assert state["multipliers"][0].tolist() == pytest.approx([-1.5, 0.5])

    def test_gradient_is_that_of_the_weighted_means(self):
        """d term / d logits = (ν + η) / n_gk · (p − onehot), with the multipliers before this step."""
        batch, options = example(), fairalm.Options(step=0.25)
        state = fairalm.start(4, options, CPU)
        for seed in (5, 6):
            fairalm.loss(example(seed), options, state)
        weights = state["multipliers"].double().numpy() + 0.25
        fairalm.loss(batch, options, state).backward()
        labels, groups = batch.labels.numpy(), batch.groups.numpy()
        sizes = np.zeros((4, 3))
        np.add.at(sizes, (groups, labels), 1)
        probabilities = torch.softmax(batch.logits.detach(), 1).numpy()
        expected = (weights / np.maximum(sizes, 1))[groups, labels, None] * (probabilities - np.eye(3)[labels])
        np.testing.assert_allclose(batch.logits.grad.numpy(), expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("n", [80, 9])
    def test_more_groups_are_the_pairs_averaged_over_partners(self, n):
        """Oracle: a multiplier for each ordered pair and class, moved by the published rule where both are there."""
        options = fairalm.Options(step=0.3)
        state = fairalm.start(4, options, CPU)
        pairs = np.zeros((4, 4, 3))
        net = np.zeros((4, 3))
        for seed in range(6):
            batch = example(seed, n=n)
            means = np.full((4, 3), np.nan)
            losses = cross_entropy(batch.logits, batch.labels, reduction="none").detach().numpy()
            for g in range(4):
                for k in range(3):
                    chosen = (batch.groups.numpy() == g) & (batch.labels.numpy() == k)
                    if chosen.any():
                        means[g, k] = losses[chosen].mean()
            term = np.nansum((net + 0.3) * means)
            assert fairalm.loss(batch, options, state).item() == pytest.approx(term, rel=1e-5)
            for k in range(3):
                there = [g for g in range(4) if not np.isnan(means[g, k])]
                for a in there if len(there) > 1 else []:
                    moved = [0.3 * (means[a, k] - means[b, k]) for b in there if b != a]
                    net[a, k] += np.mean(moved)
                    for b in there:
                        pairs[a, b, k] += 0.3 * (means[a, k] - means[b, k])
            np.testing.assert_allclose(state["multipliers"].numpy(), net, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(net.sum(axis=0), 0, atol=1e-9)
        if n == 80:  # all groups there in every step: the same as the pairs' own multipliers
            np.testing.assert_allclose(net, pairs.sum(axis=1) / 3)

    def test_without_partners_multipliers_rest(self):
        batch, options = example(groups=1, n_groups=4), fairalm.Options()
        state = fairalm.start(4, options, CPU)
        value = fairalm.loss(batch, options, state)
        assert not state["multipliers"].any() and state["multipliers"].shape == (4, 3)
        assert value.item() == pytest.approx(
            0.01 * sum(cross_entropy(batch.logits[batch.labels == k], batch.labels[batch.labels == k]).item()
                       for k in range(3))
        )  # fmt: skip

    def test_penalty_scales_the_augmented_term(self):
        batch = two_groups(2.0, 1.0)
        for penalty, expected in ((0.0, 0.0), (1.0, 0.3), (2.5, 0.75)):
            options = fairalm.Options(step=0.1, penalty=penalty)
            assert fairalm.loss(batch, options, fairalm.start(2, options, CPU)).item() == pytest.approx(expected)

    def test_multipliers_survive_a_checkpoint(self):
        """Saved after the first step, loaded into a new term, which goes on bit for bit."""
        terms = [LossTerm.of(fairalm, weight=1.0, options=fairalm.Options(step=0.2)) for _ in range(2)]
        for term in terms:
            term.begin(4, CPU)
        terms[0](example(0))
        terms[1].load_state({name: value.clone() for name, value in terms[0].state.items()}, CPU)
        values = [[term(example(seed)).item() for seed in (1, 2)] for term in terms]
        assert values[0] == values[1]
        assert torch.equal(terms[0].state["multipliers"], terms[1].state["multipliers"])

    def test_it_closes_the_gap_in_a_problem_it_can_solve(self):
        """Labels sign(x) and sign(y) for groups of 900 and 100; the smaller one is served worse without it."""

        def losses(factor):
            random = torch.Generator().manual_seed(0)
            points = torch.randn(1000, 2, generator=random, dtype=torch.float64)
            groups = (torch.arange(1000) >= 900).long()
            labels = (points.gather(1, groups[:, None])[:, 0] > 0).long()
            weight = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
            term = LossTerm.of(fairalm, weight=factor, options=fairalm.Options(step=0.02))
            term.begin(2, CPU)
            optimizer = torch.optim.Adam([weight], lr=0.02)
            for _ in range(300):
                rows = torch.randperm(1000, generator=random)[:200]
                logits = points[rows] @ weight
                optimizer.zero_grad()
                batch = LossBatch(logits, labels[rows], groups[rows], 2)
                (cross_entropy(logits, labels[rows]) + term(batch)).backward()
                optimizer.step()
            found = cross_entropy(points @ weight, labels, reduction="none").detach()
            return [found[groups == g].mean().item() for g in (0, 1)]

        (large, small), (fair_large, fair_small) = losses(0.0), losses(1.0)
        assert small > large + 0.3
        assert abs(fair_small - fair_large) < 0.1

    @pytest.mark.parametrize(
        ("option", "value", "allowed"), [("step", 0, "a number in (0, inf)"), ("penalty", -1, "a number in [0, inf)")]
    )
    def test_options_out_of_range_are_one_line(self, option, value, allowed):
        with pytest.raises(ConfigError) as error:
            parse_config({"quantize": {"losses": {"fairalm": {option: value}}}})
        assert str(error.value) == f"params.yaml: quantize.losses.fairalm.{option}: got {value}; allowed: {allowed}"

    def test_params_yaml_holds_the_defaults(self):
        params = yaml.safe_load((Path(__file__).resolve().parents[2] / "params.yaml").read_text(encoding="utf-8"))
        assert params["quantize"]["losses"]["fairalm"] == fairalm.Options().model_dump()
