"""The export stage, run as ``python -m stages.export`` runs it, on a small model with quantized activations."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fairquant
from fairquant.allocate.bitmap import BitMap
from fairquant.config.quantization import CalibrationSection
from fairquant.cost.summary import summarise_bits
from fairquant.evaluate.summary import summarise
from fairquant.models.build import build
from fairquant.models.describe import describe
from fairquant.models.io import save_model
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.predictions import Predictions
from fairquant.quantize.activate import attach_activations
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.state import load_quantized, save_quantized
from fairquant.train.calibrate import calibrate
from fairquant.train.predict import predict_splits

STAGE = Path(__file__).resolve().parents[2] / "stages/export.py"
GROUPS = ("female × <60", "male v1.5")
CPU = torch.device("cpu")


@pytest.fixture
def project(make_store, tmp_path, monkeypatch):
    """A folder with data, a full-precision model, one of 2/4/8 bits with activations of 8, and its predictions."""
    store = make_store(tmp_path / "data/prepared", n_per_group=40, groups=GROUPS, size=32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mean, std = store.meta["mean"], store.meta["std"]
    spec = ModelSpec("test_resnet", store.classes, 32, tuple(mean), tuple(std))
    model = build(spec, seed=0)
    save_model("models/pretrained.safetensors", model, spec)
    rng = np.random.default_rng(0)
    layers = quantizable_layers(model).items()
    widths = {name: rng.choice(np.uint8([2, 4, 8]), len(layer.weight)) for name, layer in layers}
    quantize_model(model, BitMap("per_channel", widths), scale="mse")
    quantized = attach_activations(model, bits=8, scheme="asymmetric", observer="minmax")
    section = CalibrationSection(batches=2, batch_size=16)
    calibrate(quantized, store, section, device=CPU, precision="fp32", seed=0)
    save_quantized("models/quantized.safetensors", quantized, spec)
    loaded, _, _ = load_quantized("models/quantized.safetensors")
    found = predict_splits(loaded, store, ("val", "test"), batch_size=8, device=CPU, precision="fp32")
    found.save("models/quantized_predictions.safetensors")
    yield tmp_path
    torch.use_deterministic_algorithms(False)


def run(**export: object) -> dict:
    """Run the stage and return metrics/export.json."""
    params = {"device": "cpu", "model": {"name": "test_resnet"}, "evaluate": {"batch_size": 8}, "export": export}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    runpy.run_path(str(STAGE), run_name="__main__")
    return json.loads(Path("metrics/export.json").read_text(encoding="utf-8"))


def outputs() -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in ("models", "metrics")
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_every_format_in_every_runtime(project):
    metrics = run(formats=["packed", "onnx", "tensorrt"], integer_images=8)
    files = {"packed": "packed.safetensors", "onnx": "model.onnx", "tensorrt": "tensorrt.onnx"}
    assert {path.name for path in Path("models/export").iterdir()} == set(files.values())
    for name, file in files.items():
        assert metrics["size"][f"{name}_mb"] == round(Path("models/export", file).stat().st_size / 1e6, 6)
    model, spec, bits = load_quantized("models/quantized.safetensors")
    size = summarise_bits(bits, describe(build(spec, seed=0), spec))["size"]
    assert metrics["size"]["computed_mb"] == pytest.approx(size["packed_mb"], abs=1e-6)
    assert metrics["size"]["weights_mb"] == pytest.approx(size["reference_mb"], abs=1e-6)
    assert metrics["form"] == {
        "integer_layers": len(bits.layers), "float_layers": 0, "float_names": [], "activations": "static",
        "activation_bits": 8,
    }  # fmt: skip

    simulation = Predictions.load("models/quantized_predictions.safetensors")["test"]
    exported = Predictions.load("models/exported_predictions.safetensors")
    assert set(exported.splits) == set(metrics["parity"]) == {"packed", "onnxruntime", "openvino", "tensorrt"}
    assert np.array_equal(exported["packed"].logits, simulation.logits)
    for name, row in metrics["parity"].items():
        part = exported[name]
        plain = summarise(part, classes=exported.classes, groups=exported.groups)
        assert row["n"] == len(simulation.labels)
        assert row["agreement"] == pytest.approx((part.predicted == simulation.predicted).mean(), abs=1e-6)
        assert row["overall"]["runtime"] == pytest.approx(plain["overall_acc"], abs=1e-6)
        assert list(row["group"]) == ["female × <60", "male v1·5"]
    assert metrics["parity"]["packed"]["max_logit_difference"] == 0
    assert (metrics["integer"]["n"], metrics["integer"]["agreement"]) == (8, 1.0)
    assert metrics["gates"]["gate"]["disagreement"]["value"] == pytest.approx(
        1 - min(row["agreement"] for row in metrics["parity"].values()), abs=1e-6
    )
    assert "latency" not in metrics

    first = outputs()
    run(formats=["packed", "onnx", "tensorrt"], integer_images=8)
    assert outputs() == first


def test_packed_alone_starts_no_runtime(project, monkeypatch):
    monkeypatch.setattr("fairquant.export.run.open_session", None)
    metrics = run(formats=["packed"])
    assert set(metrics) == {"provenance", "size", "parity", "gates"}
    assert list(metrics["parity"]) == ["packed"]
    assert metrics["gates"]["passed"]
    model = fairquant.load_packed("models/export/packed.safetensors")
    quantized, _, _ = load_quantized("models/quantized.safetensors")
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), quantized(images))


def test_times_are_measured_where_asked_for(project):
    metrics = run(formats=["onnx"], runtimes=["onnxruntime"], integer_images=0, latency={"runs": 2, "batches": [1]})
    assert "integer" not in metrics
    times = metrics["latency"]
    assert (times["runs"], times["threads"], times["image_size"]) == (2, 1, 32)
    assert set(times["batch"]["1"]) == {"torch_fp32", "onnxruntime_fp32", "onnxruntime"}
    assert all(row["median_ms"] > 0 for row in times["batch"]["1"].values())


def test_a_missing_input_is_one_line_and_writes_nothing(project, capsys):
    Path("models/quantized.safetensors").unlink()
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: models/quantized.safetensors: not found; run the stage that writes it (dvc repro)\n"
    )
    assert not Path("models/export").exists()
    assert not Path("metrics").exists()


@pytest.mark.parametrize(
    "export, line",
    [
        ({"formats": []}, "export.formats: got []; allowed: one or more of packed | onnx | tensorrt, each once"),
        ({"runtimes": ["openvino"] * 2}, "export.runtimes: got ['openvino', 'openvino']; allowed: onnxruntime | "
         "openvino, each once"),
        ({"formats": ["tflite"]}, "export.formats.0: got 'tflite'; allowed: packed | onnx | tensorrt"),
        ({"latency": {"batches": [0]}}, "export.latency.batches: got [0]; allowed: different whole numbers, each at "
         "least 1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, export, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(**export)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: params.yaml: {line}")
