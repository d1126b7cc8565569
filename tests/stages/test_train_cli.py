"""The stages that train, predict and measure, run as ``python -m stages.<name>`` runs them, on a tiny data set."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fairquant.allocate.bitmap import BitMap
from fairquant.importance.maps import ImportanceMaps
from fairquant.models.io import load_model, save_model
from fairquant.models.layers import quantizable_layers
from fairquant.predictions import Predictions
from fairquant.quantize.attach import quantize_model
from fairquant.quantize.state import save_quantized

STAGES = Path(__file__).resolve().parents[2] / "stages"
GROUPS = ("female × <60", "male v1.5")
KEYS = ["female × <60", "male v1·5"]


@pytest.fixture
def project(make_store, tmp_path, monkeypatch):
    """A working folder with prepared data and a quick params.yaml."""
    make_store(tmp_path / "data/prepared", n_per_group=40, groups=GROUPS, size=16)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    configure()
    yield tmp_path
    torch.use_deterministic_algorithms(False)


def configure(**changes: object) -> None:
    params: dict[str, object] = {
        "device": "cpu",
        "model": {"name": "test_resnet"},
        "pretrain": {"epochs": 2, "batch_size": 16, "augment": "off"},
        "importance": {"samples_per_group": 8},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params | changes), encoding="utf-8")


def run(stage: str) -> None:
    runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")


def metrics(stage: str) -> dict:
    return json.loads(Path(f"metrics/{stage}.json").read_text(encoding="utf-8"))


def outputs(folder: Path) -> dict[str, bytes]:
    files = [path for name in ("models", "metrics", "plots") for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def quantize() -> None:
    """Stand in for the quantize stage: four bits everywhere."""
    model, spec = load_model("models/pretrained.safetensors")
    widths = {name: np.full(len(layer.weight), 4, np.uint8) for name, layer in quantizable_layers(model).items()}
    quantize_model(model, BitMap("per_channel", widths))
    save_quantized("models/quantized.safetensors", model, spec)


def test_from_training_to_evaluation(project):
    run("pretrain")
    pretrain = metrics("pretrain")
    assert pretrain["epochs"] == {"run": 2, "best": pretrain["epochs"]["best"]}
    curve = Path("plots/pretrain/curve.csv").read_text(encoding="utf-8").splitlines()
    assert curve[0].endswith("val_accuracy female × <60,val_accuracy male v1.5")
    best = float(curve[pretrain["epochs"]["best"]].split(",")[4])
    assert pretrain["val"]["overall_acc"] == pytest.approx(best, abs=1e-6)
    assert "kept epoch" in Path("plots/pretrain/training.log").read_text(encoding="utf-8")
    assert not Path(".fairquant").exists()

    run("baseline")
    baseline = metrics("baseline")
    assert baseline["val"]["overall_acc"] == pretrain["val"]["overall_acc"]
    assert list(baseline["test"]["group"]) == KEYS
    before = Predictions.load("models/baseline_predictions.safetensors")
    assert (before.classes, before.groups, set(before.splits)) == (("benign", "malignant"), GROUPS, {"val", "test"})

    run("importance")
    maps = ImportanceMaps.load("models/importance.safetensors")
    assert tuple(maps.groups) == GROUPS

    quantize()
    run("evaluate")
    evaluate = metrics("evaluate")
    assert evaluate["overall"]["before"] == baseline["test"]["overall_acc"]
    assert evaluate["quantized"]["overall_acc"] == evaluate["overall"]["after"]
    assert list(evaluate["group"]) == KEYS
    assert evaluate["cost"]["avg_bits"] == {"by_parameter": 4.0, "by_channel": 4.0}
    assert 4 < evaluate["cost"]["ratio"] < 8
    parts = {f"{name}_mb" for name in ("packed", "weights", "scales", "width_map", "rest", "reference", "fp32")}
    assert set(evaluate["cost"]) == {*parts, "ratio", "avg_bits", "gbops"}
    after = Predictions.load("models/quantized_predictions.safetensors")
    assert evaluate["flips"]["count"] == (before["test"].predicted != after["test"].predicted).sum()
    assert Path("plots/evaluate/gap.csv").exists()
    assert set(evaluate["interval"]["group"]) == set(evaluate["harm"]) == set(evaluate["excessive_loss"]["group"])
    assert evaluate["gates"] == {"passed": True, "gate": {}}

    first = outputs(project)
    for stage in ("pretrain", "baseline", "importance", "evaluate"):
        run(stage)
    assert outputs(project) == first  # byte for byte


def test_zero_epochs_use_imported_weights_as_they_are(project):
    run("pretrain")
    model, spec = load_model("models/pretrained.safetensors")
    save_model("data/weights/own.safetensors", model, spec)
    configure(pretrain={"epochs": 0}, model={"name": "test_resnet", "weights": "data/weights/own.safetensors"})
    before, first = Path("models/pretrained.safetensors").read_bytes(), metrics("pretrain")
    run("pretrain")
    assert Path("models/pretrained.safetensors").read_bytes() == before
    assert metrics("pretrain") == {"val": first["val"], "epochs": {"run": 0, "best": 0}}


def test_debug_trains_one_epoch(project):
    configure(debug=True)
    run("pretrain")
    assert metrics("pretrain")["epochs"] == {"run": 1, "best": 1}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("pretrain", "data/prepared/meta.json: not found"),
        ("baseline", "data/prepared/meta.json: not found"),
        ("importance", "data/prepared/meta.json: not found"),
        ("evaluate", "data/prepared/meta.json: not found"),
    ],
)
def test_missing_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, stage, message):
    monkeypatch.chdir(tmp_path)
    configure()
    with pytest.raises(SystemExit) as exit_:
        run(stage)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_small_groups_audit_and_gates(project):
    run("pretrain")
    quantize()
    rows = Path("data/prepared/samples.csv").read_text(encoding="utf-8").splitlines()
    ages = ["age v1.0", *("young" if row % 3 else "old" for row in range(len(rows) - 1))]
    text = "\n".join(f"{row},{age}" for row, age in zip(rows, ages, strict=True)) + "\n"
    Path("data/prepared/samples.csv").write_text(text, encoding="utf-8")
    audit = ["age v1.0", ["group_name", "age v1.0"]]
    gates = {"size_mb": 1e-6, "overall_drop": 1}
    configure(evaluate={"min_group_size": 5, "audit": audit, "bootstrap": {"resamples": 20}}, gates=gates)
    run("baseline")
    run("evaluate")
    baseline, evaluate = metrics("baseline"), metrics("evaluate")
    assert evaluate["worst_group"]["before"] == baseline["test"]["worst_acc"]
    assert list(evaluate["audit"]) == ["age v1·0", "group_name × age v1·0"]
    assert sum(row["n"] for row in evaluate["audit"]["age v1·0"]["group"].values()) == 16
    assert len(evaluate["audit"]["group_name × age v1·0"]["group"]) == 4
    assert {row["counted"] for row in evaluate["audit"]["group_name × age v1·0"]["group"].values()} == {True, False}
    assert evaluate["gates"]["passed"] is False
    assert {name: gate["passed"] for name, gate in evaluate["gates"]["gate"].items()} == {
        "overall_drop": True, "size_mb": False,
    }  # fmt: skip


def test_unknown_audit_column_is_refused_before_the_models_are_read(project, capsys):
    configure(evaluate={"audit": ["sex"]})
    with pytest.raises(SystemExit) as exit_:
        run("evaluate")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == ("error: evaluate.audit: got column 'sex'; allowed: label_name | group_name\n")


def test_unknown_positive_class_is_one_line(project, capsys):
    run("pretrain")
    configure(evaluate={"positive_class": "cancer"})
    with pytest.raises(SystemExit):
        run("baseline")
    assert "evaluate.positive_class: got 'cancer'; allowed: null | benign | malignant" in capsys.readouterr().err
    assert not Path("metrics/baseline.json").exists()
