"""The file of a quantized model: bit-identical simulation, stable bytes, one-line errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairquant import artifacts
from fairquant.errors import ArtifactError, UserError
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import latent_weights, quantize_model, scale_tables
from fairquant.quantize.state import load_quantized, plain_state, save_quantized

SPEC = ModelSpec("test_efficientnet", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def built():
    return build(SPEC, seed=0)


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


def test_logits_are_bit_identical(model, random_bits, granularity, scale, tmp_path):
    bits = random_bits(model, granularity)
    quantize_model(model, bits, scale=scale, percentile=99.0)
    model.to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(images).square().sum().backward()
    optimizer.step()  # scales and weights are no longer those of the start
    with torch.no_grad():
        expected = model.eval()(images)
    save_quantized(tmp_path / "q.safetensors", model, SPEC)
    loaded, spec, back = load_quantized(tmp_path / "q.safetensors")
    assert not loaded.training and spec == SPEC and back.granularity == granularity
    assert all(np.array_equal(back.layers[name], bits.layers[name]) for name in bits.layers)
    loaded.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected)
    for name, table in scale_tables(model).items():
        assert torch.equal(scale_tables(loaded)[name], table)
    save_quantized(tmp_path / "again.safetensors", loaded, SPEC)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()


def test_state_keeps_the_full_precision_names_and_values(built, model, random_bits):
    before = built.state_dict()
    quantize_model(model, random_bits(model, "per_channel"), scale="lsq")
    state = plain_state(model)
    assert sorted(state) == sorted(before)
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert latent_weights(model)


@pytest.fixture
def saved(model, random_bits, tmp_path):
    quantize_model(model, random_bits(model, "per_channel"))
    path = tmp_path / "q.safetensors"
    save_quantized(path, model, SPEC, meta={"mode": "fair_static"})
    return path


class TestBrokenFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(ArtifactError, match="not found"):
            load_quantized(tmp_path / "none.safetensors")

    def test_truncated(self, saved):
        saved.write_bytes(saved.read_bytes()[:-100])
        with pytest.raises(ArtifactError, match="not a readable safetensors file"):
            load_quantized(saved)

    def test_another_kind(self, tmp_path):
        artifacts.write_tensors(tmp_path / "b.safetensors", {}, meta={"kind": "bits"})
        with pytest.raises(ArtifactError, match=r"got a file of kind 'bits'; allowed: 'quantized model'"):
            load_quantized(tmp_path / "b.safetensors")

    @pytest.mark.parametrize("what", ["bits", "scale", "state", "spec", "method", "nan"])
    def test_parts_missing_or_wrong(self, saved, what):
        arrays, meta = artifacts.read_tensors(saved)
        arrays = {name: array.copy() for name, array in arrays.items()}
        first = meta["layers"][0]
        if what in {"bits", "scale"}:
            del arrays[f"{what}/{first}"]
        elif what == "state":
            del arrays[f"state/{first}.weight"]
        elif what == "spec":
            del meta["spec"]
        elif what == "method":
            meta["scale"] = "guess"
        else:
            arrays[f"scale/{first}"][0] = np.nan
        artifacts.write_tensors(saved, arrays, meta=meta)
        with pytest.raises(ArtifactError, match=r"; allowed: ") as error:
            load_quantized(saved)
        assert str(saved) in str(error.value) and "\n" not in str(error.value)


def test_a_full_precision_model_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="got a model without quantizers"):
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
    assert not list(tmp_path.iterdir())
