import json

import numpy as np
import pytest
import torch

from fairquant import artifacts
from fairquant.errors import ArtifactError
from fairquant.models.build import build
from fairquant.models.io import load_description, load_model, save_model
from fairquant.models.weights import load_state_dict


@pytest.fixture
def saved(tmp_path, make_spec):
    spec = make_spec("squeezenet1_1")
    model = build(spec, seed=3)
    save_model(tmp_path / "pretrained.safetensors", model, spec, meta={"epochs": 2})
    return tmp_path / "pretrained.safetensors", model, spec


def test_round_trip_is_exact(saved):
    path, model, spec = saved
    loaded, its_spec = load_model(path)
    assert its_spec == spec
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(images), loaded(images))


def test_description_holds_what_assign_needs(saved):
    path, model, _ = saved
    described = load_description(path)
    assert list(described["layers"]) == list(described["macs"])
    assert next(iter(described["layers"])) == described["roles"]["first"] == "features.0"
    assert described["meta"] == {"epochs": 2}
    assert described["parameters"]["total"] == sum(value.numel() for value in model.parameters())


def test_bytes_depend_on_the_content_alone(saved, tmp_path):
    path, model, spec = saved
    save_model(tmp_path / "again" / "other.safetensors", model, spec, meta={"epochs": 2})
    assert (tmp_path / "again" / "other.safetensors").read_bytes() == path.read_bytes()
    assert (tmp_path / "again" / "other.json").read_bytes() == path.with_suffix(".json").read_bytes()
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == ["other.json", "other.safetensors"]


def test_the_file_is_a_weights_path(saved):
    path, model, _ = saved
    assert set(load_state_dict(path)) == set(model.state_dict())


def test_batch_statistics_and_counters_are_kept(tmp_path, make_spec):
    spec = make_spec("mobilenet_v2")
    model = build(spec, seed=0)
    model(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    save_model(tmp_path / "m.safetensors", model.to(memory_format=torch.channels_last), spec)
    state = load_model(tmp_path / "m.safetensors")[0].state_dict()
    assert state["features.0.1.num_batches_tracked"] == 1
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def expect(path, text):
    with pytest.raises(ArtifactError, match=text) as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_missing_halves(saved):
    path, *_ = saved
    path.rename(path.with_name("moved"))
    expect(path, "pretrained.safetensors: not found")
    path.with_suffix(".json").unlink()
    expect(path, "pretrained.json: not found")


def test_tampered_tensors(saved):
    path, *_ = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    expect(path, "got other content than its checksum says; dvc repro writes it anew")


def test_truncated_tensors(saved):
    path, *_ = saved
    path.write_bytes(path.read_bytes()[:-100])
    expect(path, "not a readable safetensors file")


def test_halves_of_different_models(saved, tmp_path, make_spec):
    path, *_ = saved
    spec = make_spec("squeezenet1_1")
    save_model(tmp_path / "b" / "pretrained.safetensors", build(spec, seed=4), spec)
    path.with_suffix(".json").write_bytes((tmp_path / "b" / "pretrained.json").read_bytes())
    expect(path, "got other tensors than its .json describes")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda value: value.pop("macs"), "got no macs; allowed: the description of a model"),
        (lambda value: value["spec"].pop("mean"), "got the spec keys"),
        (lambda value: value["spec"].update(classes=["a", "b"]), "weights do not fit the model"),
    ],
)
def test_damaged_descriptions(saved, change, text):
    path, *_ = saved
    value = json.loads(path.with_suffix(".json").read_text())
    change(value)
    path.with_suffix(".json").write_text(json.dumps(value))
    expect(path, text)


def test_a_foreign_safetensors_file(tmp_path, saved):
    path, *_ = saved
    artifacts.write_tensors(path, {"x": np.zeros(1, np.float32)}, meta={})
    expect(path, "got other tensors than its .json describes")


def test_header_carries_the_spec(saved):
    path, _, spec = saved
    assert artifacts.read_tensors(path)[1]["spec"] == spec.to_dict()
