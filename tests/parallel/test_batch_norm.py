"""Batch norm over processes against torch's own, given all rows in one process."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairquant.parallel import batch_norm, collectives
from fairquant.parallel.batch_norm import global_batch_norm
from tests.parallel.spawn import in_processes

COUNT = 2
SHAPES = {"rows": (7, 4), "sequence": (5, 3, 6), "images": (8, 3, 5, 4), "fewer rows than processes": (1, 3, 4, 4)}
PLAIN: dict[str, Any] = {"affine": True, "tracked": True, "dtype": torch.float64, "momentum": 0.1, "offset": 0.0}
CASES: dict[str, dict[str, Any]] = {
    **{name: PLAIN | {"shape": shape} for name, shape in SHAPES.items()},
    "channels last": PLAIN | {"shape": (6, 4, 5, 5), "dtype": torch.float32, "last": True},
    "without weights": PLAIN | {"shape": (6, 4), "affine": False},
    "untracked": PLAIN | {"shape": (6, 4), "tracked": False},
    "momentum 1": PLAIN | {"shape": (6, 4), "momentum": 1.0},
    "float32": PLAIN | {"shape": (9, 3, 4, 4), "dtype": torch.float32},
    "far from zero": PLAIN | {"shape": (9, 3, 4, 4), "dtype": torch.float32, "offset": 3000.0},
    "bfloat16": PLAIN | {"shape": (9, 3, 4, 4), "dtype": torch.bfloat16},
}


def ingredients(case: dict[str, Any]) -> dict[str, Tensor]:
    """The whole batch and everything that goes with it, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    shape = case["shape"]
    rows = torch.randn(shape, generator=generator, dtype=torch.float64) + case["offset"]
    kind = case["dtype"]
    wide = torch.promote_types(kind, torch.float32)
    return {
        "rows": rows.to(kind),
        "weight": torch.rand(shape[1], generator=generator, dtype=torch.float64).to(wide) + 0.5,
        "bias": torch.randn(shape[1], generator=generator, dtype=torch.float64).to(wide),
        "mean": torch.randn(shape[1], generator=generator, dtype=torch.float64).to(wide),
        "var": torch.rand(shape[1], generator=generator, dtype=torch.float64).to(wide) + 0.5,
        "slope": torch.randn(shape, generator=generator, dtype=torch.float64).to(wide),
    }


def results(case: dict[str, Any]) -> dict[str, Any]:
    """Output, gradients and running statistics at this process's rows; with one process: at all."""
    given = ingredients(case)
    parts = collectives.slices(len(given["rows"]))
    counts = [part.stop - part.start for part in parts]
    rows = given["rows"][parts[collectives.rank()]]
    if case.get("last"):
        rows = rows.to(memory_format=torch.channels_last)
    rows.requires_grad_()
    weight, bias = given["weight"].requires_grad_(), given["bias"].requires_grad_()
    weights = (weight, bias) if case["affine"] else (None, None)
    running = (given["mean"], given["var"]) if case["tracked"] else (None, None)
    with global_batch_norm():
        output = F.batch_norm(rows, *running, *weights, training=True, momentum=case["momentum"])
    everything = collectives.gather_rows(output.to(given["slope"].dtype), counts)
    (everything.pow(3) * given["slope"]).sum().backward()
    averaged = [tensor.grad for tensor in weights if tensor is not None and tensor.grad is not None]
    collectives.add_up(averaged)
    assert rows.grad is not None
    return {
        "output": output.detach().double().numpy(),
        "to rows": rows.grad.double().numpy() / COUNT ** (collectives.world_size() > 1),
        "to weights": [(gradient / collectives.world_size()).numpy() for gradient in averaged],
        "running": [tensor.numpy() for tensor in running if tensor is not None],
        "dtype": str(output.dtype),
        "last": len(rows) == 0 or output.is_contiguous(memory_format=torch.channels_last),
    }


