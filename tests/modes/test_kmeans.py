"""quant_mode kmeans: the assigned widths as codebooks, the centroids trained or not."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.errors import UserError
from fairquant.quantize import codebook
from fairquant.quantize.activate import activation_quantizers
from fairquant.quantize.attach import bitmap_of, codebooks, latent_weights
from fairquant.train import loop

quantize = plugins.load("mode", "kmeans").quantize
STATIC = {"codebook": {"tune": False}}


def logits(model: nn.Module) -> torch.Tensor:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output: torch.Tensor = model(images)
    return output


def centroids(model: nn.Module) -> torch.Tensor:
    return torch.cat([module.centroids.detach() for module in codebooks(model).values()])


@pytest.mark.parametrize(("per", "books"), [("tensor", [3, 2]), ("channel", [6, 2])])
def test_the_assigned_widths_as_codebooks(per, books, make_job):
    model = quantize(make_job(codebook={"per": per, "tune": False})).model
    assert [len(module.books) for module in codebooks(model).values()] == books
    bits = bitmap_of(model)
    assert bits.codebook == per and bits.layers["0"].tolist() == [2, 4, 8, 2, 4, 8]


def test_untuned_trains_nothing(make_job):
    job = make_job(**STATIC)
    before = copy.deepcopy(job.model.state_dict())
    result = quantize(job)
    assert not result.history.rows
    assert all(torch.equal(weight, before[f"{name}.weight"]) for name, weight in latent_weights(result.model).items())


def test_tuning_moves_centroids_and_keeps_codes(make_job):
    start, result = quantize(make_job(**STATIC)).model, quantize(make_job(epochs=4))
    assert len(result.history.rows) == 4
    assert result.history.rows[-1].train_loss < result.history.rows[0].train_loss
    assert not torch.equal(centroids(result.model), centroids(start))
    for name, module in codebooks(start).items():
        assert torch.equal(codebooks(result.model)[name].codes, module.codes)
        assert torch.equal(latent_weights(result.model)[name], latent_weights(start)[name])  # nothing reaches them


def test_channels_of_32_bits_go_on_training(make_job):
    bits = BitMap("per_channel", {"0": np.array([2, 32, 0, 2, 4, 32], np.uint8), "4": np.array([4, 8], np.uint8)})
    job = make_job(bits=bits)
    before = job.model.get_parameter("0.weight").detach().clone()
    weight = quantize(job).model.get_submodule("0").weight.detach()
    assert not torch.equal(weight[1], before[1]) and not weight[2].any()


def test_the_fairness_loss_counts(make_job):
    losses = [quantize(make_job(fairness_weight=w)).history.rows[0].train_loss for w in (0.0, 2.0)]
    assert losses[1] > losses[0]


def test_iterations_are_those_of_the_section(make_job, monkeypatch):
    seen = []
    original = codebook.kmeans

    def watched(rows: torch.Tensor, clusters: int, *, iterations: int) -> torch.Tensor:
        seen.append(iterations)
        return original(rows, clusters, iterations=iterations)

    monkeypatch.setattr(codebook, "kmeans", watched)
    quantize(make_job(codebook={"tune": False, "iterations": 7}))
    assert set(seen) == {7}


def test_step_sizes_that_came_with_the_widths_play_no_part(make_job):
    plain = make_job(**STATIC).bits
    steps = {"0": np.ones((6, 1), np.float32), "4": np.ones((2, 1), np.float32)}
    with_steps = BitMap("per_channel", plain.layers, steps)
    models = [quantize(make_job(bits=bits, **STATIC)).model for bits in (plain, with_steps)]
    assert torch.equal(logits(models[0]), logits(models[1]))


def test_a_width_without_a_codebook(make_job):
    bits = BitMap("per_channel", {"0": np.full(6, 2, np.uint8), "4": np.full(2, 16, np.uint8)})
    with pytest.raises(UserError, match=r"^layer 4: bit-width: got 16; allowed: 0 to 8, or 32"):
        quantize(make_job(bits=bits))


def test_a_killed_run_resumes_bit_for_bit(make_job, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    make = partial(make_job, epochs=4)
    expected = quantize(make())
    calls: list[int] = []
    original = loop._Run.train_epoch

    def train(run: loop._Run, bar: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return original(run, bar)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "train_epoch", train)
        with pytest.raises(Killed):
            quantize(make(checkpoint_dir=tmp_path / "resume"))
    resumed = quantize(make(checkpoint_dir=tmp_path / "resume"))
    assert resumed.history == expected.history
    assert torch.equal(logits(resumed.model), logits(expected.model))


@pytest.mark.parametrize("points", ["layers", "all"])
def test_beside_quantized_activations(points, make_job):
    job = make_job(activations={"bits": 8, "points": points}, calibration={"batches": 2, "batch_size": 16}, **STATIC)
    model = quantize(job).model
    assert set(codebooks(model)) == {"0", "4"} and bitmap_of(model).codebook == "tensor"
    assert activation_quantizers(model)
    plain = quantize(make_job(**STATIC)).model
    assert torch.equal(centroids(model), centroids(plain)) and not torch.equal(logits(model), logits(plain))
