"""quant_mode plug-ins: a contract for every mode, and what each of them promises."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import ProtectSection
from fairquant.errors import ConfigError, UserError
from fairquant.modes import with_start
from fairquant.quantize.attach import (
    bitmap_of,
    codebooks,
    latent_weights,
    quantize_model,
    quantizers,
    scale_tables,
    zero_point_tables,
)
from fairquant.train import loop, refresh
from fairquant.train.correction import correct

MODES = plugins.names("mode")
CPU = torch.device("cpu")


def logits(model: nn.Module) -> torch.Tensor:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output: torch.Tensor = model(images)
    return output


def test_the_plugins():
    assert MODES == (
        "baq_learnable", "fair_static", "fair_static_qat", "hybrid", "iterative_qat", "kmeans", "none", "ptq_dynamic",
        "ptq_static", "uniform",
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
class TestContract:
    def test_every_layer_has_a_quantizer_and_the_result_is_deterministic(self, mode, make_job):
        results = [plugins.load("mode", mode).quantize(make_job()) for _ in range(2)]
        first, second = results
        assert set(quantizers(first.model) | codebooks(first.model)) == {"0", "4"} and not first.model.training
        assert torch.equal(logits(first.model), logits(second.model))
        assert first.history == second.history and first.history.groups == ("light", "dark")

    def test_the_history_always_has_a_row(self, mode, make_job, tmp_path):
        job = make_job()
        history = with_start(job, plugins.load("mode", mode).quantize(job))
        history.write_curve(tmp_path / "curve.csv")
        history.write_log(tmp_path / "training.log")
        lines = (tmp_path / "curve.csv").read_text().splitlines()
        assert len(lines) == 1 + len(history.rows) >= 2
        assert history.best is not None and 0 <= history.best.val_accuracy <= 1
        assert "dark" in (tmp_path / "training.log").read_text()

    @pytest.mark.parametrize("scale", plugins.names("scale"))
    def test_every_scale(self, mode, scale, make_job):
        result = plugins.load("mode", mode).quantize(make_job(scale=scale, epochs=1))
        assert torch.isfinite(logits(result.model)).all()
        learned = mode in {"baq_learnable", "iterative_qat"}  # their step sizes are kept, not measured anew
        methods = {quantizer.method for quantizer in quantizers(result.model).values()}
        assert methods == (set() if codebooks(result.model) else {"lsq" if learned else scale})


def test_none_is_the_full_precision_model(make_job):
    job = make_job()
    expected = logits(copy.deepcopy(job.model).eval())
    result = plugins.load("mode", "none").quantize(job)
    torch.testing.assert_close(logits(result.model), expected, rtol=0, atol=0)
    assert set(bitmap_of(result.model).widths()) == {32} and not result.history.rows


def test_uniform_spares_the_protected(make_job):
    job = make_job(protect=ProtectSection(layers=("classifier",), bits=16))
    bits = bitmap_of(plugins.load("mode", "uniform").quantize(job).model)
    assert bits.granularity == "per_channel"
    assert bits.layers["0"].tolist() == [4] * 6 and bits.layers["4"].tolist() == [16] * 2


@pytest.mark.parametrize(("assigned", "used"), [("per_tensor", "per_tensor"), ("per_param", "per_channel")])
def test_uniform_follows_the_granularity(assigned, used, make_job):
    bits = bitmap_of(plugins.load("mode", "uniform").quantize(make_job(bits=BitMap(assigned, {}))).model)
    assert bits.granularity == used and bits.widths() == (4,)


def test_uniform_refuses_a_pattern_that_matches_nothing(make_job):
    with pytest.raises(ConfigError, match="ghost"):
        plugins.load("mode", "uniform").quantize(make_job(protect=ProtectSection(layers=("ghost",))))


def test_static_modes_leave_the_weights(make_job):
    job = make_job()
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    result = plugins.load("mode", "fair_static").quantize(job)
    assert all(torch.equal(latent_weights(result.model)[name], before[f"{name}.weight"]) for name in ("0", "4"))
    assert bitmap_of(result.model).layers["0"].tolist() == [2, 4, 8, 2, 4, 8]
    row = with_start(job, result).rows[0]
    assert row.epoch == 0 and row.train_loss is None


class TestFairStaticQat:
    quantize = staticmethod(plugins.load("mode", "fair_static_qat").quantize)

    def test_trains_at_the_assigned_widths(self, make_job):
        job = make_job(epochs=4)
        before = copy.deepcopy(job.model.state_dict())
        result = self.quantize(job)
        assert len(result.history.rows) == 4
        assert not torch.equal(latent_weights(result.model)["0"], before["0.weight"])
        assert bitmap_of(result.model).layers["0"].tolist() == [2, 4, 8, 2, 4, 8]
        assert result.history.rows[-1].train_loss < result.history.rows[0].train_loss

    def test_debug_trains_one_epoch(self, make_job):
        assert len(self.quantize(make_job(epochs=5, debug=True)).history.rows) == 1

    def test_the_fairness_loss_counts(self, make_job):
        losses = [self.quantize(make_job(fairness_weight=w)).history.rows[0].train_loss for w in (0.0, 2.0)]
        assert losses[1] > losses[0]

    def test_epoch_scales_are_those_of_the_kept_epoch(self, make_job):
        start = scale_tables(plugins.load("mode", "fair_static").quantize(make_job(scale="mse")).model)
        trained = scale_tables(self.quantize(make_job(scale="mse", epochs=3, lr=0.05)).model)
        assert not torch.equal(start["0"], trained["0"])

    @pytest.mark.parametrize("scale", ["absmax", "mse"])
    def test_zero_points_move_with_the_weights(self, scale, make_job):
        made = {"scale": scale, "weight_scheme": "asymmetric"}
        start = zero_point_tables(plugins.load("mode", "fair_static").quantize(make_job(**made)).model)
        result = self.quantize(make_job(**made, epochs=4, lr=0.05))
        trained = zero_point_tables(result.model)
        assert any(not torch.equal(start[name], trained[name]) for name in start)
        assert bitmap_of(result.model).scheme == "asymmetric"
        assert result.history.rows[-1].train_loss < result.history.rows[0].train_loss

    @pytest.mark.parametrize(
        "scale, scheme",
        [*((name, "symmetric") for name in plugins.names("scale")), ("absmax", "asymmetric"), ("mse", "asymmetric")],
    )
    def test_a_killed_run_resumes_bit_for_bit(self, scale, scheme, make_job, tmp_path, monkeypatch):
        expected = self.quantize(make_job(scale=scale, weight_scheme=scheme, epochs=3))

        class Killed(Exception):
            pass

        def kill(model: nn.Module) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise Killed

        calls: list[int] = []
        original = refresh.refresh_scales
        monkeypatch.setattr(refresh, "refresh_scales", lambda model: (kill(model), original(model)))
        with pytest.raises(Killed):
            self.quantize(make_job(scale=scale, weight_scheme=scheme, epochs=3, checkpoint_dir=tmp_path / "resume"))
        monkeypatch.setattr(refresh, "refresh_scales", original)
        resumed = self.quantize(
            make_job(scale=scale, weight_scheme=scheme, epochs=3, checkpoint_dir=tmp_path / "resume")
        )
        assert resumed.history == expected.history
        assert torch.equal(logits(resumed.model), logits(expected.model))

    def test_other_widths_are_another_run(self, make_job):
        """The resume key is a hash of the state dict: widths must be part of it."""
        first = plugins.load("mode", "fair_static").quantize(make_job()).model.state_dict()
        other = BitMap("per_channel", {"0": np.full(6, 8, np.uint8), "4": np.full(2, 8, np.uint8)})
        second = plugins.load("mode", "fair_static").quantize(make_job(bits=other)).model.state_dict()
        assert first.keys() == second.keys()
        assert any(not torch.equal(first[name], second[name]) for name in first)


def killed_at(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training loop stop before its so-manieth epoch, counted over all runs."""
    calls: list[int] = []
    original = loop._Run.train_epoch

    def train(self: loop._Run, bar: object) -> object:
        calls.append(1)
        if len(calls) == epoch:
            raise Killed
        return original(self, bar)

    monkeypatch.setattr(loop._Run, "train_epoch", train)


