"""Averaged gradients of two processes against numpy: many buckets, idle and frozen parameters, any memory layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairquant.parallel import gradients
from fairquant.parallel.collectives import rank
from fairquant.parallel.gradients import GradientAverage
from tests.parallel.spawn import in_processes

pytestmark = pytest.mark.xdist_group("parallel")


class Body(nn.Module):
    """Parameters of several shapes, layouts and types; the loss is linear in them, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(2))
        self.image = nn.Parameter(torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        self.matrix = nn.Parameter(torch.zeros(5, 7))
        self.wide = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.scalar = nn.Parameter(torch.zeros(()))
        self.never = nn.Parameter(torch.zeros(2), requires_grad=False)

    def loss(self) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, factor in factors(rank()).items():
            total = total + (getattr(self, name) * torch.from_numpy(factor)).sum().double()
        return total


def factors(member: int) -> dict[str, Any]:
    """What process ``member`` multiplies each parameter with: its gradient."""
    random = np.random.default_rng(member)
    shapes = {"image": (4, 3, 2, 2), "matrix": (5, 7), "scalar": ()}
    found = {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()}
    return found | {"wide": random.normal(size=3)}


def steps(strategy: Any, bucket: int) -> list[dict[str, Any]]:
    """Two steps, the second with ``matrix`` frozen."""
    gradients.BUCKET = bucket
    body = Body()
    average = GradientAverage(body.parameters(), strategy=strategy)
    sent: list[int] = []
    body.image.register_hook(lambda _: sent.append(len(average._journeys)))
    found = []
    for _ in range(2):
        body.zero_grad()
        body.loss().backward()
        average.finish()
        held = {name: None if p.grad is None else p.grad.numpy() for name, p in body.named_parameters()}
        layouts = {name: p.grad is None or p.grad.stride() == p.stride() for name, p in body.named_parameters()}
        found.append({"gradients": held, "layouts": layouts, "buckets": len(average.buckets)})
        body.matrix.requires_grad_(False)
    average.close()
    body.zero_grad()
    body.loss().backward()
    return [*found, {"sent": sent, "closed": body.scalar.grad.item() if body.scalar.grad is not None else None}]


def without_rows() -> dict[str, Any]:
    """A step of both processes, then one in which the second has a gradient for ``image`` alone."""
    gradients.BUCKET = 64
    body = Body()
    average = GradientAverage(body.parameters())
    body.loss().backward()
    average.finish()
    body.zero_grad()
    idle = rank() == 1
    (0 * body.image.sum() if idle else body.loss()).backward()
    average.finish(idle=idle)
    average.close()
    return {name: None if p.grad is None else p.grad.numpy() for name, p in body.named_parameters()}


def everything() -> dict[Any, Any]:
    found: dict[Any, Any] = {"without rows": without_rows()}
    for strategy in ("ddp", "ddp_bf16"):
        found |= {(strategy, size): steps(strategy, size) for size in (1, 64, 2**20)}
    return found


@pytest.fixture(scope="module")
def seen() -> list[dict[Any, Any]]:
    return in_processes(everything)


def mean(name: str) -> Any:
    return (factors(0)[name] + factors(1)[name]) / 2


@pytest.mark.parametrize("size", [1, 64, 2**20])
def test_gradients_are_averages_in_the_layout_of_their_parameters(seen, size):
    for one in seen:
        first, second, _ = one["ddp", size]
        for step, absent in ((first, {"idle", "never"}), (second, {"idle", "never", "matrix"})):
            assert {name for name, value in step["gradients"].items() if value is None} == absent
            for name in step["gradients"].keys() - absent:
                np.testing.assert_allclose(step["gradients"][name], mean(name), rtol=1e-6)
            assert all(step["layouts"].values())


def test_small_buckets_leave_before_the_last_gradient_is_there(seen):
    for one in seen:
        assert [one["ddp", size][0]["buckets"] for size in (1, 64, 2**20)] == [5, 5, 3]  # float64 lies in between
        assert [one["ddp", size][2]["sent"][:2] for size in (1, 64, 2**20)] == [[3, 3], [3, 3], [2, 2]]


@pytest.mark.parametrize("size", [1, 64, 2**20])
def test_bfloat16_rounds_what_is_sent(seen, size):
    for one in seen:
        got = one["ddp_bf16", size][0]["gradients"]["matrix"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, mean("matrix"), atol=0.02)
        assert np.abs(got - mean("matrix")).max() > 1e-5
        np.testing.assert_array_equal(got, torch.from_numpy(got).bfloat16().float().numpy())


def test_both_processes_hold_the_same_bits(seen):
    for key, found in seen[0].items():
        if key == "without rows":
            continue
        for step, other in zip(found[:2], seen[1][key][:2], strict=True):
            for name, value in step["gradients"].items():
                np.testing.assert_array_equal(value, other["gradients"][name])


def test_absent_gradients_of_a_process_without_rows_are_zero(seen):
    for one in seen:
        found = one["without rows"]
        assert found["idle"] is None and found["never"] is None
        for name, value in factors(0).items():
            np.testing.assert_allclose(found[name], value / 2, rtol=1e-6)


def test_closed_it_leaves_gradients_alone(seen):
    for member, one in enumerate(seen):
        assert one["ddp", 64][2]["closed"] == pytest.approx(float(factors(member)["scalar"]), rel=1e-6)


def test_one_process_is_left_alone():
    body = Body()
    average = GradientAverage(body.parameters(), strategy="ddp_bf16")
    body.loss().backward()
    before = body.matrix.grad
    average.finish()
    assert body.matrix.grad is before and average.buckets == []
    average.close()
