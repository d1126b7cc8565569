"""Packed files: the same logits bit for bit, bytes as the cost model counts them, one line for what does not fit."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import fairquant
from fairquant.cost.size import size_report
from fairquant.errors import UserError
from fairquant.export.codes import coded_layers
from fairquant.export.packed import load_packed, read_packed, write_packed
from fairquant.export.packing.streams import from_arrays, to_arrays
from fairquant.models.describe import describe
from fairquant.models.spec import ModelSpec
from fairquant.quantize.activate import activation_quantizers, activation_settings, keep_points
from fairquant.quantize.attach import bitmap_of, quantizers
from fairquant.quantize.state import load_quantized, plain_state, save_quantized
from tests.export import second_reader
from tests.export.quantized_models import (
    EVERY,
    GROUPS,
    KINDS,
    SMALL,
    float_model,
    metadata_of,
    packed_bytes,
    quantized,
    shapes_of,
    spec_of,
)


def write(path: Path, model: nn.Module, spec: ModelSpec = SMALL) -> Path:
    write_packed(path, model, metadata_of(spec))
    return path


def images(spec: ModelSpec) -> torch.Tensor:
    return torch.randn(3, 3, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_simulation(kind, tmp_path):
    save_quantized(tmp_path / "q.safetensors", quantized(SMALL, **KINDS[kind]), SMALL)
    simulation, spec, bits = load_quantized(tmp_path / "q.safetensors")
    packed = read_packed(write(tmp_path / "p.safetensors", simulation))
    with torch.no_grad():
        logits = packed.model(images(spec))
        assert torch.equal(logits, simulation(images(spec))) and torch.isfinite(logits).all()
    assert not packed.model.training and not quantizers(packed.model)
    assert packed.spec == spec and packed.groups == GROUPS and packed.metadata == metadata_of(spec)
    assert (packed.bits.granularity, packed.bits.scheme, packed.bits.codebook) == (
        bits.granularity,
        bits.scheme,
        bits.codebook,
    )
    assert all(np.array_equal(packed.bits.layers[name], bits.layers[name]) for name in bits.layers)
    assert activation_settings(packed.model) == activation_settings(simulation)
    assert list(activation_quantizers(packed.model)) == list(activation_quantizers(simulation))
    plain = plain_state(simulation)
    weights = {f"{name}.weight" for name in bits.layers}
    for name, tensor in plain_state(packed.model).items():
        assert name in weights or torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_reader_finds_the_same_weights(kind, tmp_path):
    """One that was written from the format's description, on top of the safetensors library."""
    (tmp_path / "p").write_bytes(packed_bytes(kind))
    layers = read_packed(tmp_path / "p").layers
    found = second_reader.weights(tmp_path / "p", {name: layer.shape for name, layer in layers.items()})
    for name, layer in layers.items():
        assert np.array_equal(found[name], layer.weight()), name


@pytest.mark.parametrize("kind", KINDS)
def test_layers_come_back_as_they_were(kind):
    model = quantized(SMALL, **KINDS[kind])
    layers = coded_layers(model)
    back = from_arrays(to_arrays(layers), bitmap_of(model), {name: layer.shape for name, layer in layers.items()})
    assert list(back) == list(layers)
    for name, layer in layers.items():
        for part in ("bits", "codes", "delta", "zero", "floats", "centroids"):
            wanted, got = getattr(layer, part), getattr(back[name], part)
            assert (wanted is None) == (got is None) and np.array_equal(wanted, got), (name, part)
            assert wanted is None or wanted.dtype == got.dtype
        assert (back[name].scheme, back[name].codebook, back[name].shape) == (layer.scheme, layer.codebook, layer.shape)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "deit_tiny_patch16_224"])