class Killed(Exception):
    """Stands in for a kill."""


class TestBaqLearnable:
    quantize = staticmethod(plugins.load("mode", "baq_learnable").quantize)

    def test_lands_on_the_target_with_the_protected_left_alone(self, make_job):
        job = make_job(
            epochs=6,
            baq={"target_bits": 4.0, "logit_lr": 0.2},
            protect=ProtectSection(layers=("classifier",), bits=8),
            bits=BitMap("per_channel", {"0": np.array([2, 4, 8, 2, 4, 8], np.uint8), "4": np.array([8, 8], np.uint8)}),
        )
        bits = bitmap_of(self.quantize(job).model)
        assert bits.layers["4"].tolist() == [8, 8]
        assert bits.layers["0"].sum() == 24

    def test_refuses_widths_outside_the_range(self, make_job):
        bits = BitMap("per_channel", {"0": np.full(6, 2, np.uint8), "4": np.full(2, 16, np.uint8)})
        with pytest.raises(UserError, match="^layer 4: bit-width: got 16; allowed: from bit_min 2 to bit_max 8$"):
            self.quantize(make_job(bits=bits))

    def test_a_killed_run_resumes_bit_for_bit(self, make_job, tmp_path, monkeypatch):
        expected = self.quantize(make_job(epochs=4))
        with monkeypatch.context() as patch:
            killed_at(3, patch)
            with pytest.raises(Killed):
                self.quantize(make_job(epochs=4, checkpoint_dir=tmp_path / "resume"))
        resumed = self.quantize(make_job(epochs=4, checkpoint_dir=tmp_path / "resume"))
        assert resumed.history == expected.history
        assert torch.equal(logits(resumed.model), logits(expected.model))


