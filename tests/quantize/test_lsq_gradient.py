"""LSQ's gradients against the paper's formula, differentiated by autograd in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fairquant.quantize.quantizer import WeightQuantizer


def round_pass(x: Tensor) -> Tensor:
    return (x.round() - x).detach() + x


def grad_scale(x: Tensor, factor: float) -> Tensor:
    return (x - x * factor).detach() + x * factor


def paper(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """Quantize as in the appendix of Esser et al. 2020 (arXiv 1902.08153), for one step size."""
    top = 2 ** (bits - 1) - 1
    step = grad_scale(step, 1 / math.sqrt(weight.numel() * max(top, 1)))
    if bits == 1:
        return step * torch.where(weight < 0, -1.0, 1.0) + (weight - weight.detach())
    return round_pass(torch.clamp(weight / step, -top, top)) * step


@pytest.mark.parametrize("kind", ["per_tensor", "per_channel", "per_param"])
def test_gradients_of_weight_and_step_size(kind):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    widths = torch.tensor([1, 2, 3, 8], dtype=torch.uint8)
    shape = {"per_tensor": (), "per_channel": (6,), "per_param": weight.shape}[kind]
    bits = widths[torch.randint(1 if kind == "per_tensor" else 0, 4, shape)]
    quantizer = WeightQuantizer(weight, bits, method="lsq")
    table = quantizer.table(weight) * 0.7  # clips
    quantizer = WeightQuantizer(weight, bits, method="lsq", table=table)
    leaf, upstream = weight.clone().requires_grad_(), torch.randn_like(weight)
    out = quantizer(leaf)
    out.backward(upstream)
    assert quantizer.scale.ndim == 1
    got = quantizer.scale.grad.view(table.shape)

    full_bits = bits.reshape(bits.shape + (1,) * (4 - bits.dim())).expand(weight.shape)
    for row in range(table.shape[0]):
        members = torch.ones_like(weight, dtype=torch.bool) if kind == "per_tensor" else torch.zeros_like(weight) == 1
        if kind != "per_tensor":
            members[row] = True
        for column in range(table.shape[1]):
            width = sorted(bits.unique().tolist())[column] if table.shape[1] > 1 else None
            chosen = members & (full_bits == width) if width is not None else members
            if not chosen.any():
                assert got[row, column] == 0
                continue
            w = weight[chosen].double().requires_grad_()
            step = table[row, column].double().requires_grad_()
            expected = paper(w, step, int(full_bits[chosen][0]))
            expected.backward(upstream[chosen].double())
            torch.testing.assert_close(out.detach()[chosen].double(), expected.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(leaf.grad[chosen].double(), w.grad, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got[row, column].double(), step.grad, rtol=1e-4, atol=1e-5)


def test_pruned_and_untouched_weights_do_not_move_the_step_size():
    weight = torch.randn(3, 5)
    quantizer = WeightQuantizer(weight, torch.tensor([0, 32, 4], dtype=torch.uint8), method="lsq")
    quantizer(weight.requires_grad_()).sum().backward()
    assert quantizer.scale.grad[:2].tolist() == [0, 0] and quantizer.scale.grad[2] != 0
    assert weight.grad[0].tolist() == [0] * 5 and weight.grad[1].tolist() == [1] * 5


def test_a_step_size_driven_below_zero_stays_usable():
    weight = torch.randn(2, 5)
    quantizer = WeightQuantizer(weight, torch.tensor([4, 4], dtype=torch.uint8), method="lsq")
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    assert torch.isfinite(quantizer(weight)).all()