class Net(nn.Module):
    """Batch norm after convolutions and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5, momentum=0.3))
        self.third = nn.Sequential(nn.Linear(5 * 9, 6), nn.ReLU(), nn.Linear(6, 2))
        self.inner = nn.BatchNorm1d(5, momentum=None)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.third(self.inner(self.second(self.first(images)).flatten(2)).flatten(1))
        return logits


def net_results(rows: int, precision: torch.dtype) -> dict[str, np.ndarray[Any, Any]]:
    """Averaged gradients, and statistics, of a net after two steps whose loss looks at all rows together."""
    torch.manual_seed(1)
    net = Net().double() if precision is torch.float64 else Net()
    kind = torch.float64 if precision is torch.float64 else torch.float32
    images, slope = torch.randn(rows, 3, 8, 8, dtype=kind), torch.randn(rows, 2, dtype=kind)
    parts = collectives.slices(rows)
    autocast = torch.autocast("cpu", dtype=precision) if precision is torch.bfloat16 else nullcontext()
    for _ in range(2):
        with global_batch_norm(), autocast:
            logits = net(images[parts[collectives.rank()]])
        logits = collectives.gather_rows(logits.to(kind), [part.stop - part.start for part in parts])
        ((logits * slope).sum().pow(2) + logits.logsumexp(dim=0).sum()).backward()
    gradients = {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}
    collectives.add_up(list(gradients.values()))
    averaged = {name: (gradient / collectives.world_size()).numpy() for name, gradient in gradients.items()}
    return averaged | {name: buffer.numpy() for name, buffer in net.named_buffers()}


NETS = {"float64": (7, torch.float64, 1e-12), "float32": (7, torch.float32, 1e-5), "few": (1, torch.float64, 1e-12)}


def one_value() -> str:
    """What is said where all processes together have one value per channel."""
    rows = torch.ones(int(collectives.rank() == 1), 3)
    with global_batch_norm(), pytest.raises(ValueError, match="Expected more than 1 value per channel") as refused:
        F.batch_norm(rows, None, None, training=True)
    return str(refused.value)


def evaluation() -> list[float]:
    """Outside training no other process is asked: here only one calls."""
    if collectives.rank():
        return []
    with global_batch_norm():
        rows = F.batch_norm(torch.tensor([[3.0], [5.0]]), torch.tensor([1.0]), torch.tensor([4.0]), eps=0.0)
    return [float(value) for value in rows.flatten()]


def everything() -> dict[str, Any]:
    """All that the tests look at, of one process."""
    found = {name: results(case) for name, case in CASES.items()}
    nets = {name: net_results(rows, precision) for name, (rows, precision, _) in NETS.items()}
    bf16 = net_results(8, torch.bfloat16)
    return {"cases": found, "nets": nets, "bf16": bf16, "one value": one_value(), "evaluation": evaluation()}


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    return in_processes(everything, count=COUNT)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}

pytestmark = pytest.mark.xdist_group("parallel")


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_of_rows_are_those_of_the_whole_batch(seen, name):
    case, expected = CASES[name], results(CASES[name])
    near = {"rtol": 0, "atol": TOLERANCE[case["dtype"]] * (1000 if case["offset"] else 1)}
    for key in ("output", "to rows"):
        joined = np.concatenate([one["cases"][name][key] for one in seen])
        scale = np.abs(expected[key]).max()
        np.testing.assert_allclose(joined / scale, expected[key] / scale, **near)
    assert {one["cases"][name]["dtype"] for one in seen} == {str(case["dtype"])}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_weights_average_to_those_of_the_whole_batch(seen, name):
    case, expected = CASES[name], results(CASES[name])
    assert len(expected["to weights"]) == 2 * case["affine"]
    for one in seen:
        for got, wanted in zip(one["cases"][name]["to weights"], expected["to weights"], strict=True):
            tolerance = TOLERANCE[case["dtype"]] * (1000 if case["offset"] else 1)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", CASES)
def test_running_statistics_follow_the_whole_batch_everywhere(seen, name):
    case, expected = CASES[name], results(CASES[name])
    assert len(expected["running"]) == 2 * case["tracked"]
    for one in seen:
        for got, first, wanted in zip(
            one["cases"][name]["running"], seen[0]["cases"][name]["running"], expected["running"], strict=True
        ):
            np.testing.assert_array_equal(got, first)
            np.testing.assert_allclose(got, wanted, rtol=TOLERANCE[case["dtype"]])


def test_statistics_by_hand(seen):
    """numpy's mean and unbiased variance of all rows, a tenth of each."""
    rows = ingredients(CASES["rows"])["rows"].numpy()
    given = ingredients(CASES["rows"])
    mean, var = seen[0]["cases"]["rows"]["running"]
    np.testing.assert_allclose(mean, 0.9 * given["mean"].numpy() + 0.1 * rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(var, 0.9 * given["var"].numpy() + 0.1 * rows.var(axis=0, ddof=1), rtol=1e-14)


def test_values_far_from_zero_lose_nothing(seen):
    """Sums of squares in float32 would have no correct digit of a variance of 1 at 3000."""
    case = CASES["far from zero"]
    rows = ingredients(case)["rows"].double().numpy()
    given = ingredients(case)["var"].double().numpy()
    truth = 0.9 * given + 0.1 * rows.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(seen[0]["cases"]["far from zero"]["running"][1], truth, rtol=1e-6)


def test_channels_stay_last(seen):
    assert all(one["cases"]["channels last"]["last"] for one in seen)


@pytest.mark.parametrize("name", NETS)
def test_a_net_gets_the_gradients_of_one_process(seen, name):
    rows, precision, tolerance = NETS[name]
    expected = net_results(rows, precision)
    for one in seen:
        assert one["nets"][name].keys() == expected.keys()
        for key, wanted in expected.items():
            got = one["nets"][name][key]
            np.testing.assert_allclose(
                got, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1.0), err_msg=key
            )


def test_a_net_under_autocast_is_as_near_the_truth_as_one_process(seen):
    """Rounding to bfloat16 lies where it lies with one process: twice its distance from float32 is not reached."""
    truth, alone = net_results(8, torch.float32), net_results(8, torch.bfloat16)

    def distance(found: dict[str, Any]) -> float:
        return float(np.sqrt(sum(np.square(found[key] - wanted).sum() for key, wanted in truth.items())))

    assert 0 < distance(seen[0]["bf16"]) < 2 * distance(alone)


def test_one_value_per_channel_is_refused_everywhere(seen):
    assert {one["one value"] for one in seen} == {
        "Expected more than 1 value per channel when training, got 3 in all processes"
    }


def test_evaluation_asks_nobody(seen):
    assert seen[0]["evaluation"] == [1.0, 2.0]


def test_whoever_calls_it(monkeypatch):
    """timm's fused layers and folded layers in training call F.batch_norm themselves; all calls are caught."""
    from timm.layers import BatchNormAct2d

    seen = []

    def caught(input: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(input.shape)
        return input

    monkeypatch.setattr(batch_norm, "batch_norm", caught)
    rows = torch.ones(2, 3, 4, 4)
    with batch_norm._GlobalBatchNorm():
        BatchNormAct2d(3)(rows)
        nn.BatchNorm2d(3)(rows)
        F.batch_norm(rows, None, None, training=True)
    assert seen == [rows.shape] * 3


def test_one_process_is_left_alone():
    assert isinstance(global_batch_norm(), nullcontext)
