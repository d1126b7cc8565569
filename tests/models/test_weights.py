import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fairquant.errors import UserError
from fairquant.models.build import build
from fairquant.models.weights import load_into, load_state_dict


def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def state():
    torch.manual_seed(1)
    return tiny().state_dict()


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "nested": lambda state: {"model": {"state_dict": state}},
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_are_removed(tmp_path, state, wrapping):
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "w.pth")
    loaded = load_state_dict(tmp_path / "w.pth")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_safetensors_are_read(tmp_path, state):
    save_file(WRAPPINGS["module"](state), tmp_path / "w.safetensors")
    loaded = load_state_dict(str(tmp_path / "w.safetensors"))
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="which is no file; allowed: none | imagenet | a path"):
        load_state_dict(tmp_path / "none.pth")


class Unsafe:
    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_file_is_refused_not_run(tmp_path, capsys):
    torch.save({"state_dict": Unsafe()}, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_state_dict(tmp_path / "w.pth")
    assert "not readable as weights" in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut"])
def test_damaged_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not readable as weights") as error:
        load_state_dict(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_of_the_old_format_cut_anywhere_is_one_line(tmp_path, state):
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "w.pth").read_bytes()
    for length in range(1, len(whole), 61):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not readable as weights") as error:
            load_state_dict(tmp_path / "cut.pth")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: {0: torch.ones(2)}, r"keys that hold no tensor \(0\)"),
        (lambda: {"a": torch.ones(2), 1: torch.ones(2)}, r"keys that hold no tensor \(1\)"),
        (lambda: {"a": torch.ones(2, dtype=torch.complex64)}, r"quantized, sparse or complex \(a\)"),
        (lambda: {"a": torch.ones(2).to_sparse()}, r"quantized, sparse or complex \(a\)"),
        (lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, r"quantized, sparse .* \(a\)"),
        (lambda: {"a": torch.ones(2), "b": torch.tensor([1, float("nan")])}, r"NaN or infinite \(b\)"),
        (lambda: {"a": torch.tensor(float("inf"), dtype=torch.bfloat16)}, r"NaN or infinite \(a\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of kinds of tensors it will drop
def test_numbers_that_no_model_has_are_refused(tmp_path, make, text):
    torch.save(make(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=text) as error:
        load_state_dict(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "text"), [({"a": 3}, "hold no tensor \\(a\\)"), ([1], "got list"), ({}, "got dict")])
def test_files_of_something_else_are_refused(tmp_path, value, text):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(UserError, match=text):
        load_state_dict(tmp_path / "w.pth")


def test_every_misfit_is_named_by_key(state):
    state["2.weight"] = torch.zeros(5, 4)
    state["extra.bias"] = state.pop("0.bias")
    del state["1.num_batches_tracked"]
    with pytest.raises(UserError) as error:
        load_into(tiny(), state, strict=True, source="w.pth")
    assert str(error.value) == (
        "w.pth: weights do not fit the model (missing: 0.bias; unexpected: extra.bias; "
        "mis-shaped: 2.weight [5, 4] for [2, 4]); allowed: its own keys and shapes, or strict: false"
    )


def test_many_keys_are_counted():
    with pytest.raises(UserError, match="unexpected: k0, .*, k7 and 4 more"):
        load_into(tiny(), {f"k{index}": torch.zeros(1) for index in range(12)}, strict=True, source="w")


def test_not_strict_leaves_misfits_out_with_a_warning(state, caplog):
    state["2.weight"] = torch.zeros(5, 4)
    model = tiny()
    before = model[2].weight.clone()
    with caplog.at_level(logging.WARNING):
        load_into(model, state, strict=False, source="w.pth")
    assert torch.equal(model[0].weight, state["0.weight"])
    assert torch.equal(model[2].weight, before)
    assert caplog.messages == ["w.pth: left out of the import (strict: false): mis-shaped: 2.weight [5, 4] for [2, 4]"]


def test_not_strict_still_refuses_another_model():
    with pytest.raises(UserError, match="^w: none of its 1 keys fits the model"):
        load_into(tiny(), {"a": torch.zeros(1)}, strict=False, source="w")


def test_old_files_without_batch_counters_are_whole(state):
    del state["1.num_batches_tracked"]
    load_into(tiny(), state, strict=True, source="w")


def test_build_imports_a_path(tmp_path, make_spec):
    spec = make_spec("squeezenet1_1")
    other = build(spec, seed=1)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pt")
    got = build(spec, weights=str(tmp_path / "w.pt"), seed=2).state_dict()
    assert all(torch.equal(value, got[key]) for key, value in other.state_dict().items())
    wider = make_spec("squeezenet1_1", classes=("a", "b", "c", "d"))
    with pytest.raises(UserError, match=r"mis-shaped: classifier.1.weight \[3, 512, 1, 1\] for \[4, 512, 1, 1\]"):
        build(wider, weights=str(tmp_path / "w.pt"), seed=2)
    build(wider, weights=str(tmp_path / "w.pt"), strict=False, seed=2)
