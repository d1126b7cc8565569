"""Maps measured by two and by three processes against those of one: equal up to the order of float32 sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairquant import plugins
from fairquant.data.store import Store
from fairquant.errors import UserError
from fairquant.importance.dealing import deal
from fairquant.importance.maps import ImportanceMaps
from fairquant.importance.measure import measure_importance
from tests.conftest import write_store
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")

METRICS = plugins.names("importance")
CASES = tuple(product(METRICS, ("group", "class"), ("sample", "none")))
GROUPS = ("light", "medium", "dark × old")
Seen = dict[str, Any]


def uneven(folder: str) -> Store:
    """Training groups of 44, 9 and 1 samples: seven batches, two and one; the largest leaves a short one."""
    store = Store.open(folder)
    groups, train = store.groups.copy(), store.indices("train")
    groups[train] = 0
    groups[train[[3, 11, 12, 17, 25, 26, 31, 40, 52]]] = 1
    groups[train[20]] = 2
    return replace(store, groups=groups)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 2),
    )  # fmt: skip


class NanForOne(nn.Module):
    """Turns to NaN for the one sample of the third group, which is all white."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = images.flatten(1).std(1).min() < 0.2
        logits: torch.Tensor = self.inner(images)
        return logits * torch.where(white, float("nan"), 1.0)


class Mixing(nn.Module):
    """Samples of a batch see each other, which fisher refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images)
        return logits - logits.mean(0)


def measure(model: nn.Module, store: Store, **change: Any) -> ImportanceMaps:
    settings = {"metric": "grape", "batch_size": 7, "device": torch.device("cpu"), "seed": 4, "progress": False}
    return measure_importance(model, store, **(settings | change))


def refusal(model: nn.Module, store: Store, **change: Any) -> str:
    with pytest.raises(UserError) as error:
        measure(model, store, **change)
    return str(error.value)


def everything(folder: str) -> Seen:
    """What a process measures, one after the other."""
    store = uneven(folder)
    found: Seen = {case: measure(network(), store, metric=case[0], by=case[1], normalize=case[2]) for case in CASES}
    images = np.array(store.images)
    images[store.groups == 2] = 255
    found["nan"] = refusal(NanForOne(), replace(store, images=images))
    single = replace(store, groups=np.zeros_like(store.groups), group_names=("all",))
    found["mixing"] = refusal(Mixing(), single, metric="fisher", samples_per_group=5)
    model = network()
    found["few"] = measure(model, single, samples_per_group=1)
    found["left"] = (model.training, all(value.requires_grad for value in model.parameters()))
    found["dealt"] = deal([7, 2, 1, 0, 5])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "prepared"
    write_store(path, n_per_group=30, groups=GROUPS, classes=("a", "b"), size=16, seed=1)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Seen]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    yield everything(str(folder))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def together(request: pytest.FixtureRequest, folder: Path) -> list[Seen]:
    return in_processes(everything, str(folder), count=request.param)


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest value of its layer over all groups."""
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max()) for name in one)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_maps_are_those_of_one_process(alone, together, case):
    for seen in together:
        maps = seen[case]
        assert (maps.groups, maps.counts, maps.meta) == (alone[case].groups, alone[case].counts, alone[case].meta)
        assert list(maps.layers) == list(alone[case].layers)
        assert distance(alone[case].layers, maps.layers) <= 1e-6


def test_groups_are_uneven(alone):
    assert alone[("grape", "group", "sample")].counts == (44, 9, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_processes_hold_the_same_bits(together, case):
    for seen in together[1:]:
        assert all(np.array_equal(seen[case].layers[name], value) for name, value in together[0][case].layers.items())


def test_what_one_process_finds_all_report(alone, together):
    assert "group 'dark × old': got NaN or infinite values" in alone["nan"]
    assert "samples that see each other" in alone["mixing"]
    for seen in together:
        assert (seen["nan"], seen["mixing"]) == (alone["nan"], alone["mixing"])


def test_more_processes_than_batches(alone, together):
    for seen in together:
        assert all(np.array_equal(seen["few"].layers[name], value) for name, value in alone["few"].layers.items())


def test_the_model_is_left_as_it_was(together):
    assert {seen["left"] for seen in together} == {(True, True)}


def test_batches_are_dealt_without_loss_and_evenly(together):
    for group, count in enumerate((7, 2, 1, 0, 5)):
        assert sorted(number for seen in together for number in seen["dealt"][group]) == list(range(count))
    shares = [sum(len(numbers) for numbers in seen["dealt"]) for seen in together]
    assert max(shares) - min(shares) <= 1


def test_one_process_has_every_batch():
    assert deal([3, 0, 2]) == [range(3), range(0), range(2)]
