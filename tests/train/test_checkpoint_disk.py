"""A disk that refuses checkpoints costs the point to resume from, not the training."""

from __future__ import annotations

import logging
import resource

import pytest
import torch
from torch import nn

from fairquant.config.schema import TrainSection
from fairquant.train import checkpoint
from fairquant.train.loop import fit


@pytest.fixture
def no_room():
    """Let no file grow beyond 1000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def store(make_store, tmp_path):
    return make_store(tmp_path / "data")


def trained(store, directory) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    section = TrainSection(epochs=3, batch_size=16, augment="off")
    fit(model, store, section=section, seed=0, device=torch.device("cpu"), checkpoint_dir=directory, progress=False)
    return model.state_dict()


def test_training_goes_on_with_one_warning(store, tmp_path, caplog, request):
    calm = trained(store, None)
    checkpoint._warn_once.cache_clear()
    request.getfixturevalue("no_room")
    with caplog.at_level(logging.WARNING):
        disturbed = trained(store, tmp_path / "resume")
    assert all(torch.equal(calm[name], disturbed[name]) for name in calm)
    (warning,) = caplog.messages
    assert warning.endswith("/last.pt: File too large; training goes on, a killed run would repeat these epochs")
    assert not list(tmp_path.rglob("*.partial"))


def test_an_earlier_checkpoint_stays(tmp_path, request):
    checkpoint.save(tmp_path / "run", {"epoch": 1})
    request.getfixturevalue("no_room")
    checkpoint.save(tmp_path / "run", {"epoch": 2, "weights": torch.zeros(10_000)})
    assert checkpoint.load(tmp_path / "run") == {"epoch": 1}


def test_every_changed_byte_means_starting_over(tmp_path, caplog):
    state = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "rows": [{"epoch": 1}], "best_epoch": 1}
    checkpoint.save(tmp_path, state)
    path = tmp_path / checkpoint.FILE
    data = path.read_bytes()
    assert str(checkpoint.load(tmp_path)) == str(state)
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert checkpoint.load(tmp_path) is None
    for length in (0, 10, 100, len(data) - 1):
        path.write_bytes(data[:length])
        assert checkpoint.load(tmp_path) is None
    assert caplog.messages[0] == (
        f"{path}: unreadable checkpoint, training starts over (got other content than its checksum says)"
    )
