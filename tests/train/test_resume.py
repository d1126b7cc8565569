"""A killed run, restarted, ends bit for bit where an undisturbed one ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fairquant.allocate.bitmap import BitMap
from fairquant.config.schema import TrainSection
from fairquant.data.store import Store
from fairquant.quantize.attach import quantize_model
from fairquant.train import checkpoint, distill, loop
from fairquant.train.hooks import Hooks
from fairquant.train.loop import fit
from fairquant.train.losses import compression_drop, gap, group_dro
from fairquant.train.terms import LossTerm

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 2)
    )


class EpochHook(Hooks):
    """Calls a function with the number of each epoch before it starts."""

    def __init__(self, function):
        self.function = function

    def epoch_start(self, epoch):
        if self.function is not None:
            self.function(epoch)


SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from test_resume import train_to_files
    train_to_files(sys.argv[2], sys.argv[3], lambda epoch: epoch == 3 and os.kill(os.getpid(), signal.SIGKILL))
"""


def train_to_files(store_path, folder, on_epoch_start=None):
    """Train four augmented epochs with a checkpoint in ``folder``/resume and write the results to ``folder``."""
    torch.set_num_threads(1)
    model, folder = make_network(), Path(folder)
    folder.mkdir(exist_ok=True)
    history = fit(
        model,
        Store.open(store_path),
        section=TrainSection(epochs=4, batch_size=32, lr=0.01, augment="light"),
        seed=5,
        device=CPU,
        terms=[LossTerm.of(gap, weight=0.5)],
        checkpoint_dir=folder / "resume",
        hooks=EpochHook(on_epoch_start),
    )
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    history.write_curve(folder / "curve.csv")
    history.write_log(folder / "training.log")


def test_kill_minus_nine_loses_nothing(store, tmp_path):
    prepared, disturbed = tmp_path / "prepared", tmp_path / "b"
    threads = torch.get_num_threads()
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(Path(__file__).parent), str(prepared), str(disturbed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (saved,) = (disturbed / "resume").iterdir()
    assert [path.name for path in saved.iterdir()] == ["last.pt"]
    epochs = []
    train_to_files(prepared, disturbed, epochs.append)
    train_to_files(prepared, tmp_path / "a")
    torch.set_num_threads(threads)
    assert epochs == [3, 4]
    assert sorted(path.name for path in disturbed.iterdir()) == ["curve.csv", "model.safetensors", "training.log"]
    for name in ("model.safetensors", "curve.csv", "training.log"):
        assert (tmp_path / "a" / name).read_bytes() == (disturbed / name).read_bytes()


class Stop(Exception):
    """Stands in for a kill."""


def interrupted(model, store, section, folder, epoch, **more):
    def stop(number):
        if number == epoch:
            raise Stop

    with pytest.raises(Stop):
        fit(model, store, section=section, seed=0, device=CPU, checkpoint_dir=folder, hooks=EpochHook(stop), **more)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_resume_is_exact_and_really_resumes(network, store, section, tmp_path, caplog, epoch):
    whole = network()
    expected = fit(whole, store, section=section(), seed=0, device=CPU)
    interrupted(network(), store, section(), tmp_path / "r", epoch)
    model, started = network(), []
    history = fit(
        model,
        store,
        section=section(),
        seed=0,
        device=CPU,
        checkpoint_dir=tmp_path / "r",
        hooks=EpochHook(started.append),
    )
    assert started == list(range(epoch, 4))
    assert history == expected
    assert_same(weights(model), weights(whole))
    assert not list((tmp_path / "r").rglob("*.pt"))


@pytest.mark.parametrize("scale", ["absmax", "lsq"])
def test_quantized_models_resume_exactly(network, store, section, tmp_path, scale):
    def quantized():
        model = network()
        widths = {"0": np.array([2, 4, 8, 2, 4, 32], np.uint8), "5": np.array([4, 8], np.uint8)}
        quantize_model(model, BitMap("per_channel", widths), scale=scale)
        return model

    whole, model = quantized(), quantized()
    expected = fit(whole, store, section=section(), seed=0, device=CPU)
    interrupted(quantized(), store, section(), tmp_path / "r", 3)
    assert fit(model, store, section=section(), seed=0, device=CPU, checkpoint_dir=tmp_path / "r") == expected
    assert_same(weights(model), weights(whole))


def remembering(teacher, step=0.5, temperature=2.0):
    """Every term that remembers something or has a teacher."""
    return {
        "terms": [
            LossTerm.of(group_dro, weight=1.0, options=group_dro.Options(step=step)),
            LossTerm.of(compression_drop, weight=1.0),
            LossTerm.of(distill, weight=0.5, options=distill.Options(temperature=temperature)),
        ],
        "teacher": teacher,
    }


@pytest.mark.parametrize("epoch", [2, 3])
def test_terms_remember_across_a_kill(network, store, section, tmp_path, epoch):
    whole, told = network(), remembering(network(1))
    expected = fit(whole, store, section=section(), seed=0, device=CPU, **told)
    interrupted(network(), store, section(), tmp_path / "r", epoch, **remembering(network(1)))
    model, again, started = network(), remembering(network(1)), []
    options = {"section": section(), "seed": 0, "device": CPU, "checkpoint_dir": tmp_path / "r"}
    assert fit(model, store, **options, hooks=EpochHook(started.append), **again) == expected
    assert started == list(range(epoch, 4))
    assert_same(weights(model), weights(whole))
    for one, two in zip(told["terms"], again["terms"], strict=True):
        assert_same(one.state, two.state)
    assert again["terms"][1].state["seen"].sum() > 50


@pytest.mark.parametrize("change", [{"teacher": 2}, {"step": 0.4}, {"temperature": 3.0}, {"state": 0.5}])
def test_other_terms_are_another_run(network, store, section, tmp_path, change):
    interrupted(network(), store, section(), tmp_path / "r", 3, **remembering(network(1)))
    settings = {name: value for name, value in change.items() if name in ("step", "temperature")}
    other, started = remembering(network(change.get("teacher", 1)), **settings), []
    if "state" in change:
        other["terms"][0].state["log_weights"] = torch.log(torch.tensor([0.9, 0.1]))
    options = {"section": section(), "seed": 0, "device": CPU, "checkpoint_dir": tmp_path / "r"}
    fit(network(), store, **options, hooks=EpochHook(started.append), **other)
    assert started == [1, 2, 3]


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"seed": 1}, {"terms": [LossTerm.of(gap, weight=1.0)]}, {"start": 1}])
def test_another_run_does_not_pick_the_checkpoint_up(network, store, section, tmp_path, change):
    interrupted(network(), store, section(), tmp_path / "r", 3)
    started = []
    fit(
        network(change.get("start", 0)),
        store,
        section=section(**{key: value for key, value in change.items() if key == "lr"}),
        seed=change.get("seed", 0),
        device=CPU,
        terms=change.get("terms", ()),
        checkpoint_dir=tmp_path / "r",
        hooks=EpochHook(started.append),
    )
    assert started == [1, 2, 3]
    assert len(list((tmp_path / "r").rglob("*.pt"))) == 1


