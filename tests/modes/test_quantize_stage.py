"""The quantize stage on a small project folder: its outputs, and one line for a user's mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.allocate.info import ModelInfo
from fairquant.config.load import parse_config
from fairquant.cost.size import size_report
from fairquant.data.store import Store
from fairquant.errors import ArtifactError
from fairquant.models.io import load_description, load_model
from fairquant.models.layers import quantizable_layers
from fairquant.modes import QuantizeJob
from fairquant.quantize.state import load_quantized, plain_state
from stages import quantize


@pytest.mark.parametrize("mode", ["uniform", "fair_static_qat"])
def test_writes_every_output(project, mode):
    section = {"epochs": 1, "batch_size": 32, "augment": "off"}
    quantize.main(parse_config({"quant_mode": mode, "quantize": section, "device": "cpu"}))
    _, spec, bits = load_quantized(project / "models/quantized.safetensors")
    assert spec.name == "test_efficientnet" and bits.widths() == (8,)
    curve = (project / "plots/quantize/curve.csv").read_text().splitlines()
    assert len(curve) == 2 and curve[0].startswith("epoch,lr,train_loss")
    assert "light" in (project / "plots/quantize/training.log").read_text()
    assert not (project / ".fairquant").exists()


@pytest.mark.parametrize("mode", ["fair_static", "none"])
def test_a_corrected_model_is_saved_bit_for_bit(project, mode):
    widths = {name: np.full_like(width, 3) for name, width in BitMap.load("models/bits.safetensors").layers.items()}
    BitMap("per_channel", widths).save("models/bits.safetensors")
    states, models = {}, {}
    for images in (0, 16):
        config = parse_config({"quant_mode": mode, "quantize": {"correction_images": images}, "device": "cpu"})
        quantize.main(config)
        models[images], _, _ = load_quantized("models/quantized.safetensors")
        states[images] = plain_state(models[images])
    full, _ = load_model("models/pretrained.safetensors")
    job = QuantizeJob.of(config, model=full, store=Store.open(), bits=BitMap("per_channel", widths), roles={})
    kept = plugins.load("mode", mode).quantize(job).model
    assert all(torch.equal(value, states[16][name]) for name, value in plain_state(kept).items())
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(models[16].to(memory_format=torch.channels_last)(pixels), kept(pixels))
    changed = {name for name, value in states[16].items() if not torch.equal(value, states[0][name])}
    statistics = {name for name in states[0] if name.endswith(("running_mean", "running_var"))}
    biases = {f"{name}.bias" for name, layer in quantizable_layers(kept).items() if layer.bias is not None}
    assert biases and changed == (statistics | biases if mode == "fair_static" else set())


def test_codebooks_are_saved_and_paid_for(project):
    section = {"epochs": 1, "batch_size": 32, "augment": "off"}
    quantize.main(parse_config({"quant_mode": "kmeans", "quantize": section, "device": "cpu"}))
    _, _, bits = load_quantized(project / "models/quantized.safetensors")
    assert bits.codebook == "tensor" and bits.widths() == (8,)
    info = ModelInfo.from_json(load_description("models/pretrained.json"))
    values = [min(256, int(np.prod(shape))) for shape in info.shapes.values()]
    assert size_report(bits, info.shapes, rest=info.rest).scales == 4 * sum(values)


def test_bits_of_another_model(project):
    BitMap("per_channel", {"ghost": np.zeros(3, np.uint8)}).save(project / "models/bits.safetensors")
    with pytest.raises(ArtifactError, match="bit map: got"):
        quantize.main(parse_config({"quant_mode": "fair_static", "device": "cpu"}))
    assert not (project / "models/quantized.safetensors").exists()
