"""quantize.batch_norm in the modes: all of them fold where asked, and training can be folding-aware."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError
from fairquant.models.build import build
from fairquant.models.fold import FoldedNorm, fold_batch_norm
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import bitmap_of, latent_weights, quantize_model, scale_tables
from fairquant.quantize.state import load_quantized, plain_state, save_quantized
from fairquant.train import loop

MODES = plugins.names("mode")
SPEC = ModelSpec("resnet20", ("benign", "malignant"), 8, (0.5,) * 3, (0.25,) * 3)
QAT = plugins.load("mode", "fair_static_qat").quantize


def seasoned(model):
    """Give batch norm statistics and factors as after training."""
    torch.manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.3, 1.5)
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.3, 2)
    return model


def seasoned_job(make_job, **changes):
    job = make_job(**changes)
    return dataclasses.replace(job, model=seasoned(job.model))


def images(n=8):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(images())


def four_bits(model):
    shapes = {name: layer.weight.shape[0] for name, layer in quantizable_layers(model).items()}
    return BitMap("per_channel", {name: np.full(n, 4, np.uint8) for name, n in shapes.items()})


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_folds_where_asked(self, mode, make_job):
        model = plugins.load("mode", mode).quantize(seasoned_job(make_job, batch_norm="fold", epochs=1)).model
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert any(isinstance(module, FoldedNorm) for module in model.modules())
        assert torch.isfinite(logits(model)).all() and not model.training

    def test_keeps_where_not(self, mode, make_job):
        model = plugins.load("mode", mode).quantize(seasoned_job(make_job, epochs=1)).model
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert not any(isinstance(module, FoldedNorm) for module in model.modules())


def test_static_modes_quantize_the_folded_model(make_job):
    job = seasoned_job(make_job, batch_norm="fold")
    wanted = copy.deepcopy(job.model).eval()
    fold_batch_norm(wanted)
    plain = logits(wanted)
    quantize_model(wanted, job.bits)
    found = plugins.load("mode", "fair_static").quantize(job).model
    assert torch.equal(logits(found), logits(wanted.eval()))
    none = plugins.load("mode", "none").quantize(seasoned_job(make_job, batch_norm="fold")).model
    torch.testing.assert_close(logits(none), plain, rtol=0, atol=0)


def test_the_codes_are_those_without_folding(make_job):
    found = {}
    for batch_norm in ("keep", "fold"):
        model = plugins.load("mode", "fair_static").quantize(seasoned_job(make_job, batch_norm=batch_norm)).model
        table = scale_tables(model)["0"].reshape(-1, 1, 1, 1)
        found[batch_norm] = (model[0].weight.detach() / table).round()
    assert torch.equal(found["keep"], found["fold"])  # all factors are positive here


def test_steps_of_the_bit_map_are_folded_too(make_job):
    job = seasoned_job(make_job, batch_norm="fold", scale="weighted")
    steps = {"0": np.full((6, 1), 0.05, np.float32), "4": np.full((2, 1), 0.01, np.float32)}
    norm = job.model[1]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    job = dataclasses.replace(job, bits=BitMap("per_channel", job.bits.layers, steps))
    tables = scale_tables(plugins.load("mode", "fair_static").quantize(job).model)
    torch.testing.assert_close(tables["0"][:, 0], 0.05 * factor, rtol=1e-6, atol=0)
    assert torch.equal(tables["4"].detach(), torch.from_numpy(steps["4"]))


def test_biases_alone_are_corrected(make_job):
    """The layers that took in batch norm have a bias, and get back the mean of what they put out."""
    job = seasoned_job(make_job, batch_norm="fold", correction_images=1000)
    reference = copy.deepcopy(job.model).eval()
    fold_batch_norm(reference)
    found = plugins.load("mode", "fair_static").quantize(job).model
    uncorrected = copy.deepcopy(reference)
    quantize_model(uncorrected, job.bits)
    assert not torch.allclose(found[0].bias, reference[0].bias, atol=1e-4)
    assert torch.equal(latent_weights(found)["0"], reference[0].weight)
    store = job.store
    pixels = torch.from_numpy(store.images[store.indices("train")].copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(store.meta[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    errors = []
    with torch.no_grad():
        for model in (uncorrected.eval(), found):
            gap = (model[0]((pixels - mean) / std) - reference[0]((pixels - mean) / std)).mean((0, 2, 3))
            errors.append(float(gap.abs().max()))
    assert errors[1] < 1e-5 < errors[0]


class TestFoldTrain:
    def test_trains_and_settles(self, make_job):
        job = seasoned_job(make_job, batch_norm="fold_train", epochs=3)
        before = copy.deepcopy(job.model.state_dict())
        result = QAT(job)
        assert isinstance(result.model[1], FoldedNorm) and len(result.history.rows) == 3
        assert bitmap_of(result.model).layers["0"].tolist() == [2, 4, 8, 2, 4, 8]
        assert not torch.equal(latent_weights(result.model)["0"], before["0.weight"])
        assert result.history.rows[-1].train_loss < result.history.rows[0].train_loss
        assert not result.model.training

    def test_the_history_is_that_of_the_settled_model(self, make_job):
        """Accuracy and loss of the kept epoch, measured while folding, are those of the model that comes out."""
        from fairquant.modes import with_start
        from fairquant.train.history import History

        job = seasoned_job(make_job, batch_norm="fold_train", epochs=2)
        result = QAT(job)
        kept = result.history.rows[result.history.best_epoch - 1]
        measured = with_start(job, dataclasses.replace(result, history=History(result.history.groups))).rows[0]
        assert measured.val_accuracy == kept.val_accuracy
        assert measured.val_loss == pytest.approx(kept.val_loss, rel=1e-4)

    @pytest.mark.parametrize("scale", plugins.names("scale"))
    def test_every_scale(self, scale, make_job):
        results = [QAT(seasoned_job(make_job, batch_norm="fold_train", epochs=1, scale=scale)) for _ in range(2)]
        assert torch.isfinite(logits(results[0].model)).all()
        assert torch.equal(logits(results[0].model), logits(results[1].model))

    @pytest.mark.parametrize("scale", ["absmax", "mse", "lsq"])
    def test_a_killed_run_resumes_bit_for_bit(self, scale, make_job, tmp_path, monkeypatch):
        options = {"batch_norm": "fold_train", "epochs": 3, "scale": scale}
        expected = QAT(seasoned_job(make_job, **options))
        original = loop._Run.train_epoch

        def killed(run, bar):
            if run.done == 2:
                raise KeyboardInterrupt
            return original(run, bar)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "train_epoch", killed)
            with pytest.raises(KeyboardInterrupt):
                QAT(seasoned_job(make_job, **options, checkpoint_dir=tmp_path / "resume"))
        trained = []
        monkeypatch.setattr(loop._Run, "train_epoch", lambda run, bar: (trained.append(1), original(run, bar))[1])
        resumed = QAT(seasoned_job(make_job, **options, checkpoint_dir=tmp_path / "resume"))
        assert len(trained) == 1 and resumed.history == expected.history
        assert torch.equal(logits(resumed.model), logits(expected.model))

    def test_it_is_another_run_than_plain_training(self, make_job):
        weights = [
            latent_weights(QAT(seasoned_job(make_job, batch_norm=name, epochs=1)).model)["0"]
            for name in ("keep", "fold", "fold_train")
        ]
        assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

    @pytest.mark.parametrize("activations", [{}, {"bits": 8}, {"bits": 8, "points": "layers"}])
    def test_the_file_gives_the_same_logits(self, activations, make_job, tmp_path):
        model = seasoned(build(SPEC, seed=0))
        job = make_job(batch_norm="fold_train", epochs=1, model=model, bits=four_bits(model), activations=activations)
        job = dataclasses.replace(job, roles={"first": "conv1", "last": "linear", "classifier": "linear"})
        model = QAT(job).model
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        loaded, _, _ = load_quantized(tmp_path / "q.safetensors")
        assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
        assert torch.equal(logits(loaded.to(memory_format=torch.channels_last)), logits(model))
        skeleton = build(SPEC, seed=0)
        fold_batch_norm(skeleton)
        assert set(skeleton.state_dict()) <= set(plain_state(model))


class TestSettings:
    def wrong(self, **values):
        with pytest.raises(ConfigError) as error:
            parse_config(values)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_fold_train_needs_a_mode_that_trains_weights(self):
        text = self.wrong(quant_mode="fair_static", quantize={"batch_norm": "fold_train"})
        assert "quantize.batch_norm: got 'fold_train' with quant_mode fair_static; allowed: keep | fold" in text

    def test_statistics_that_are_trained_are_not_corrected(self):
        section = {"batch_norm": "fold_train", "correction_images": 64}
        text = self.wrong(quant_mode="fair_static_qat", quantize=section)
        assert "quantize.correction_images: got 64 with quantize.batch_norm fold_train" in text
        assert "allowed: 0" in text

    @pytest.mark.parametrize("batch_norm", ["fold", "fold_train"])
    def test_one_weighted_step_for_a_layer_does_not_fold(self, batch_norm):
        section = {"batch_norm": batch_norm, "scale": "weighted"}
        text = self.wrong(granularity="per_tensor", quant_mode="fair_static_qat", quantize=section)
        assert (
            f"quantize.batch_norm: got '{batch_norm}' with quantize.scale weighted and granularity per_tensor" in text
        )
        assert parse_config({"granularity": "per_channel", "quant_mode": "fair_static_qat", "quantize": section})