def test_published_architectures(name, tmp_path):
    """The bytes of a mixed map: what is counted and two percent at most, really fewer than those of 8 bits."""
    spec = spec_of(name, 32)
    sizes = {}
    for widths in ((2, 4, 8), (8,)):
        model = quantized(spec, widths)
        path = write(tmp_path / "p.safetensors", model, spec)
        loaded = load_packed(path)
        with torch.no_grad():
            assert torch.equal(loaded(images(spec)), model(images(spec)))
        bits, shapes = bitmap_of(model), shapes_of(model)
        rest = describe(loaded, spec)["parameters"]["rest"]
        counted = size_report(bits, shapes, rest=rest)
        sizes[widths] = path.stat().st_size
        assert counted.packed < sizes[widths] <= 1.02 * counted.packed
        total = sum(math.prod(shapes[layer]) * float(bits.layers[layer].mean()) for layer in shapes)
        scales = 4 * sum(layer.size for layer in bits.layers.values())
        assert sizes[widths] <= 1.02 * (total / 8 + scales + 4 * rest)
    assert sizes[2, 4, 8] < 0.8 * sizes[8,]


def test_single_weights_cost_their_map(tmp_path):
    model = quantized(SMALL, (2, 4, 8), "per_param")
    counted = size_report(
        bitmap_of(model), shapes_of(model), rest=describe(float_model(SMALL), SMALL)["parameters"]["rest"]
    )
    assert counted.packed < write(tmp_path / "p", model).stat().st_size <= 1.02 * counted.packed


def test_bytes_depend_on_the_model_alone(tmp_path):
    first, second = (write(tmp_path / name, quantized(SMALL, EVERY)).read_bytes() for name in "ab")
    assert first == second
    channels_last = quantized(SMALL, EVERY).to(memory_format=torch.channels_last)
    assert write(tmp_path / "c", channels_last).read_bytes() == first


def test_any_safetensors_reader_lists_it(tmp_path):
    path = write(tmp_path / "p.safetensors", quantized(SMALL, (2, 4, 32)))
    with safe_open(str(path), framework="np") as file:
        assert set(file.keys()) == {"codes.2", "codes.4", "floats", "rest.F32", "rest.I64", "steps", "widths"}
        assert file.metadata()["fairquant"] == metadata_of(SMALL).to_json()
        assert file.get_tensor("rest.I64").tolist() == [2**40 + 1] * 19


def test_the_package_offers_it_without_importing_torch(tmp_path):
    path = write(tmp_path / "p.safetensors", quantized(SMALL))
    assert "load_packed" in fairquant.__all__ and "load_packed" in dir(fairquant)
    with torch.no_grad():
        assert torch.equal(fairquant.load_packed(path)(images(SMALL)), load_packed(path)(images(SMALL)))
    program = "import sys, fairquant; fairquant.load_packed; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_points_taken_away_stay_away(tmp_path):
    model = quantized(SMALL, activations={"points": "layers"})
    keep_points(model, list(activation_quantizers(model))[1:])
    loaded = load_packed(write(tmp_path / "p", model))
    assert list(activation_quantizers(loaded)) == list(activation_quantizers(model))


class TestNotWritten:
    def test_another_model_than_the_spec_says(self, tmp_path):
        spec = spec_of("resnet32", 8)
        with pytest.raises(
            UserError, match="model: got a CifarResNet that is no resnet32; allowed: the model of the spec"
        ):
            write(tmp_path / "p", quantized(SMALL), spec)

    def test_a_full_precision_model(self, tmp_path):
        with pytest.raises(UserError, match="got a model without quantizers"):
            write(tmp_path / "p", float_model(SMALL))

    def test_weights_that_are_not_finite(self, tmp_path):
        model = quantized(SMALL, (32,))
        model.linear.parametrizations.weight.original.data[0, 0] = math.nan
        with pytest.raises(
            UserError, match="layer linear: got weights that are NaN or infinite; allowed: finite numbers"
        ):
            write(tmp_path / "p", model)

    def test_batch_norm_that_is_nan(self, tmp_path):
        model = quantized(SMALL)
        model.bn1.running_mean[0] = math.nan
        with pytest.raises(UserError, match=r"bn1\.running_mean: got NaN; allowed: numbers"):
            write(tmp_path / "p", model)

    def test_nothing_is_left_behind(self, tmp_path):
        self.test_batch_norm_that_is_nan(tmp_path)
        assert not list(tmp_path.iterdir())
