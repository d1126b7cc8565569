"""What training in several processes asks for before it starts and when it ends; the rest: ``test_parallel_*``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.config.parallel import ParallelSection
from fairquant.errors import DataError, UserError
from fairquant.train import processes
from fairquant.train.processes import ALONE, epoch_seeds, last_is_left_out, parallel_key

LOCAL = ParallelSection(batch_norm="local")


@pytest.fixture
def of_three(monkeypatch):
    """Be the second of three processes that never answer."""
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    monkeypatch.setattr(processes, "rank", lambda: 1)


@pytest.mark.parametrize(("samples", "left_out"), [(64, False), (65, True), (66, False), (2, False), (31, False)])
@pytest.mark.parametrize("parallel", [ALONE, LOCAL])
def test_one_process_leaves_a_single_sample_out(samples, left_out, parallel):
    assert last_is_left_out(samples, 32, parallel) is left_out


def test_local_batch_norm_needs_two_samples_in_every_process(of_three):
    found = {samples: last_is_left_out(samples, 32, LOCAL) for samples in (6, 32, 64, 65, 69, 70)}
    assert found == {6: False, 32: False, 64: False, 65: True, 69: True, 70: False}
    assert [last_is_left_out(samples, 32, ALONE) for samples in (65, 66)] == [True, False]
    assert last_is_left_out(35, 3, ALONE) is False


def test_what_is_too_small_is_named(of_three):
    with pytest.raises(DataError, match="^training: got 5 train samples; allowed: at least 6$"):
        last_is_left_out(5, 32, LOCAL)
    text = (
        "^batch_size: got 4 for 3 processes; allowed: at least 6, two samples for each, or parallel.batch_norm: global$"
    )
    with pytest.raises(UserError, match=text):
        last_is_left_out(64, 4, LOCAL)
    with pytest.raises(
        UserError, match="^batch_size: got 2 for 3 processes; allowed: at least 3, one sample for each$"
    ):
        last_is_left_out(64, 2, ALONE)
    with pytest.raises(DataError, match="^training: got 2 train samples; allowed: at least 3$"):
        last_is_left_out(2, 32, ALONE)


def test_processes_share_the_order_and_not_the_dropout(monkeypatch):
    own, shuffle = np.random.SeedSequence([7, 2]).generate_state(2).tolist()
    assert epoch_seeds(7, 2) == (own, shuffle)
    seeds = {own}
    for member in (1, 2, 3):
        monkeypatch.setattr(processes, "rank", lambda member=member: member)
        other, same = epoch_seeds(7, 2)
        assert same == shuffle
        seeds.add(other)
    assert len(seeds) == 4


def test_a_run_may_go_on_in_more_processes_where_batch_norm_is_global(monkeypatch):
    keys = []
    for count in (1, 2):
        monkeypatch.setattr(processes, "world_size", lambda count=count: count)
        keys.append([parallel_key(section) for section in (ALONE, LOCAL, ParallelSection(strategy="ddp_bf16"))])
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1] and keys[0][2] == keys[1][2]
    assert keys[0][0] != keys[0][2]


def test_other_weights_at_the_end_are_named(of_three, monkeypatch):
    monkeypatch.setattr(processes, "gather_objects", lambda mine: [mine, mine, "another"])
    text = (
        "^parallel: got other weights in process 3 of 3 than in the first; allowed: machines and GPUs of one kind, "
        "which compute alike$"
    )
    with pytest.raises(UserError, match=text):
        processes.require_same_end({"weight": torch.zeros(2)})
    monkeypatch.setattr(processes, "gather_objects", lambda mine: [mine] * 3)
    processes.require_same_end({"weight": torch.zeros(2)})
