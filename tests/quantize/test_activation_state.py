"""Activation grids in the file of a quantized model: what is kept, and one line for what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import artifacts
from fairquant.errors import ArtifactError
from fairquant.models.build import build
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.activate import activation_quantizers, attach_activations
from fairquant.quantize.attach import bitmap_of, quantize_model
from fairquant.quantize.state import load_quantized, save_quantized

SPEC = ModelSpec("test_resnet", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(random_bits) -> nn.Module:
    model = build(SPEC, seed=0).eval()
    quantize_model(model, random_bits(model, "per_channel", (4, 8)))
    return model


def quantized(model: nn.Module, **changes: object) -> nn.Module:
    result = attach_activations(model, **{"bits": 5, "scheme": "symmetric", "observer": "mse", **changes})
    for number, quantizer in enumerate(activation_quantizers(result).values()):
        if not quantizer.dynamic:
            quantizer.load_grid(torch.tensor(0.05 + 0.01 * number), torch.tensor(0))
    return result


@pytest.mark.parametrize("changes", [{}, {"points": "layers"}, {"dynamic": True}], ids=str)
def test_round_trip_bit_for_bit(changes, model, tmp_path):
    kept = quantized(model, **changes)
    save_quantized(tmp_path / "m.safetensors", kept, SPEC)
    loaded, spec, bits = load_quantized(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), kept(IMAGES))
    assert spec == SPEC and list(bits.layers) == list(bitmap_of(kept).layers) == list(
        quantizable_layers(build(SPEC, seed=0))
    )
    save_quantized(tmp_path / "again.safetensors", loaded, SPEC)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    arrays, header = artifacts.read_tensors(tmp_path / "m.safetensors")
    names = list(activation_quantizers(kept))
    assert header["activations"] == {
        "bits": 5, "scheme": "symmetric", "observer": "mse", "momentum": 0.1, "percentile": 99.99, "points": "all",
        "dynamic": False, "names": names, **changes,
    }  # fmt: skip
    grids = {} if changes.get("dynamic") else {f"activation/{n}/{p}" for n in names for p in ("scale", "zero_point")}
    assert {name for name in arrays if name.startswith("activation/")} == set(grids)
    assert not [name for name in arrays if name.startswith("state/") and "activation" in name]


def test_points_taken_away_stay_away(model, tmp_path):
    from fairquant.quantize.activate import input_bits, keep_points

    kept = quantized(model, points="layers")
    keep_points(kept, list(activation_quantizers(kept))[1:])
    save_quantized(tmp_path / "m.safetensors", kept, SPEC)
    loaded, _, _ = load_quantized(tmp_path / "m.safetensors")
    assert list(activation_quantizers(loaded)) == list(activation_quantizers(kept))
    assert input_bits(loaded) == input_bits(kept)


def test_without_activations_the_file_says_nothing_of_them(model, tmp_path):
    save_quantized(tmp_path / "m.safetensors", model, SPEC)
    arrays, header = artifacts.read_tensors(tmp_path / "m.safetensors")
    assert "activations" not in header and not [name for name in arrays if name.startswith("activation/")]
    assert not activation_quantizers(load_quantized(tmp_path / "m.safetensors")[0])


class TestDamaged:
    @pytest.fixture
    def parts(self, model, tmp_path):
        kept = quantized(model)
        save_quantized(tmp_path / "m.safetensors", kept, SPEC)
        return (*artifacts.read_tensors(tmp_path / "m.safetensors"), next(iter(activation_quantizers(kept))))

    def refused(self, path, arrays, header) -> str:
        artifacts.write_tensors(path, arrays, meta=header)
        with pytest.raises(ArtifactError) as caught:
            load_quantized(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{path}: ")

    def test_a_grid_that_is_not_there(self, parts, tmp_path):
        arrays, header, first = parts
        del arrays[f"activation/{first}/scale"]
        line = self.refused(tmp_path / "d.safetensors", arrays, header)
        assert line == f"got no 'activation/{first}/scale'; allowed: an output of the quantize stage"

    def test_a_grid_that_is_none(self, parts, tmp_path):
        arrays, header, first = parts
        arrays[f"activation/{first}/scale"] = np.float32(-1.0)
        line = self.refused(tmp_path / "d.safetensors", arrays, header)
        assert line == f"{first}: activation scale: got -1.0; allowed: one positive number"

    def test_points_of_another_model(self, parts, tmp_path):
        arrays, header, first = parts
        header["activations"]["names"].append("ghost.input")
        line = self.refused(tmp_path / "d.safetensors", arrays, header)
        assert line == "activation points: got ghost.input; allowed: points of the model"
        header["activations"]["names"] = header["activations"]["names"][1:-1]
        line = self.refused(tmp_path / "d.safetensors", arrays, header)
        assert line == f"activation points: got a graph with {first}; allowed: the points of its model"
