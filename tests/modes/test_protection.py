"""Fine-tuning that protects groups: every loss and distillation in every mode that trains, and who the teacher is."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from fairquant import plugins
from fairquant.config.schema import ProtectSection
from fairquant.errors import ConfigError
from fairquant.modes._terms import training_terms
from fairquant.quantize.attach import quantizers
from fairquant.train import loop
from fairquant.train.losses import compression_drop, group_dro
from fairquant.train.terms import Objective

LOSSES = plugins.names("loss")
TRAINING = ("baq_learnable", "fair_static_qat", "iterative_qat")
DISTILL = {"weight": 1.0, "temperature": 2.0}


@pytest.fixture
def objectives(monkeypatch):
    """Every objective that is made, in order."""
    made = []
    original = Objective.__init__

    def init(self, *args, **more):
        original(self, *args, **more)
        made.append(self)

    monkeypatch.setattr(Objective, "__init__", init)
    return made


def logits(model):
    with torch.no_grad():
        return model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("mode", TRAINING)
class TestEveryTrainingMode:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_loss_with_distillation(self, mode, loss, make_job, objectives):
        job = make_job(fairness_loss=loss, distill=DISTILL)
        result = plugins.load("mode", mode).quantize(job)
        names = [term.name.split(".")[-2] for term in objectives[0].terms]
        assert names[:2] == [loss, "distill"]
        assert torch.isfinite(logits(result.model)).all() and len(result.history.rows) == 2
        again = plugins.load("mode", mode).quantize(make_job(fairness_loss=loss, distill=DISTILL))
        assert again.history == result.history and torch.equal(logits(again.model), logits(result.model))

    @pytest.mark.parametrize("wanted", [{"distill": DISTILL}, {"fairness_loss": "compression_drop"}])
    def test_the_teacher_is_the_full_precision_model(self, mode, wanted, make_job, objectives):
        original = make_job().model.state_dict()
        plugins.load("mode", mode).quantize(make_job(**wanted))
        assert objectives
        for objective in objectives:
            teacher = objective.teacher
            assert not teacher.training and not quantizers(teacher)
            state = teacher.state_dict()
            assert state.keys() == original.keys()
            assert all(torch.equal(state[name], original[name]) for name in original)

    def test_nobody_teaches_unasked(self, mode, make_job, objectives):
        plugins.load("mode", mode).quantize(make_job(fairness_loss="group_dro"))
        assert objectives and all(objective.teacher is None for objective in objectives)

    @pytest.mark.parametrize("epoch", [2, 3, 4])
    def test_a_killed_run_remembers(self, mode, epoch, make_job, tmp_path, monkeypatch, objectives):
        """Killed within and between rounds: the multipliers' path and the weights are those of an undisturbed run."""
        options = {"epochs": 4, "fairness_loss": "compression_drop", "distill": DISTILL, "iterative": {"rounds": 2}}
        options |= {"losses": {"compression_drop": {"step": 5.0}}}
        quantize = plugins.load("mode", mode).quantize
        expected = quantize(make_job(**options))
        remembered = objectives[-1].terms[0].state
        with monkeypatch.context() as patch:
            stop_before(epoch, patch)
            with pytest.raises(Killed):
                quantize(make_job(**options, checkpoint_dir=tmp_path / "resume"))
        trained = count_epochs(monkeypatch)
        resumed = quantize(make_job(**options, checkpoint_dir=tmp_path / "resume"))
        assert len(trained) == 4 - (epoch - 1)
        assert resumed.history == expected.history
        assert torch.equal(logits(resumed.model), logits(expected.model))
        assert all(torch.equal(objectives[-1].terms[0].state[name], remembered[name]) for name in remembered)
        assert remembered["multipliers"].max() > 0
        assert not list((tmp_path / "resume").rglob("*.pt"))


class Killed(Exception):
    """Stands in for a kill."""


def stop_before(epoch, monkeypatch):
    """Let training stop before its so-manieth epoch, counted over all rounds."""
    trained = []
    original = loop._Run.train_epoch

    def train(run, bar):
        trained.append(1)
        if len(trained) == epoch:
            raise Killed
        return original(run, bar)

    monkeypatch.setattr(loop._Run, "train_epoch", train)


def count_epochs(monkeypatch):
    trained = []
    original = loop._Run.train_epoch
    monkeypatch.setattr(loop._Run, "train_epoch", lambda run, bar: (trained.append(1), original(run, bar))[1])
    return trained


class TestTerms:
    def test_weights_and_settings_come_from_the_section(self, make_job):
        job = make_job(
            fairness_loss="group_dro",
            fairness_weight=0.25,
            losses={"group_dro": {"step": 0.5}, "compression_drop": {"tolerance": 0.1}},
            distill={"weight": 2.0, "temperature": 3.0},
        )
        terms, teacher = training_terms(job)
        assert [term.weight for term in terms] == [0.25, 2.0]
        assert terms[0].options == group_dro.Options(step=0.5) and terms[1].options.temperature == 3.0
        assert teacher is not None and teacher is not job.model and not teacher.training

    def test_weight_zero_is_no_term_and_no_teacher(self, make_job):
        job = make_job(fairness_loss="compression_drop", fairness_weight=0.0, distill={"weight": 0.0})
        assert training_terms(job) == ([], None)

    def test_defaults_where_the_settings_are_silent(self, make_job):
        terms, teacher = training_terms(make_job(fairness_loss="compression_drop"))
        assert [term.options for term in terms] == [compression_drop.Options()] and teacher is not None

    def test_training_leaves_the_teacher_alone(self, make_job):
        job = make_job()
        _, teacher = training_terms(dataclasses.replace(job, section=make_job(distill=DISTILL).section))
        before = logits(teacher)
        with torch.no_grad():
            for parameter in job.model.parameters():
                parameter.zero_()
        assert torch.equal(logits(teacher), before)


def test_group_weights_are_carried_from_round_to_round(make_job, objectives):
    job = make_job(fairness_loss="group_dro", epochs=4, iterative={"rounds": 2})
    plugins.load("mode", "iterative_qat").quantize(job)
    assert len(objectives) == 2 and objectives[0].terms[0] is objectives[1].terms[0]


@pytest.mark.parametrize("mode", ["baq_learnable", "iterative_qat"])
def test_a_mode_that_finds_widths_needs_a_layer_to_find_one_for(mode, make_job):
    job = dataclasses.replace(make_job(), protect=ProtectSection(layers=("*",), bits=8))
    with pytest.raises(ConfigError) as error:
        plugins.load("mode", mode).quantize(job)
    assert re.fullmatch(
        rf"assign.protect: got every layer \(\d+\) held at a width with quant_mode {mode}; allowed: at least one layer "
        "left to it, or quant_mode fair_static_qat",
        str(error.value),
    )
