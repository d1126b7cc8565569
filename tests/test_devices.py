import random

import numpy as np
import pytest
import torch

from fairquant.devices import autocast, resolve_device, seed_everything
from fairquant.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def restored():
    """Put back what seed_everything sets for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.benchmark = benchmark


def fake(monkeypatch, *, cuda, mps):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "wanted"),
    [
        (False, False, "auto", "cpu"),
        (True, False, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (True, True, "auto", "cuda"),
        (True, True, "cpu", "cpu"),
        (True, False, "cuda", "cuda"),
    ],
)
def test_resolves_the_fastest_device_present(monkeypatch, cuda, mps, name, wanted):
    fake(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device(name) == torch.device(wanted)


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_absent_device_is_one_line(monkeypatch, name):
    fake(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UserError) as error:
        resolve_device(name)
    assert str(error.value) == f"device: got {name!r}, not on this machine; allowed: auto | cpu"


def test_autocast_chooses_the_type_of_a_product():
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (a @ b).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ b).dtype == torch.float32


def test_unknown_precision_is_one_line():
    with pytest.raises(UserError, match=r"^precision: got 'fp16'; allowed: fp32 \| bf16$"):
        autocast(CPU, "fp16")


def test_same_seed_same_numbers(restored):
    def draw(seed):
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(3) == draw(3)
    assert len({value for seed in (3, 4) for value in draw(seed)}) == 6
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