class TestIterativeQat:
    quantize = staticmethod(plugins.load("mode", "iterative_qat").quantize)

    def test_ends_at_the_asked_mix(self, make_job):
        job = make_job(epochs=3, iterative={"rounds": 3})
        result = self.quantize(job)
        assert [row.epoch for row in result.history.rows] == [1, 2, 3] and result.history.best_epoch == 3
        got = bitmap_of(result.model).layers
        assert sorted(got["0"].tolist() + got["4"].tolist()) == [2, 2, 4, 4, 4, 8, 8, 8]

    def test_importance_is_measured_on_the_current_model(self, make_job):
        seen = []
        job = make_job(epochs=2, iterative={"rounds": 2})

        class Spy:
            key = job.ranking.key

            def __call__(self, model, shapes):
                seen.append({name: model.get_submodule(name).weight.detach().clone() for name in shapes})
                return job.ranking(model, shapes)

        self.quantize(dataclasses.replace(job, ranking=Spy()))
        assert len(seen) == 2 and not torch.equal(seen[0]["0"], seen[1]["0"])

    def test_protected_layers_keep_their_width(self, make_job):
        bits = BitMap("per_channel", {"0": np.array([2, 4, 8, 2, 4, 8], np.uint8), "4": np.array([16, 16], np.uint8)})
        job = make_job(bits=bits, epochs=2, protect=ProtectSection(layers=("last",), bits=16))
        assert bitmap_of(self.quantize(job).model).layers["4"].tolist() == [16, 16]

    def test_the_fairness_loss_counts(self, make_job):
        losses = [self.quantize(make_job(fairness_weight=w)).history.rows[0].train_loss for w in (0.0, 2.0)]
        assert losses[1] > losses[0]

    @pytest.mark.parametrize("epoch", [2, 3, 4])
    def test_a_killed_run_resumes_bit_for_bit(self, epoch, make_job, tmp_path, monkeypatch):
        options = {"epochs": 4, "iterative": {"rounds": 2}}
        expected = self.quantize(make_job(**options))
        with monkeypatch.context() as patch:
            killed_at(epoch, patch)
            with pytest.raises(Killed):
                self.quantize(make_job(**options, checkpoint_dir=tmp_path / "resume"))
        trained = []
        original = loop._Run.train_epoch
        monkeypatch.setattr(loop._Run, "train_epoch", lambda run, bar: (trained.append(1), original(run, bar))[1])
        resumed = self.quantize(make_job(**options, checkpoint_dir=tmp_path / "resume"))
        assert len(trained) == 4 - (epoch - 1)
        assert resumed.history == expected.history
        assert torch.equal(logits(resumed.model), logits(expected.model))
        assert not list((tmp_path / "resume").rglob("*.pt"))

    def test_a_job_without_ranking_is_refused(self, make_job):
        with pytest.raises(UserError, match="without ranking"):
            self.quantize(make_job(ranking=None))


class TestRounding:
    """What modes that round the assigned widths make of batch norm, biases and step sizes chosen with the widths."""

    STEPS = {"0": np.float32([[0.3], [0.1], [0.01], [0.2], [0.05], [0.02]]), "4": np.float32([[0.07], [0.003]])}

    def corrected(self, model):
        """Return what the correction may change: statistics of batch norm and biases."""
        return torch.cat([model[1].running_mean, model[1].running_var, model[0].bias, model[4].bias]).detach()

    def test_batch_norm_and_biases_are_corrected_where_asked(self, make_job):
        quantize = plugins.load("mode", "fair_static").quantize
        before = self.corrected(make_job().model)
        assert torch.equal(self.corrected(quantize(make_job()).model), before)
        found = self.corrected(quantize(make_job(correction_images=30)).model)
        assert not torch.allclose(found, before, rtol=0.001)
        job = make_job()
        model = copy.deepcopy(job.model)
        quantize_model(model, job.bits)
        correct(model.eval(), make_job().model.eval(), job.store, samples=30, device=CPU, seed=0)
        torch.testing.assert_close(found, self.corrected(model), rtol=1e-5, atol=1e-6)

    def test_full_precision_has_nothing_to_correct(self, make_job):
        before = self.corrected(make_job().model)
        result = plugins.load("mode", "none").quantize(make_job(correction_images=30))
        assert torch.equal(self.corrected(result.model), before)

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_runs_with_it(self, mode, make_job):
        result = plugins.load("mode", mode).quantize(make_job(correction_images=30, epochs=1))
        assert torch.isfinite(logits(result.model)).all() and not result.model.training

    @pytest.mark.parametrize("mode", ["fair_static", "fair_static_qat"])
    def test_steps_of_the_bit_map_are_where_it_starts(self, mode, make_job):
        bits = make_job().bits
        job = make_job(scale="weighted", lr=1e-5, bits=BitMap(bits.granularity, bits.layers, self.STEPS))
        result = plugins.load("mode", mode).quantize(job)
        for name, table in scale_tables(result.model).items():
            assert np.array_equal(table.detach().numpy(), self.STEPS[name]) == (mode == "fair_static")
            np.testing.assert_allclose(table.detach().numpy(), self.STEPS[name], rtol=0.05)
