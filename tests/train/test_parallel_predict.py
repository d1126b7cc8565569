"""Predictions of two and of three processes: bit for bit those of one, every sample once, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.data.store import Store
from fairquant.predictions import Predictions, SplitPredictions
from fairquant.train.predict import predict, predict_splits
from tests.conftest import write_store
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")

CPU = torch.device("cpu")
SIZES = (1, 5, 7, 16, 1000)
"""Samples per batch: 16 samples make 16 batches, 4 with a last one of 1, 3, 1 full one, 1 part-filled one."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(54, 2)
    )


def everything(folder: str) -> dict[str, Any]:
    """What a process predicts: (batch size, precision) → val and test; a split without samples; the model's mode."""
    store, model = Store.open(folder), network()
    found: dict[str, Any] = {
        "splits": {
            (size, precision): predict_splits(
                model, store, ("val", "test"), batch_size=size, device=CPU, precision=precision
            )
            for size in SIZES
            for precision in ("fp32", "bf16")
        },
        "absent": predict(model, store, "absent", batch_size=4, device=CPU),
        "training": model.training,
    }
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "prepared"
    write_store(path, n_per_group=40, size=8)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have
    yield everything(str(folder))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def together(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return in_processes(everything, str(folder), count=request.param)


def bits(part: SplitPredictions) -> tuple[Any, ...]:
    return tuple((array.dtype, array.shape, array.tobytes()) for array in vars(part).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_every_process_has_the_bits_of_one(alone, together, size, precision):
    expected = alone["splits"][size, precision]
    assert len(expected["val"].labels) == len(expected["test"].labels) == 16
    for seen in together:
        found: Predictions = seen["splits"][size, precision]
        assert (found.classes, found.groups, set(found.splits)) == (expected.classes, expected.groups, {"val", "test"})
        assert all(bits(found[split]) == bits(expected[split]) for split in ("val", "test"))


def test_logits_stand_beside_their_samples(folder, together):
    """Sample by sample, in float64, from the definition."""
    store, model = Store.open(folder), network().double().eval()
    for seen in together:
        part = seen["splits"][5, "fp32"]["test"]
        np.testing.assert_array_equal(part.indices, store.indices("test"))
        for row, logits in zip(part.indices, part.logits, strict=True):
            image = (store.images[row] / 255.0 - store.meta["mean"]) / store.meta["std"]
            with torch.no_grad():
                wanted = model(torch.tensor(image.transpose(2, 0, 1))[None])[0].numpy()
            np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_an_empty_split_has_no_rows(together):
    for seen in together:
        assert (seen["absent"].logits.shape, seen["absent"].logits.dtype) == ((0, 2), np.float32)


def test_the_mode_is_left_alone(together):
    assert {seen["training"] for seen in together} == {True}
