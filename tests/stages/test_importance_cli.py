"""The importance stage hands params.yaml's settings to the measuring loop, the metric's own included."""

from __future__ import annotations

import pytest
import torch
import yaml

from fairquant.config.load import parse_config
from fairquant.importance.maps import ImportanceMaps
from fairquant.models.build import build
from fairquant.models.io import save_model
from fairquant.models.spec import ModelSpec
from stages import importance

PARAMS = """
importance_metric: {metric}
device: cpu
seed: 3
importance: {{batch_size: 2, samples_per_group: 3, normalize: none, by: class, metrics: {{hawq: {{samples: 3}}}}}}
"""


@pytest.fixture(autouse=True)
def _process_settings():
    yield
    torch.use_deterministic_algorithms(False)  # the stage sets it for its process


def test_settings_of_the_stage_and_of_the_metric_arrive(make_store, tmp_path, monkeypatch):
    store = make_store(tmp_path / "data/prepared", n_per_group=10, size=32)
    spec = ModelSpec("squeezenet1_1", store.classes, 32, tuple(store.meta["mean"]), tuple(store.meta["std"]))
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models/pretrained.safetensors", build(spec, seed=0), spec)
    monkeypatch.chdir(tmp_path)
    wanted = {"by": "class", "normalize": "none", "batch_size": 2, "seed": 3}
    for metric, settings in (("grape", {}), ("hawq", {"options": {"samples": 3}})):
        importance.main(parse_config(yaml.safe_load(PARAMS.format(metric=metric))))
        maps = ImportanceMaps.load("models/importance.safetensors")
        assert maps.groups == store.classes
        assert maps.counts == (3, 3)
        assert maps.meta == {"metric": metric, **wanted, **settings}
