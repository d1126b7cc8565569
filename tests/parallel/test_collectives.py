"""Collectives of one and of three processes against numpy and a graph that holds all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairquant.parallel import collectives
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")
COUNT = 3


def everything() -> dict[str, Any]:
    """What one process sees of each collective."""
    me = collectives.rank()
    whole = torch.arange(7.0)
    sums = [torch.full((2, 3), float(me + 1)), whole.clone()]
    collectives.add_up(sums)
    parts = collectives.slices(7)
    weight = torch.tensor(2.0, requires_grad=True)
    mine = whole[parts[me]] * weight
    rows = collectives.gather_rows(mine, [part.stop - part.start for part in parts])
    # The same loss on every process, through the rows and directly; gradients are then averaged, as DDP does.
    ((rows.sum() ** 2) + 3 * weight).backward()
    assert weight.grad is not None
    gradient = weight.grad.clone()
    collectives.add_up([gradient])
    highest = collectives.largest(torch.tensor([float(me), -float(me), torch.nan if me == 1 else 5.0, -torch.inf]))
    copied = [torch.full((2,), float(me)), torch.tensor(me == 0), torch.full((3, 2), me, dtype=torch.uint8).T]
    collectives.copy_from_first(copied)
    empty = collectives.gather_rows(torch.ones(me, 2), [0, 1, 2])
    collectives.wait_for_all()
    return {
        "rank": me,
        "size": collectives.world_size(),
        "first": collectives.is_first(),
        "share": list(collectives.share(8)),
        "slices": parts,
        "sums": [tensor.numpy() for tensor in sums],
        "largest": highest.numpy(),
        "copied": [tensor.numpy() for tensor in copied],
        "rows": rows.detach().numpy(),
        "gradient": gradient.item() / COUNT,
        "empty": tuple(empty.shape),
        "objects": collectives.gather_objects({"rank": me}),
        "from_first": collectives.from_first(f"said by {me}"),
    }


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    return in_processes(everything, count=COUNT)


def test_processes_know_who_they_are(seen):
    assert [(one["rank"], one["size"], one["first"]) for one in seen] == [(0, 3, True), (1, 3, False), (2, 3, False)]


def test_work_is_shared_without_loss_or_double(seen):
    assert sorted(number for one in seen for number in one["share"]) == list(range(8))
    rows = np.arange(7)
    for one in seen:
        np.testing.assert_array_equal(np.concatenate([rows[part] for part in one["slices"]]), rows)


def test_sums_are_everywhere_the_same(seen):
    for one in seen:
        np.testing.assert_array_equal(one["sums"][0], np.full((2, 3), 6.0))
        np.testing.assert_array_equal(one["sums"][1], 3 * np.arange(7.0))


def test_largest_values_are_everywhere_the_same(seen):
    for one in seen:
        np.testing.assert_array_equal(one["largest"], [2.0, 0.0, np.nan, -np.inf])


def test_the_first_process_is_copied(seen):
    for one in seen:
        numbers, truth, transposed = one["copied"]
        assert numbers.tolist() == [0.0, 0.0] and truth.item() is True and not transposed.any()


def test_rows_come_in_the_order_of_processes(seen):
    for one in seen:
        np.testing.assert_array_equal(one["rows"], 2 * np.arange(7.0))
        assert one["empty"] == (3, 2)


def test_averaged_gradients_are_those_of_one_process(seen):
    weight = torch.tensor(2.0, requires_grad=True)
    (((torch.arange(7.0) * weight).sum() ** 2) + 3 * weight).backward()
    assert weight.grad is not None
    assert {one["gradient"] for one in seen} == {weight.grad.item()}


def test_objects_travel(seen):
    for one in seen:
        assert one["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert one["from_first"] == "said by 0"


def test_one_process_changes_nothing():
    tensor = torch.ones(3, requires_grad=True)
    assert collectives.gather_rows(tensor, [3]) is tensor
    collectives.add_up([tensor])
    collectives.copy_from_first([tensor])
    assert collectives.largest(tensor) is tensor
    assert (collectives.rank(), collectives.world_size(), collectives.is_first()) == (0, 1, True)
    assert collectives.gather_objects(1) == [1]
    assert collectives.from_first("a") == "a"
    collectives.wait_for_all()
