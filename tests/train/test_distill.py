"""Distillation against torch's own divergence, and what it does to the gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from fairquant.errors import UserError
from fairquant.train import distill
from fairquant.train.terms import LossBatch


def example(seed: int = 0) -> LossBatch:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(20, 5, generator=random) for _ in range(2))
    labels = torch.randint(0, 5, (20,), generator=random)
    return LossBatch(student.requires_grad_(), labels, labels, 5, teacher, class_weights=torch.arange(5.0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_equals_torch(temperature):
    batch = example()
    got = distill.loss(batch, distill.Options(temperature=temperature), {})
    student = torch.log_softmax(batch.logits.double() / temperature, dim=1)
    teacher = torch.softmax(batch.teacher.double() / temperature, dim=1)
    expected = temperature**2 * nn.KLDivLoss(reduction="batchmean")(student, teacher)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_is_t_times_the_difference_of_probabilities():
    """∂/∂z of T² KL / B is T (softmax(z / T) − softmax(t / T)) / B: for large T about (z − t) / (B C), as published."""
    batch = example()
    distill.loss(batch, distill.Options(temperature=4.0), {}).backward()
    student, teacher = (torch.softmax(logits.double() / 4, dim=1) for logits in (batch.logits, batch.teacher))
    torch.testing.assert_close(batch.logits.grad.double(), 4 * (student - teacher) / 20, rtol=1e-4, atol=1e-7)


def test_zero_at_the_teacher_and_finite_far_from_it():
    batch = example()
    equal = dataclasses.replace(batch, logits=batch.teacher.clone())
    assert distill.loss(equal, distill.Options(), {}).item() == pytest.approx(0.0, abs=1e-6)
    far = LossBatch(
        torch.tensor([[-500.0, 500.0]]),
        batch.labels[:1],
        batch.groups[:1],
        5,
        torch.tensor([[500.0, -500.0]]),
    )
    assert distill.loss(far, distill.Options(temperature=1.0), {}).item() == pytest.approx(1000.0)


def test_hand_value():
    """Teacher (3/4, 1/4), student (1/2, 1/2), T = 1: 3/4 ln 3/2 + 1/4 ln 1/2."""
    one = torch.zeros(1, dtype=torch.int64)
    batch = LossBatch(torch.zeros(1, 2), one, one, 1, torch.tensor([[math.log(3.0), 0.0]]))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distill.loss(batch, distill.Options(temperature=1.0), {}).item() == pytest.approx(expected, rel=1e-6)


def test_without_teacher_is_refused():
    with pytest.raises(UserError, match="^loss: got a batch without teacher; allowed: one with"):
        distill.loss(dataclasses.replace(example(), teacher=None), distill.Options(), {})
