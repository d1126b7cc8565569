"""The objective: its value, when the teacher runs and on what, and how long a term remembers."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.functional import cross_entropy

from fairquant.data.batches import Batch
from fairquant.errors import UserError
from fairquant.train import distill
from fairquant.train.loop import fit
from fairquant.train.losses import compression_drop, gap, group_dro
from fairquant.train.predict import predict
from fairquant.train.terms import LossTerm, Objective

CPU = torch.device("cpu")


class Spy(nn.Module):
    """Notes the images it sees and how it was called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images: list[torch.Tensor] = []
        self.modes: set[tuple[bool, bool, torch.dtype]] = set()

    def forward(self, images):
        logits = self.model(images)
        self.images.append(images.clone())
        self.modes.add((self.training, torch.is_grad_enabled(), logits.dtype))
        return logits


def objective(*terms, **more):
    return Objective(terms, **({"n_groups": 2, "device": CPU, "precision": "fp32"} | more))


def batch(n: int = 12) -> Batch:
    random = torch.Generator().manual_seed(0)
    labels, groups = torch.randint(0, 2, (n,), generator=random), torch.arange(n) % 2
    return Batch(torch.randn(n, 3, 8, 8, generator=random), labels, groups, np.arange(n))


def test_value_is_the_weighted_sum(network):
    model, teacher, data = network().eval(), network(1).eval(), batch()
    weights = torch.tensor([0.5, 2.0])
    terms = [LossTerm.of(gap, weight=0.5), LossTerm.of(distill, weight=3.0)]
    got = objective(*terms, teacher=teacher, class_weights=weights)(model, data)
    student, taught = model(data.images), teacher(data.images)
    means = [cross_entropy(student[data.groups == g], data.labels[data.groups == g]) for g in (0, 1)]
    divergence = nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(student / 2, dim=1), torch.softmax(taught / 2, dim=1)
    )
    expected = cross_entropy(student, data.labels, weight=weights) + 0.5 * (max(means) - min(means))
    assert got.item() == pytest.approx((expected + 3 * 4 * divergence).item(), rel=1e-5)


class TestTeacher:
    def test_sees_the_students_augmented_images_in_eval_mode_without_graph(self, network, store, section):
        student, teacher = Spy(network()), Spy(network(1))
        before = copy.deepcopy(teacher.state_dict())
        settings = section(epochs=1, augment="light")
        fit(
            student,
            store,
            section=settings,
            seed=0,
            device=CPU,
            terms=[LossTerm.of(distill, weight=1.0)],
            teacher=teacher,
        )
        assert len(teacher.images) == 3
        assert all(torch.equal(one, two) for one, two in zip(teacher.images, student.images[:3], strict=True))
        assert teacher.modes == {(False, False, torch.float32)}
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_does_not_run_where_nobody_needs_it(self, network, store, section):
        models, teacher = [network(), network()], Spy(network(1))
        for model, more in zip(models, ({}, {"teacher": teacher}), strict=True):
            terms = [LossTerm.of(group_dro, weight=1.0)]
            fit(model, store, section=section(epochs=1), seed=0, device=CPU, terms=terms, **more)
        assert not teacher.images
        assert all(
            torch.equal(one, two) for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True)
        )

    def test_runs_under_the_same_autocast(self, network):
        teacher = Spy(network(1))
        loss = objective(LossTerm.of(distill, weight=1.0), teacher=teacher, precision="bf16")(network(), batch())
        assert teacher.modes == {(False, False, torch.bfloat16)} and loss.dtype == torch.float32

    @pytest.mark.parametrize("module", [distill, compression_drop])
    def test_a_missing_one_is_one_line(self, network, store, section, module):
        message = f"training: got loss {module.__name__}.loss without a teacher; allowed: with the full-precision model"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            fit(network(), store, section=section(), seed=0, device=CPU, terms=[LossTerm.of(module, weight=1.0)])

    def test_distillation_draws_the_student_to_it(self, network, store, section):
        """Mean |difference of the probabilities| on unseen images."""
        teacher, distances = network(1), []
        for weight in (0.0, 20.0):
            model = network()
            terms = [LossTerm.of(distill, weight=weight)]
            fit(model, store, section=section(epochs=4), seed=0, device=CPU, terms=terms, teacher=teacher)
            parts = [predict(m, store, "test", batch_size=64, device=CPU).logits for m in (model, teacher)]
            student, taught = (softmax(part, axis=1) for part in parts)
            distances.append(np.abs(student - taught).mean())
        assert distances[1] < 0.5 * distances[0]


class TestState:
    def test_goes_on_in_the_next_training(self, network, store, section):
        def train(term):
            fit(network(), store, section=section(epochs=1), seed=0, device=CPU, terms=[term])
            return term.state["log_weights"].clone()

        kept = LossTerm.of(group_dro, weight=1.0)
        first, second = train(kept), train(kept)
        assert not torch.equal(first, second)
        assert torch.equal(train(LossTerm.of(group_dro, weight=1.0)), first)

    def test_is_saved_and_taken_up(self, network):
        terms = [LossTerm.of(gap, weight=1.0), LossTerm.of(group_dro, weight=1.0)]
        one = objective(*terms)
        one(network(), batch())
        other = objective(LossTerm.of(gap, weight=1.0), LossTerm.of(group_dro, weight=1.0))
        other.load_state(one.state())
        assert other.terms[0].state == {}
        assert torch.equal(other.terms[1].state["log_weights"], terms[1].state["log_weights"])

    def test_key_names_weight_loss_and_settings(self):
        terms = [LossTerm.of(group_dro, weight=2.0), LossTerm(1.0, gap.loss)]
        assert objective(*terms).key == [
            [2.0, "fairquant.train.losses.group_dro.loss", {"step": 0.05}],
            [1.0, "fairquant.train.losses.gap.loss", None],
        ]

    def test_tensors_are_the_teachers_and_the_states(self, network):
        terms = [LossTerm.of(gap, weight=1.0), LossTerm.of(compression_drop, weight=1.0)]
        names = set(objective(*terms, teacher=network()).tensors())
        assert {"teacher: 0.weight", "term 1: multipliers", "term 1: lost", "term 1: seen"} <= names
        assert not any(name.startswith("teacher") for name in objective(terms[0], teacher=network()).tensors())
