"""quant_mode hybrid, and layers that no mode may change: named ones, and those held for their sensitivity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import ProtectSection
from fairquant.errors import ConfigError
from fairquant.modes._widths import held_widths
from fairquant.quantize.attach import bitmap_of, latent_weights

quantize = plugins.load("mode", "hybrid").quantize


def widths(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: bits.tolist() for name, bits in bitmap_of(model).layers.items()}


def test_a_low_backbone_under_a_full_precision_classifier(make_job):
    job = make_job()
    before = job.model.get_parameter("4.weight").detach().clone()
    result = quantize(job)
    assert widths(result.model) == {"0": [4] * 6, "4": [32] * 2} and not result.history.rows
    with torch.no_grad():
        assert torch.equal(result.model.get_submodule("4").weight, before)
    assert torch.equal(latent_weights(result.model)["4"], before)


def test_both_widths_are_settings(make_job):
    model = quantize(make_job(hybrid={"backbone_bits": 2, "classifier_bits": 8})).model
    assert widths(model) == {"0": [2] * 6, "4": [8] * 2}


@pytest.mark.parametrize(("assigned", "used"), [("per_tensor", "per_tensor"), ("per_param", "per_channel")])
def test_it_follows_the_granularity(assigned, used, make_job):
    assert bitmap_of(quantize(make_job(bits=BitMap(assigned, {}))).model).granularity == used


def test_the_classifier_is_the_models_own_role(make_job):
    model = quantize(make_job(roles={"first": "0", "last": "4", "classifier": "0"})).model
    assert widths(model) == {"0": [32] * 6, "4": [4] * 2}


def test_protected_layers_keep_their_width(make_job):
    job = make_job(protect=ProtectSection(layers=("first", "classifier"), bits=6))
    assert widths(quantize(job).model) == {"0": [6] * 6, "4": [6] * 2}


def test_a_pattern_that_matches_nothing(make_job):
    with pytest.raises(ConfigError, match="ghost"):
        quantize(make_job(protect=ProtectSection(layers=("ghost",))))


class TestSensitiveLayers:
    """Which they are was found in assign and comes with the widths; every mode leaves them there."""

    BITS = BitMap(
        "per_channel", {"0": np.full(6, 8, np.uint8), "4": np.array([2, 4], np.uint8)}, held=("0",)
    )  # fmt: skip

    @pytest.mark.parametrize("mode", ["uniform", "hybrid", "baq_learnable", "iterative_qat", "fair_static", "kmeans"])
    def test_every_mode_keeps_their_width(self, mode, make_job):
        job = make_job(bits=self.BITS, epochs=1, iterative={"rounds": 1}, baq={"target_bits": 3.0, "logit_lr": 1.0})
        assert widths(plugins.load("mode", mode).quantize(job).model)["0"] == [8] * 6

    def test_other_layers_are_the_modes(self, make_job):
        assert widths(plugins.load("mode", "uniform").quantize(make_job(bits=self.BITS)).model)["4"] == [4, 4]

    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
    def test_at_any_granularity(self, granularity, make_job):
        shape = {"per_tensor": (), "per_channel": (6,), "per_param": (6, 3, 3, 3)}[granularity]
        bits = BitMap(granularity, {"0": np.full(shape, 16, np.uint8)}, held=("0",))
        assert held_widths(make_job(bits=bits), ["0", "4"]) == {"0": 16}

    def test_a_named_width_comes_first(self, make_job):
        job = replace(make_job(bits=self.BITS), protect=ProtectSection(layers=("last", "first"), bits=32))
        assert held_widths(job, ["0", "4"]) == {"0": 32, "4": 32}

    def test_it_is_in_the_file_where_there_is_one(self, tmp_path):
        self.BITS.save(tmp_path / "held.safetensors")
        replace(self.BITS, held=()).save(tmp_path / "none.safetensors")
        assert BitMap.load(tmp_path / "held.safetensors").held == ("0",)
        assert BitMap.load(tmp_path / "none.safetensors").held == ()
        assert b"held" not in (tmp_path / "none.safetensors").read_bytes()