def test_unreadable_checkpoint_starts_over_with_a_warning(network, store, section, tmp_path, caplog):
    interrupted(network(), store, section(), tmp_path / "r", 3)
    (file,) = (tmp_path / "r").rglob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    started = []
    with caplog.at_level(logging.WARNING):
        fit(
            network(),
            store,
            section=section(),
            seed=0,
            device=CPU,
            checkpoint_dir=tmp_path / "r",
            hooks=EpochHook(started.append),
        )
    assert started == [1, 2, 3]
    assert "unreadable checkpoint, training starts over" in caplog.text


def test_early_stop_survives_a_resume(network, store, section, tmp_path):
    def settings():
        return section(epochs=6, patience=1, lr=0.3)

    expected = fit(network(), store, section=settings(), seed=0, device=CPU)
    last = len(expected.rows)
    assert 1 < last < 6
    interrupted(network(), store, settings(), tmp_path / "r", last)
    assert fit(network(), store, section=settings(), seed=0, device=CPU, checkpoint_dir=tmp_path / "r") == expected


def test_key_depends_on_everything(network, monkeypatch):
    state = network().state_dict()
    base = checkpoint.key("fit", {"lr": 1}, "sum", state)
    assert base == checkpoint.key("fit", {"lr": 1}, "sum", network().state_dict())
    other = dict(state) | {"0.bias": state["0.bias"] + 1}
    keys = [
        checkpoint.key("other", {"lr": 1}, "sum", state),
        checkpoint.key("fit", {"lr": 2}, "sum", state),
        checkpoint.key("fit", {"lr": 1}, "mus", state),
        checkpoint.key("fit", {"lr": 1}, "sum", other),
    ]
    monkeypatch.setattr(checkpoint, "_code", lambda: b"other code")
    keys.append(checkpoint.key("fit", {"lr": 1}, "sum", state))
    assert len({base, *keys}) == 6
    assert all(len(key) == 16 for key in keys)


def test_root_follows_dvc(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert checkpoint.root() == tmp_path / ".fairquant" / "resume"
    monkeypatch.delenv("DVC_ROOT")
    assert checkpoint.root() == Path(".fairquant/resume")


def test_remove_leaves_other_runs(tmp_path):
    folder = tmp_path / ".fairquant" / "resume"
    for name in ("one", "two"):
        checkpoint.save(folder / name, {"x": torch.zeros(1)})
    checkpoint.remove(folder / "one")
    assert (folder / "two" / "last.pt").exists()
    checkpoint.remove(folder / "two")
    assert not (tmp_path / ".fairquant").exists()


def test_no_checkpoint_after_the_last_epoch(network, store, section, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop.checkpoint, "save", lambda folder, state: saved.append(len(state["rows"])))
    fit(network(), store, section=section(), seed=0, device=CPU, checkpoint_dir=tmp_path / "r")
    assert saved == [1, 2]
