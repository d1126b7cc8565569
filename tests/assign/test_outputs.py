"""What the assign stage writes: metrics, reasons and the curve, on a model and data of their own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fairquant.allocate.bitmap import BitMap
from fairquant.artifacts import read_json, write_json
from fairquant.assign.outputs import CURVE_COLUMNS, describe, read_weights
from fairquant.assign.run import assign
from fairquant.config import Config
from fairquant.cost.summary import summarise_bits, to_csv
from fairquant.errors import ArtifactError
from fairquant.evaluate.summary import metric_keys
from fairquant.importance.maps import ImportanceMaps
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.quantize.attach import quantize_model
from fairquant.train.predict import predict
from tests.conftest import write_store

CPU = torch.device("cpu")
MODEL = "models/pretrained.safetensors"
GROUPS, CLASSES = ("type 1–3", "type v4.6"), ("benign", "malignant")
SPEC = ModelSpec("test_resnet", CLASSES, 16, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set, a small model and maps of it."""
    path = tmp_path_factory.mktemp("outputs")
    store = write_store(path / "data/prepared", n_per_group=40, groups=GROUPS, classes=CLASSES, size=16)
    save_model(path / MODEL, build(SPEC, seed=0), SPEC)
    return path, store


@pytest.fixture
def case(folder, monkeypatch):
    path, store = folder
    monkeypatch.chdir(path)
    info = read_json("models/pretrained.json")
    return info, store


def maps_of(info, groups=GROUPS, metric="fisher"):
    rng = np.random.default_rng(0)
    layers = {
        name: rng.gamma(0.5, size=(len(groups), *layer["shape"])).astype(np.float32)
        for name, layer in info["layers"].items()
    }
    return ImportanceMaps(tuple(groups), (3,) * len(groups), layers, {"metric": metric})


def configure(**more):
    explain = {"budgets": [1, 3], "measure": True} | more.pop("explain", {})
    given = {"allocator": "optimal", "reducer": "max", "device": "cpu", "budget": {"avg_bits": 3.0}}
    assign_ = {"optimal": {"bits": [0, 1, 2, 4, 8]}, "explain": explain}
    return Config(**(given | more), assign=assign_, quantize={"scale": "mse"})


def described(info, config, maps=None):
    maps = maps or maps_of(info)
    found = assign(maps, info, config, lambda: read_weights(MODEL, info))
    return found, describe(found, maps, info, config, MODEL)


def test_weights_are_those_of_the_model(case):
    info, _ = case
    model = build(SPEC, seed=0).eval()
    found = read_weights(MODEL, info)
    assert list(found) == list(quantizable_layers(model)) == list(info["layers"])
    for name, layer in quantizable_layers(model).items():
        np.testing.assert_array_equal(found[name], layer.weight.detach().numpy())


def test_weights_of_another_model_are_refused(case):
    info, _ = case
    info["layers"]["extra"] = {"shape": [1, 1], "kind": "linear"}
    line = f"^{MODEL}: got no weight of layer extra; allowed: the model of models/pretrained.json$"
    with pytest.raises(ArtifactError, match=line):
        read_weights(MODEL, info)


def test_metrics(case, tmp_path):
    info, _ = case
    found, reports = described(info, configure(explain={"measure": False}))
    plain = summarise_bits(found.bits, info)
    assert {key: reports.metrics[key] for key in plain} == plain
    predicted = reports.metrics["predicted"]
    assert set(reports.metrics) == {*plain, "predicted"}
    assert list(predicted) == ["objective", "bound", "gap", "loss", "weight", "price"]
    assert predicted["loss"] == dict(zip(metric_keys(GROUPS), found.spent.totals.tolist(), strict=True))
    assert predicted["objective"] == max(predicted["loss"].values())
    assert predicted["bound"] <= predicted["objective"] and 0 <= predicted["gap"] <= 0.001
    assert predicted["gap"] == pytest.approx(1 - predicted["bound"] / predicted["objective"], abs=1e-9)
    assert sum(predicted["weight"].values()) == pytest.approx(1) and set(predicted["price"]) == {"avg_bits"}
    write_json(tmp_path / "bits.json", reports.metrics)
    assert json.loads((tmp_path / "bits.json").read_text())["predicted"]["loss"].keys() == set(metric_keys(GROUPS))


