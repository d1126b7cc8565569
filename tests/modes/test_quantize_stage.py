"""The quantize stage on a small project folder: its outputs, and one line for a user's mistake."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.allocate.bitmap import BitMap
from fairquant.config.load import parse_config
from fairquant.errors import ArtifactError
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.state import load_quantized
from stages import quantize


@pytest.fixture
def project(make_store, tmp_path, monkeypatch):
    store = make_store(tmp_path / "data/prepared", n_per_group=40, size=32)
    spec = ModelSpec("test_efficientnet", store.classes, 32, (0.5,) * 3, (0.25,) * 3)
    model = build(spec, seed=0)
    save_model(tmp_path / "models/pretrained.safetensors", model, spec)
    widths = {name: np.full(layer.weight.shape[0], 8, np.uint8) for name, layer in quantizable_layers(model).items()}
    BitMap("per_channel", widths).save(tmp_path / "models/bits.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # the stage sets it for its process


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


def test_bits_of_another_model(project):
    BitMap("per_channel", {"ghost": np.zeros(3, np.uint8)}).save(project / "models/bits.safetensors")
    with pytest.raises(ArtifactError, match="bit map: got"):
        quantize.main(parse_config({"quant_mode": "fair_static", "device": "cpu"}))
    assert not (project / "models/quantized.safetensors").exists()
