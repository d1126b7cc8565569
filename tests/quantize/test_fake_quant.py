"""The arithmetic: torch's own operator, a float64 brute force and analytic gradients are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.errors import UserError
from fairquant.quantize import rows as rows_module
from fairquant.quantize.fake_quant import (
    Grid,
    Plan,
    _step_derivative,
    apply_plan,
    fake_quantize,
    prepare_widths,
    round_to_grid,
)


def away_from_ties(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    v = (weight.double() / delta.double()).abs()
    return (v - v.floor() - 0.5).abs() > 1e-4


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_agrees_with_torch_per_channel(bits, channels_last):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(16, 5, 3, 3, generator=generator)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    top = 2 ** (bits - 1) - 1
    delta = weight.abs().amax((1, 2, 3)) * 0.7 / top  # clips
    zero = torch.zeros(16, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, delta, zero, 0, -top, top)
    shape = (16, 1, 1, 1)
    got = fake_quantize(weight, torch.full(shape, bits), delta.view(shape))
    clear = away_from_ties(weight, delta.view(shape))
    assert clear.float().mean() > 0.9
    assert torch.equal(got[clear], expected[clear])
    assert got.stride() == weight.stride()


@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (4, 1, 5, 5), (6, 10), (1, 9), (5, 1)])
@pytest.mark.parametrize("kind", ["tensor", "channel", "param"])
def test_agrees_with_a_float64_brute_force(shape, kind, by_the_book):
    random = np.random.default_rng(len(shape) * 10 + shape[0])
    weight = random.normal(size=shape).astype(np.float32)
    units = {"tensor": (1,) * len(shape), "channel": (shape[0],) + (1,) * (len(shape) - 1), "param": shape}[kind]
    bits = random.choice([0, 1, 2, 3, 4, 7, 8, 16, 32], size=units)
    delta = random.uniform(0.01, 0.6, size=units).astype(np.float32)
    got = fake_quantize(*(torch.from_numpy(np.asarray(x)) for x in (weight, bits, delta))).numpy()
    clear = away_from_ties(torch.from_numpy(weight), torch.from_numpy(delta)).numpy()
    np.testing.assert_allclose(got[clear], by_the_book(weight, bits, delta)[clear], rtol=1e-6, atol=0)


def test_ties_go_to_even():
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert fake_quantize(weight, torch.tensor(8), torch.tensor(1.0)).tolist() == [[0, 2, 2, 0, -2, -2]]


def test_mixed_widths_equal_a_loop_over_widths():
    torch.manual_seed(0)
    weight = torch.randn(12, 4, 3, 3)
    bits = torch.randint(2, 9, weight.shape)
    delta = torch.rand(12, 1, 1, 1) + 0.05
    expected = torch.zeros_like(weight)
    for width in bits.unique():
        alone = fake_quantize(weight, width, delta)
        expected = torch.where(bits == width, alone, expected)
    assert torch.equal(fake_quantize(weight, bits, delta), expected)


def test_32_bits_are_the_weight_itself():
    weight = torch.tensor([[1e-45, -0.0, 3.4e38, 0.1], [1.0, 2.0, 3.0, 4.0]])
    mixed = fake_quantize(weight, torch.tensor([[32], [8]]), torch.tensor([[1e-3], [0.1]]))
    assert mixed[0].view(torch.int32).tolist() == weight[0].view(torch.int32).tolist()
    assert fake_quantize(weight, torch.tensor(32), torch.tensor(1.0)) is weight


def test_special_widths():
    weight = torch.tensor([[0.3, -0.2, 0.0], [0.3, -0.2, 0.0]])
    got = fake_quantize(weight, torch.tensor([[0], [1]]), torch.tensor([[9.0], [0.25]]))
    assert got.tolist() == [[0, 0, 0], [0.25, -0.25, 0.25]]
    assert not torch.signbit(got[0]).any()


@pytest.mark.parametrize("width", [17, 31, 33])
def test_a_width_without_meaning_is_refused(width):
    with pytest.raises(UserError, match=rf"^bit-width: got {width}; allowed: 0 to 16, or 32$"):
        prepare_widths(torch.tensor([[2], [width]]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_straight_through_gradient(channels_last):
    torch.manual_seed(1)
    weight = torch.randn(9, 4, 3, 3)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    weight.requires_grad_()
    bits = torch.tensor([0, 1, 2, 3, 4, 8, 16, 32, 2]).view(-1, 1, 1, 1)
    delta = torch.full((9, 1, 1, 1), 0.2)
    upstream = torch.randn(9, 4, 3, 3)
    fake_quantize(weight, bits, delta).backward(upstream)
    clip = (2.0 ** (bits.double() - 1) - 1) * delta.double()
    passes = (weight.detach().double().abs() <= clip) | (bits == 1) | (bits == 32)
    assert torch.equal(weight.grad, upstream * (passes & (bits != 0)))
    assert 0 < passes[2:4].float().mean() < 1


def test_blocks_do_not_change_the_result(monkeypatch):
    torch.manual_seed(2)
    weight = torch.randn(33, 7, 3, 3)
    bits = torch.randint(0, 9, weight.shape)
    delta = torch.rand(33, 1, 1, 1) + 0.05
    whole, gradients = fake_quantize(weight, bits, delta), []
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(rows_module, "BLOCK", size)
        leaf = weight.clone().requires_grad_()
        out = fake_quantize(leaf, bits, delta)
        out.square().sum().backward()
        gradients.append(leaf.grad)
        assert torch.equal(out, whole)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[1], gradients[2])


def test_a_weight_that_is_not_dense_in_memory():
    weight = torch.randn(6, 4, 3, 3)[:, ::2]
    delta = torch.full((6, 1, 1, 1), 0.3)
    assert torch.equal(
        fake_quantize(weight, torch.tensor(4), delta), fake_quantize(weight.contiguous(), torch.tensor(4), delta)
    )


class TestArithmetic:
    """What is computed without masks, as fast as a CPU can, against the formulas with ``torch.where``, bit for bit."""

    @pytest.fixture(params=["per_channel", "per_param"])
    def case(self, request):
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(32, 40, generator=generator)
        weight[:, :4] = torch.tensor([0.0, -0.0, 3.0, -3.0])
        shape = (32, 1) if request.param == "per_channel" else (32, 40)
        bits = torch.tensor([0, 1, 2, 3, 8, 16, 32])[torch.randint(7, shape, generator=generator)]
        delta = torch.rand(shape, generator=generator) + 0.05
        zero = (torch.rand(shape, generator=generator) * 2.0 ** bits.clamp(max=16)).floor().clamp_(max=3)
        return weight, bits, delta, zero.masked_fill_((bits < 2) | (bits == 32), 0)

    @pytest.mark.parametrize("clips", [True, False])
    @pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
    def test_rounding_and_what_passes(self, case, scheme, clips):
        weight, bits, delta, zero = case
        widths = prepare_widths(bits, scheme=scheme)
        low, high = -widths.largest, widths.largest
        if scheme == "asymmetric":
            low, high = -zero, widths.largest - zero
        codes = (weight / delta).round()
        if clips or scheme == "asymmetric":
            codes = torch.maximum(low, torch.minimum(codes, high))
        expected = torch.where(bits == 0, 0.0, codes * delta)
        expected = torch.where(bits == 1, torch.where(weight < 0, -delta, delta), expected)
        expected = torch.where(bits == 32, weight, expected)
        out = torch.empty_like(weight)
        grid = Grid(delta, zero if scheme == "asymmetric" else None)
        round_to_grid(weight, grid, widths, out, clips=clips)
        assert torch.equal(out, expected)

        if scheme == "asymmetric":
            inside = (weight / delta >= -0.5 - zero) & (weight / delta <= widths.largest - zero + 0.5)
        else:
            inside = weight.abs() <= widths.largest * delta
        inside = (inside | (not clips) | (bits == 1) | (bits == 32)) & (bits != 0)
        learned, incoming = weight.clone().requires_grad_(), torch.randn(weight.shape)
        plan = Plan(widths, lambda _, block: Grid(*(part[block] for part in grid if part is not None)), clips)
        apply_plan(learned, plan).backward(incoming)
        assert torch.equal(learned.grad, incoming * inside)

    def test_the_gradient_of_a_step(self, case):
        weight, bits, delta, _ = case
        widths = prepare_widths(bits)
        v = weight / delta
        inside = torch.where(v.abs() <= widths.largest, v.round() - v, v.sign() * widths.largest)
        expected = torch.where(bits == 1, torch.where(weight < 0, -1.0, 1.0), inside)
        expected = torch.where((bits == 0) | (bits == 32), 0.0, expected)
        assert torch.equal(_step_derivative(weight, delta, widths), expected)


def test_the_gradient_of_a_step_that_all_but_vanished_is_finite():
    weight, delta = torch.tensor([[5.0, -6.0, 0.2, 0.0]]), torch.tensor([[1e-38]])
    found = _step_derivative(weight, delta, prepare_widths(torch.tensor([[4]], dtype=torch.uint8)))
    assert found.tolist() == [[7.0, -7.0, 7.0, 0.0]]