@pytest.mark.parametrize("groups", [GROUPS, CLASSES], ids=["group", "class"])
def test_the_curve_is_measured_for_what_importance_was_measured_for(case, groups):
    info, store = case
    config = configure()
    found, reports = described(info, config, maps_of(info, groups))
    assert [(row["budget"], row["group"]) for row in reports.curve] == [
        (budget, group) for budget in ("chosen", 1.0, 3.0) for group in groups
    ]
    model = build(SPEC, seed=0).eval()
    quantize_model(model, found.bits, scale="mse")
    part = predict(model, store, "val", batch_size=64, device=CPU)
    marks = part.groups if groups == GROUPS else part.labels
    for index, row in enumerate(reports.curve[:2]):
        right = part.logits.argmax(axis=1) == part.labels
        assert row["accuracy"] == right[marks == index].mean()
        assert math.isfinite(row["measured"])
    lines = to_csv(reports.curve, CURVE_COLUMNS).splitlines()
    assert lines[0] == "budget,avg_bits,packed_mb,group,predicted,measured,accuracy" and len(lines) == 7


def test_unmeasured_cells_stay_empty(case):
    info, _ = case
    _, reports = described(info, configure(explain={"measure": False}))
    lines = to_csv(reports.curve, CURVE_COLUMNS).splitlines()
    assert len(lines) == 7 and all(line.endswith(",,") for line in lines[1:])


def test_data_are_not_needed_to_predict(case, tmp_path, monkeypatch):
    info, _ = case
    config, maps = configure(explain={"measure": False}), maps_of(info)
    found = assign(maps, info, config, lambda: read_weights(MODEL, info))
    monkeypatch.chdir(tmp_path)
    assert len(describe(found, maps, info, config, MODEL).curve) == 6


def test_maps_of_other_groups_are_refused(case):
    info, _ = case
    with pytest.raises(ArtifactError, match="^importance: got the groups x, y; allowed: those of data/prepared$"):
        described(info, configure(), maps_of(info, ("x", "y")))


@pytest.mark.parametrize("allocator", ["levels", "uniform"])
def test_allocators_without_a_budget_have_no_curve(case, allocator):
    info, _ = case
    found, reports = described(info, configure(allocator=allocator))
    assert reports.metrics == summarise_bits(found.bits, info)
    assert [row["layer"] for row in reports.layers] == list(info["layers"])
    assert to_csv(reports.curve, CURVE_COLUMNS) == "budget,avg_bits,packed_mb,group,predicted,measured,accuracy\n"


def test_protected_layers_are_listed_by_reason(case):
    info, _ = case
    first = next(iter(info["layers"]))
    protect = {"layers": [first], "bits": 8, "sensitive": 1, "sensitive_bits": 8}
    config = configure(allocator="levels")
    config = config.model_copy(update={"assign": Config(assign={"protect": protect}).assign})
    found, reports = described(info, config)
    assert reports.metrics["protected"] == {"named": [first], "sensitive": list(found.bits.held)}
    assert len(found.bits.held) == 1 and found.bits.held[0] != first


def test_per_parameter_the_chosen_point_alone(case):
    info, _ = case
    _, reports = described(info, configure(granularity="per_param", explain={"measure": False}))
    assert [row["budget"] for row in reports.curve] == ["chosen"] * 2
    assert isinstance(reports.metrics["predicted"]["objective"], float)


def test_weighted_steps_travel_with_the_widths(case, tmp_path):
    info, _ = case
    config = configure(explain={"measure": False})
    config = config.model_copy(update={"quantize": config.quantize.model_copy(update={"scale": "weighted"})})
    found, _ = described(info, config)
    found.bits.save(tmp_path / "bits.safetensors")
    loaded = BitMap.load(tmp_path / "bits.safetensors")
    assert list(loaded.steps) == list(info["layers"])
    for name, table in found.bits.steps.items():
        np.testing.assert_array_equal(loaded.steps[name], table)
