"""Two processes, one of them killed with -9: started again, both end bit for bit where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fairquant.config.schema import TrainSection
from fairquant.data.store import Store
from fairquant.parallel.collectives import rank
from fairquant.train.hooks import Hooks
from fairquant.train.loop import fit
from fairquant.train.losses import group_dro
from fairquant.train.terms import LossTerm
from tests.conftest import write_store
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")


class Epochs(Hooks):
    """Notes the epochs, and kills the second process in the middle of one of them."""

    def __init__(self, fatal_step: int | None) -> None:
        self.started: list[int] = []
        self.fatal_step = fatal_step

    def epoch_start(self, epoch: int) -> None:
        self.started.append(epoch)

    def after_step(self, step: int) -> None:
        if step == self.fatal_step and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(prepared: str, folder: str, fatal_step: int | None = None) -> dict[str, Any]:
    """Four epochs of three steps, with dropout, and checkpoints in a folder of the first process's own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 2)
    )
    hooks, term = Epochs(fatal_step), LossTerm.of(group_dro, weight=1.0)
    history = fit(
        model,
        Store.open(prepared),
        section=TrainSection(epochs=4, batch_size=32, lr=0.01, augment="light"),
        seed=5,
        device=torch.device("cpu"),
        terms=[term],
        checkpoint_dir=Path(folder) / str(rank()),
        hooks=hooks,
    )
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    return {"history": history, "state": state, "started": hooks.started, "term": term.state["log_weights"].tolist()}


def again(prepared: str, folder: str) -> dict[str, Any]:
    """Go on where the killed run was; then run undisturbed."""
    return {"resumed": train(prepared, folder), "whole": train(prepared, folder + " whole")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[dict[str, Any]], list[Path]]:
    """What lay on the disk after the kill, what both processes came to, and what lay there then."""
    root = tmp_path_factory.mktemp("killed")
    prepared, folder = root / "prepared", root / "resume"
    write_store(prepared, n_per_group=80, size=8)
    with pytest.raises(RuntimeError):  # from the pool, or from the first process, which loses the second: who is first
        in_processes(train, str(prepared), str(folder), 8)  # in the middle of epoch 3
    after = sorted(folder.rglob("*.pt"))
    found = in_processes(again, str(prepared), str(folder))
    return after, found, sorted(folder.rglob("*.pt"))


def test_the_first_process_alone_writes(killed):
    after, _, end = killed
    assert [(path.parent.parent.name, path.name) for path in after] == [("0", "last.pt")]
    assert end == []


def test_both_processes_go_on_bit_for_bit(killed):
    for one in killed[1]:
        assert one["resumed"]["started"] == [3, 4] and one["whole"]["started"] == [1, 2, 3, 4]
        assert one["resumed"]["history"] == one["whole"]["history"]
        assert one["resumed"]["term"] == one["whole"]["term"]
        for name, value in one["whole"]["state"].items():
            assert (one["resumed"]["state"][name] == value).all(), name


def test_processes_end_alike(killed):
    first, second = (one["whole"] for one in killed[1])
    assert first["history"] == second["history"]
    for name, value in first["state"].items():
        assert (second["state"][name] == value).all(), name
