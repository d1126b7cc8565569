"""Fairness losses: contract of every plug-in, and the gap against a float64 brute force."""

from __future__ import annotations

import math

import pytest
import torch

from fairquant import plugins
from fairquant.train.losses import gap, none


def example(seed: int = 0, n: int = 40, groups: int = 4):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 3, generator=random, dtype=torch.float64)
    return (
        logits.requires_grad_(),
        torch.randint(0, 3, (n,), generator=random),
        torch.randint(0, groups, (n,), generator=random),
    )


def brute_force(logits, labels, groups):
    """Group means of -log softmax, sample by sample in python floats."""
    losses: dict[int, list[float]] = {}
    for row, label, group in zip(logits.tolist(), labels.tolist(), groups.tolist(), strict=True):
        losses.setdefault(group, []).append(math.log(sum(math.exp(x) for x in row)) - row[label])
    means = [sum(values) / len(values) for values in losses.values()]
    return max(means) - min(means)


@pytest.mark.parametrize("name", plugins.names("loss"))
class TestEveryLoss:
    def loss(self, name):
        return plugins.load("loss", name).loss

    def test_is_a_finite_scalar_with_gradient(self, name):
        logits, labels, groups = example()
        value = self.loss(name)(logits, labels, groups, 4)
        assert value.shape == ()
        assert torch.isfinite(value)
        value.backward()
        assert torch.isfinite(logits.grad).all()

    def test_does_not_depend_on_the_numbering_of_groups(self, name):
        logits, labels, groups = example()
        other = torch.tensor([2, 0, 3, 1])[groups]
        assert self.loss(name)(logits, labels, groups, 4).item() == pytest.approx(
            self.loss(name)(logits, labels, other, 4).item(), rel=1e-12
        )

    def test_one_group_is_zero(self, name):
        logits, labels, groups = example()
        value = self.loss(name)(logits, labels, torch.full_like(groups, 3), 4)
        value.backward()
        assert value.item() == 0.0
        assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_gap_equals_brute_force(seed):
    logits, labels, groups = example(seed)
    assert gap.loss(logits, labels, groups, 4).item() == pytest.approx(brute_force(logits, labels, groups), rel=1e-12)


def test_absent_groups_do_not_count():
    logits, labels, groups = example(groups=2)
    assert gap.loss(logits, labels, groups + 3, 9).item() == pytest.approx(
        brute_force(logits, labels, groups), rel=1e-12
    )


def test_gradient_of_the_gap_is_right_and_flows_from_the_extreme_groups_only():
    logits, labels, groups = example(groups=3)
    assert torch.autograd.gradcheck(lambda x: gap.loss(x, labels, groups, 3), (logits,))
    gap.loss(logits, labels, groups, 3).backward()
    moved = {int(g) for g in groups[logits.grad.abs().sum(1) > 0]}
    assert len(moved) == 2


def test_none_has_zero_gradient():
    logits, labels, groups = example()
    none.loss(logits, labels, groups, 4).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
