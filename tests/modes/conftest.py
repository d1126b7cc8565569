"""A small model, a small problem and the job of quantizing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.config.load import parse_config
from fairquant.config.schema import ProtectSection, QuantizeSection
from fairquant.data.store import Store
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.layers import quantizable_layers
from fairquant.models.spec import ModelSpec
from fairquant.modes import QuantizeJob
from fairquant.modes._ranking import UnitRanking

CPU = torch.device("cpu")


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 2)]
        return nn.Sequential(*layers)


@pytest.fixture
def store(make_store: Callable[..., Store], tmp_path: Path) -> Store:
    return make_store(tmp_path / "prepared", n_per_group=60, size=8)


@pytest.fixture
def make_job(store: Store) -> Callable[..., QuantizeJob]:
    """Return a factory of jobs; keyword arguments of ``QuantizeSection`` go there, others to the job."""

    def make(**changes: object) -> QuantizeJob:
        fields = {field.name for field in dataclasses.fields(QuantizeJob)}
        section = {"epochs": 2, "batch_size": 24, "lr": 0.01, "augment": "off", "uniform_bits": 4}
        section |= {key: value for key, value in changes.items() if key not in fields}
        bits = BitMap(
            "per_channel",
            {"0": np.array([2, 4, 8, 2, 4, 8], dtype=np.uint8), "4": np.array([4, 8], dtype=np.uint8)},
        )
        values: dict[str, object] = {
            "model": make_model(),
            "store": store,
            "bits": bits,
            "section": QuantizeSection(**section),
            "seed": 0,
            "device": CPU,
            "precision": "fp32",
            "protect": ProtectSection(),
            "roles": {"first": "0", "last": "4", "classifier": "4"},
            "ranking": UnitRanking(parse_config({"importance": {"batch_size": 16}}), store, CPU),
        }
        return QuantizeJob(**(values | {key: value for key, value in changes.items() if key in fields}))

    return make


@pytest.fixture
def project(make_store, tmp_path, monkeypatch):
    """A workspace as the assign stage leaves it: data, a pretrained model, 8 bits for every channel."""
    store = make_store(tmp_path / "data/prepared", n_per_group=40, size=32)
    spec = ModelSpec("test_efficientnet", store.classes, 32, (0.5,) * 3, (0.25,) * 3)
    model = build(spec, seed=0)
    save_model(tmp_path / "models/pretrained.safetensors", model, spec)
    widths = {name: np.full(layer.weight.shape[0], 8, np.uint8) for name, layer in quantizable_layers(model).items()}
    BitMap("per_channel", widths).save(tmp_path / "models/bits.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # the stages set it for their process
