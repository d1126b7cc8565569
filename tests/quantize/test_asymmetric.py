"""Grids with zero points: torch's operator and observers, numpy, float64 loops and dense searches are the oracles."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fairquant import artifacts, plugins
from fairquant.allocate.bitmap import BitMap
from fairquant.errors import ArtifactError, UserError
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.quantize import rows as rows_module
from fairquant.quantize.attach import quantize_model, refresh_scales, scale_tables, zero_point_tables
from fairquant.quantize.fake_quant import fake_quantize
from fairquant.quantize.ladder import asymmetric_grids, quantize_rows
from fairquant.quantize.quantizer import WeightQuantizer
from fairquant.quantize.scales import _signed_rows
from fairquant.quantize.scales._affine_search import best_grid
from fairquant.quantize.scales._signed_rows import SignedRows
from fairquant.quantize.state import load_quantized, save_quantized

METHODS = ("absmax", "mse", "percentile")
SHAPES = ((7, 3, 3, 3), (4, 1, 5, 5), (6, 10), (1, 40), (5, 1))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, weight: torch.Tensor, levels: torch.Tensor, percentile: float = 99.0):
    return plugins.load("scale", name).make_grid(weight, levels, percentile=percentile)


def levels_of(bits: torch.Tensor) -> torch.Tensor:
    """L = 2^b − 1, and the sign of a width without a grid."""
    special = (bits <= 1) | (bits == 32)
    return torch.where(special, 0.5, 2.0 ** bits.float() - 1)


def errors(weight: torch.Tensor, bits: int, delta: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """Squared error of each row."""
    quantized = fake_quantize(weight, torch.tensor(bits), delta, zero)
    return (quantized.double() - weight.double()).square().sum(1)


def by_the_book(weight: np.ndarray, bits: np.ndarray, delta: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Quantize weight by weight in float64: the stored code, then what it stands for."""
    out = np.empty(weight.shape)
    parts = [np.broadcast_to(part, weight.shape) for part in (bits, delta, zero)]
    for place in np.ndindex(*weight.shape):
        w, b, d, z = (float(part[place]) for part in (weight, *parts))
        code = max(0.0, min(2**b - 1, round(w / d) + z)) if b not in (0, 1, 32) else 0.0
        out[place] = {0: 0.0, 1: d if w >= 0 else -d, 32: w}.get(int(b), (code - z) * d)
    return out


class TestArithmetic:
    @pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_torchs_operator_to_the_last_bit_where_one_over_delta_is_exact(self, bits, channels_last):
        """Powers of two as Δ: w · (1/Δ) is w / Δ, so ties are the same too."""
        weight = draw(16, 5, 3, 3, seed=bits) + 0.3
        weight[:, 0, 0] = torch.tensor([0.5, 1.5, -2.5]) * 2.0**-3  # ties
        if channels_last:
            weight = weight.to(memory_format=torch.channels_last)
        delta = 2.0 ** torch.arange(-4.0, 0).repeat(4) * 4 / 2 ** (bits - 1)
        zero = torch.randint(0, 2**bits, (16,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
        theirs, ours = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        expected = torch.fake_quantize_per_channel_affine(theirs, delta, zero, 0, 0, 2**bits - 1)
        shape = (16, 1, 1, 1)
        got = fake_quantize(ours, torch.full(shape, bits), delta.view(shape), zero.view(shape))
        assert torch.equal(got, expected) and got.stride() == weight.stride()
        upstream = draw(16, 5, 3, 3, seed=9)
        expected.backward(upstream)
        got.backward(upstream)
        code = weight / delta.view(shape) + zero.view(shape)
        clear = (code != -0.5) & (code != 2**bits - 0.5)  # there a tie rounds beyond the end or does not
        assert torch.equal(ours.grad[clear], theirs.grad[clear])
        assert 0 < (ours.grad != 0).float().mean() < 1

    @pytest.mark.parametrize("bits", [2, 4, 8, 16])
    def test_torchs_operator_up_to_a_step_at_ties(self, bits):
        weight = draw(32, 200, seed=bits)
        delta = weight.abs().amax(1) * 1.3 / 2**bits
        zero = torch.randint(0, 2**bits, (32,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(weight, delta, zero, 0, 0, 2**bits - 1)
        got = fake_quantize(weight, torch.tensor(bits), delta[:, None], zero[:, None])
        v = (weight.double() / delta.double()[:, None]).abs()
        clear = (v - v.floor() - 0.5).abs() > (1e-4 if bits < 16 else 1e-2)
        assert clear.float().mean() > 0.9
        assert torch.equal(got[clear], expected[clear])
        assert ((got - expected).abs() <= delta[:, None] * 1.001).all()

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("kind", ["tensor", "channel", "param"])
    def test_a_float64_brute_force(self, shape, kind):
        random = np.random.default_rng(len(shape) * 10 + shape[0])
        weight = random.normal(0.2, size=shape).astype(np.float32)
        units = {"tensor": (1,) * len(shape), "channel": (shape[0],) + (1,) * (len(shape) - 1), "param": shape}[kind]
        bits = random.choice([0, 1, 2, 3, 4, 7, 8, 16, 32], size=units)
        delta = random.uniform(0.01, 0.6, size=units).astype(np.float32)
        zero = np.where((bits > 1) & (bits < 32), random.integers(0, 2 ** np.minimum(bits, 16)), 0)
        got = fake_quantize(*(torch.from_numpy(np.asarray(x)) for x in (weight, bits, delta, zero))).numpy()
        v = np.abs(weight.astype(np.float64) / delta)
        clear = np.abs(v - np.floor(v) - 0.5) > 1e-4
        np.testing.assert_allclose(got[clear], by_the_book(weight, bits, delta, zero)[clear], rtol=1e-6, atol=0)

    def test_by_hand(self):
        """2 bits, Δ = 0.5, z = 1: the grid is −0.5, 0, 0.5, 1."""
        weight = torch.tensor([[-9.0, -0.75, -0.3, -0.2, 0.0, 0.24, 0.25, 0.75, 1.2, 9.0]])
        got = fake_quantize(weight, torch.tensor(2), torch.tensor(0.5), torch.tensor(1))
        assert got.tolist() == [[-0.5, -0.5, -0.5, 0, 0, 0, 0, 1, 1, 1]]  # ties to even

    def test_the_ends_of_zero_points_range(self):
        """z = 0 holds no negative number, z = L no positive one."""
        weight = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]]).expand(2, 5)
        got = fake_quantize(weight, torch.tensor(3), torch.tensor(1.0), torch.tensor([[0], [7]]))
        assert got.tolist() == [[0, 0, 0, 1, 2], [-2, -1, 0, 0, 0]]

    def test_mixed_widths_equal_a_loop_over_widths(self):
        weight, bits = draw(12, 4, 3, 3), torch.randint(2, 9, (12, 4, 3, 3))
        delta, zero = torch.rand(12, 1, 1, 1) + 0.05, torch.randint(0, 4, (12, 1, 1, 1))
        expected = torch.zeros_like(weight)
        for width in bits.unique():
            expected = torch.where(bits == width, fake_quantize(weight, width, delta, zero), expected)
        assert torch.equal(fake_quantize(weight, bits, delta, zero), expected)

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_straight_through_gradient(self, channels_last):
        weight = draw(9, 4, 3, 3, seed=1)
        if channels_last:
            weight = weight.to(memory_format=torch.channels_last)
        weight.requires_grad_()
        bits = torch.tensor([0, 1, 2, 3, 4, 8, 16, 32, 2]).view(-1, 1, 1, 1)
        zero = torch.tensor([0, 0, 1, 2, 0, 3, 40000, 0, 3]).view(-1, 1, 1, 1)
        delta, upstream = torch.full((9, 1, 1, 1), 0.2), draw(9, 4, 3, 3, seed=3)
        fake_quantize(weight, bits, delta, zero).backward(upstream)
        code = weight.detach().double() / delta.double() + zero
        passes = ((code >= -0.5) & (code <= 2.0**bits - 0.5)) | (bits == 1) | (bits == 32)
        assert torch.equal(weight.grad, upstream * (passes & (bits != 0)))
        assert 0 < passes[2:6].float().mean() < 1

    def test_blocks_do_not_change_the_result(self, monkeypatch):
        weight, bits = draw(33, 7, 3, 3), torch.randint(0, 9, (33, 7, 3, 3))
        delta, zero = torch.rand(33, 1, 1, 1) + 0.05, torch.randint(0, 4, (33, 1, 1, 1))
        whole, gradients = fake_quantize(weight, bits, delta, zero), []
        for size in (1, 100, 1 << 20):
            monkeypatch.setattr(rows_module, "BLOCK", size)
            leaf = weight.clone().requires_grad_()
            out = fake_quantize(leaf, bits, delta, zero)
            out.square().sum().backward()
            gradients.append(leaf.grad)
            assert torch.equal(out, whole)
        assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[1], gradients[2])


@pytest.mark.parametrize("name", METHODS)
class TestContract:
    @pytest.mark.parametrize("mixed", [False, True])
    def test_step_sizes_and_zero_points_are_what_they_should_be(self, name, mixed):
        weight = draw(8, 40)
        weight[0] = 0.0
        weight[1], weight[2] = -0.5, 0.5
        weight[3] = 1e-42  # denormal
        weight[4], weight[5] = weight[4].abs() + 5, -weight[5].abs() - 5
        bits = torch.tensor([2, 4, 8, 16])[torch.randint(0, 4, (8, 40 if mixed else 1))]
        levels, before = levels_of(bits), weight.clone()
        delta, zero = make(name, weight, levels)
        assert delta.shape == zero.shape == levels.shape and delta.dtype == zero.dtype == weight.dtype
        assert torch.isfinite(delta).all() and (delta > 0).all() and torch.isfinite(1 / delta).all()
        assert torch.equal(zero, zero.round()) and (zero >= 0).all() and (zero <= levels).all()
        assert not torch.signbit(zero).any()
        if name != "mse":  # one-sided: no code is wasted
            assert (zero[[2, 4]] == 0).all() and (zero[[1, 5]] == levels[[1, 5]]).all()
        again = make(name, weight, levels)
        assert torch.equal(delta, again[0]) and torch.equal(zero, again[1]) and torch.equal(weight, before)

    @pytest.mark.parametrize("mixed", [False, True])
    def test_rows_do_not_influence_each_other(self, name, mixed):
        weight, order = draw(5, 30, seed=1), torch.tensor([3, 1, 4, 0, 2])
        levels = torch.tensor([3.0, 15.0])[torch.randint(0, 2, (5, 30 if mixed else 1))]
        for whole, part in zip(make(name, weight, levels), make(name, weight[order], levels[order]), strict=True):
            assert torch.equal(whole[order], part)

    def test_scales_with_the_weight(self, name):
        weight, levels = draw(3, 50, seed=2), torch.full((3, 1), 7.0)
        (delta, zero), (wide, same) = make(name, weight, levels), make(name, weight * 4, levels)
        torch.testing.assert_close(wide, delta * 4)
        assert torch.equal(zero, same)

    @pytest.mark.parametrize("bits", [2, 5, 8, 16])
    def test_a_mirrored_row_has_the_mirrored_grid(self, name, bits):
        weight, levels = draw(6, 64, seed=4) + 0.4, torch.full((6, 1), 2.0**bits - 1)
        (delta, zero), (back, mirrored) = make(name, weight, levels), make(name, -weight, levels)
        if name == "mse":  # a tie of two grids may fall either way
            torch.testing.assert_close(errors(weight, bits, delta, zero), errors(-weight, bits, back, mirrored),
                                       rtol=0.05, atol=0)  # fmt: skip
            return
        torch.testing.assert_close(back, delta, rtol=1e-6, atol=0)
        assert torch.equal(mirrored, levels - zero)

    @pytest.mark.parametrize("width", range(2, 17))
    def test_zeros_stay_zero(self, name, width):
        weight = draw(6, 50, seed=width)
        weight[:2] = weight[:2].abs() + 0.5
        weight[2:4] = -weight[2:4].abs() - 0.5
        weight[:, ::3] = 0.0
        quantizer = WeightQuantizer(weight, torch.full((6,), width), method=name, percentile=97.0, scheme="asymmetric")
        assert (quantizer(weight)[:, ::3] == 0).all()


class TestAbsmax:
    @pytest.mark.parametrize("bits", range(2, 9))
    def test_torchs_minmax_observers(self, bits):
        from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

        weight = draw(12, 60, seed=bits) + 0.7
        weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
        top = 2**bits - 1
        channels = PerChannelMinMaxObserver(dtype=torch.quint8, qscheme=torch.per_channel_affine, quant_max=top,
                                            quant_min=0)  # fmt: skip
        whole = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=top)
        for observer, rows in ((channels, weight), (whole, weight.reshape(1, -1))):
            observer(weight)
            scale, zero = observer.calculate_qparams()
            found = make("absmax", rows, torch.full((len(rows), 1), float(top)))
            assert torch.equal(found[0][:, 0], scale) and torch.equal(found[1][:, 0].int(), zero.int())

    def test_by_hand(self):
        """−1 … 2 at 2 bits: Δ = 1, z = 1; 1 … 3 is widened to 0 … 3, −3 … −1 to −3 … 0."""
        weight = torch.tensor([[-1.0, 2.0], [1.0, 3.0], [-3.0, -1.0]])
        delta, zero = make("absmax", weight, torch.full((3, 1), 3.0))
        assert (delta.flatten().tolist(), zero.flatten().tolist()) == ([1, 1, 1], [1, 0, 3])

    @pytest.mark.parametrize("bits", range(2, 17))
    def test_nothing_is_further_from_its_code_than_half_a_step(self, bits):
        """The promise CLIPS = False rests on, over sixty powers of ten."""
        weight = (draw(200, 20, seed=bits) + 0.5) * torch.logspace(-30, 30, 200)[:, None]
        delta, zero = make("absmax", weight, torch.full((200, 1), 2.0**bits - 1))
        got = fake_quantize(weight, torch.tensor(bits), delta, zero)
        slack = weight.double().abs() * 2**-22 + delta * 1e-6
        assert ((got.double() - weight.double()).abs() <= delta.double() / 2 + slack).all()

    @pytest.mark.parametrize("bits", range(2, 17))
    @pytest.mark.parametrize("sign", [1, -1])
    def test_one_sided_weights_lose_less_than_with_symmetric_grids(self, bits, sign):
        weight = sign * torch.rand(40, 300, generator=torch.Generator().manual_seed(bits)).pow(2)
        delta, zero = make("absmax", weight, torch.full((40, 1), 2.0**bits - 1))
        scale = plugins.load("scale", "absmax").make_scale
        step = scale(weight, torch.full((40, 1), 2.0 ** (bits - 1) - 1), percentile=100)
        assert (delta <= step / 2 * (1 + 1e-6)).all()  # twice as many codes and one more
        assert (errors(weight, bits, delta, zero) < errors(weight, bits, step, None)).all()

    def test_the_gradient_passes_everywhere(self):
        weight = (draw(9, 30) + 0.4).requires_grad_()
        for bits in (torch.tensor(3), torch.tensor([2, 3, 4, 5, 8, 16, 32, 1, 0])):
            quantizer = WeightQuantizer(weight, bits, method="absmax", scheme="asymmetric")
            weight.grad, upstream = None, draw(9, 30, seed=1)
            quantizer(weight).backward(upstream)
            assert torch.equal(weight.grad, upstream * (bits != 0).view(-1, 1))


class TestPercentile:
    @pytest.mark.parametrize("percentile", [50.5, 90.0, 99.0, 99.9, 100.0])
    def test_numpys(self, percentile):
        weight = np.random.default_rng(0).normal(0.1, size=(5, 257)).astype(np.float32)
        tail = (100 - percentile) / 2
        low, high = np.percentile(weight.astype(np.float64), [tail, 100 - tail], axis=1)
        step = (high - low) / 15
        delta, zero = make("percentile", torch.from_numpy(weight), torch.full((5, 1), 15.0), percentile)
        np.testing.assert_allclose(delta[:, 0].numpy(), step, rtol=1e-5)
        np.testing.assert_array_equal(zero[:, 0].numpy(), np.round(-low / step))

    def test_all_of_it_is_min_max(self):
        weight, levels = draw(6, 90) + 0.3, torch.full((6, 1), 15.0)
        for one, other in zip(make("percentile", weight, levels, 100.0), make("absmax", weight, levels), strict=True):
            assert torch.equal(one, other)


def shaped(kind: str, seed: int) -> torch.Tensor:
    """Ten rows of 300 weights."""
    weight = draw(10, 300, seed=seed)
    return {
        "gauss": weight,
        "long": weight.pow(3),
        "positive": weight.square(),
        "negative": -weight.abs(),
        "skewed": weight.mul(0.7).exp() - 0.8,
        "shifted": weight + 1.5,
    }[kind]


KINDS = ("gauss", "long", "positive", "negative", "skewed", "shifted")


class TestMse:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 11, 16])
    def test_never_loses_to_min_max_or_to_the_symmetric_search(self, kind, bits):
        weight, levels = shaped(kind, bits), torch.full((10, 1), 2.0**bits - 1)
        found = errors(weight, bits, *make("mse", weight, levels))
        rounding = weight.double().square().sum(1) * 2e-12
        symmetric = plugins.load("scale", "mse").make_scale(weight, (levels - 1) / 2, percentile=100)
        assert (found <= errors(weight, bits, *make("absmax", weight, levels)) * (1 + 1e-5) + rounding).all()
        assert (found <= errors(weight, bits, symmetric, None) * (1 + 1e-5) + rounding).all()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_close_to_a_dense_search(self, kind, bits):
        weight, top = shaped(kind, bits), 2.0**bits - 1
        found = errors(weight, bits, *make("mse", weight, torch.full((10, 1), top)))
        low, high = weight.amin(1, keepdim=True).clamp_max(0), weight.amax(1, keepdim=True).clamp_min(0)
        best = torch.full_like(found, torch.inf)
        for down in torch.linspace(0.04, 1.04, 26):
            for up in torch.linspace(0.04, 1.04, 26):
                delta = (high * up - low * down) / top
                best = torch.minimum(best, errors(weight, bits, delta, (-low * down / delta).round()))
        assert (found <= best * 1.2).all() and (found / best).mean() <= 1.03

    @pytest.mark.parametrize("bits", [2, 3, 5, 8])
    def test_what_the_search_says_of_its_grids_is_true(self, bits, monkeypatch):
        """By binary search and weight by weight, in blocks of any size; sums in float64 against a plain loop."""
        weight, top = shaped("skewed", 3), 2**bits - 1
        factors = torch.rand(10, 300, generator=torch.Generator().manual_seed(5))
        rows = SignedRows.of(weight, factors)
        delta = torch.rand(10, 6, generator=torch.Generator().manual_seed(6)) * 4 / top + 1e-3
        zero = torch.randint(0, top + 1, (10, 6), generator=torch.Generator().manual_seed(7)).float()
        parts = [
            fake_quantize(weight, torch.tensor(bits), delta[:, [k]], zero[:, [k]]).double() - weight.double()
            for k in range(6)
        ]
        expected = torch.stack([(factors.double() * part.square()).sum(1) for part in parts], 1)
        for cost, size in ((0, 1 << 20), (1000, 1 << 20), (0, 1), (1000, 1)):
            monkeypatch.setattr(_signed_rows, "SEARCH_COST", cost)
            monkeypatch.setattr(_signed_rows, "TEMPORARY", size)
            torch.testing.assert_close(rows.trial(delta, zero, top).error, expected, rtol=1e-5, atol=0)
        best = best_grid(weight, top, factors)
        quantized = fake_quantize(weight, torch.tensor(bits), best.delta, best.zero).double()
        own = (factors.double() * (quantized - weight.double()).square()).sum(1, keepdim=True)
        torch.testing.assert_close(best.error, own, rtol=1e-5, atol=0)

    def test_searches_each_width_of_a_row(self):
        weight = draw(4, 400, seed=5) + 0.3
        bits = torch.tensor([2, 4, 32])[torch.randint(0, 3, (4, 400))]
        delta, zero = make("mse", weight, levels_of(bits))
        low, high = make("absmax", weight, torch.full((4, 1), 3.0)), make("absmax", weight, torch.full((4, 1), 15.0))
        for width, plain in ((2, low), (4, high)):
            chosen = bits == width
            steps, zeros = (torch.where(chosen, part, 0.0).amax(1, keepdim=True) for part in (delta, zero))
            assert torch.equal(torch.where(chosen, steps, 0.0), torch.where(chosen, delta, 0.0))  # one per row
            assert torch.equal(torch.where(chosen, zeros, 0.0), torch.where(chosen, zero, 0.0))
            found, other = (
                (chosen * (fake_quantize(weight, torch.tensor(width), *grid) - weight).square()).sum(1)
                for grid in ((steps, zeros), plain)
            )
            assert (found <= other).all() and (found < other).any()


class TestQuantizer:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("shape", [(7, 3, 3, 3), (6, 10)])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_every_granularity_is_its_own_table(self, method, shape, channels_last, granularity):
        weight = draw(*shape) + 0.2
        if channels_last and weight.dim() == 4:
            weight = weight.to(memory_format=torch.channels_last)
        random = torch.Generator().manual_seed(3)
        size = {"per_tensor": (), "per_channel": shape[:1], "per_param": shape}[granularity]
        bits = torch.tensor([0, 1, 2, 4, 8, 32])[torch.randint(0, 6, size, generator=random)].to(torch.uint8)
        bits = bits if bits.dim() else torch.tensor(4, dtype=torch.uint8)
        quantizer = WeightQuantizer(weight, bits, method=method, percentile=97.0, scheme="asymmetric")
        table, zero = quantizer.table(weight), quantizer.zero_points(weight)
        assert table.shape == zero.shape and zero.dtype == torch.int32
        present = sorted(set(bits.flatten().tolist())) if granularity == "per_param" else None
        wide = bits.reshape(*bits.shape, *(1,) * (weight.dim() - bits.dim())).expand(shape).long()
        column = torch.searchsorted(torch.tensor(present), wide) if present else torch.zeros_like(wide)
        rows = torch.arange(shape[0]).view(-1, *(1,) * (len(shape) - 1)).expand(shape) if bits.dim() else column
        expected = fake_quantize(weight, wide, table[rows, column], zero[rows, column])
        assert torch.equal(quantizer(weight), expected)
        assert torch.equal(quantizer.eval()(weight), expected)

    def test_absmax_follows_every_step(self):
        weight = draw(4, 20)
        quantizer = WeightQuantizer(weight, torch.tensor([2, 3, 4, 8]), method="absmax", scheme="asymmetric")
        assert not quantizer.state_dict().keys() & {"scale", "zero_point"}
        before = quantizer.zero_points(weight)
        moved = weight + 1.0
        fresh = make("absmax", moved, torch.tensor([[3.0], [7.0], [15.0], [255.0]]))
        assert torch.equal(quantizer.table(moved), fresh[0])
        assert torch.equal(quantizer.zero_points(moved), fresh[1].int())
        assert not torch.equal(quantizer.zero_points(moved), before)

    @pytest.mark.parametrize("method", ["mse", "percentile"])
    def test_others_keep_their_grid_until_it_is_refreshed(self, method):
        weight = draw(4, 60)
        bits = torch.tensor([2, 3, 4, 8])
        quantizer = WeightQuantizer(weight, bits, method=method, percentile=97.0, scheme="asymmetric").eval()
        before, moved = quantizer.zero_points(weight), weight + 1.0
        assert torch.equal(quantizer.zero_points(moved), before)
        kept = quantizer(moved)
        quantizer.refresh(moved)
        after = WeightQuantizer(moved, bits, method=method, percentile=97.0, scheme="asymmetric")
        assert torch.equal(quantizer.zero_points(moved), after.zero_points(moved))
        assert not torch.equal(quantizer.zero_points(moved), before)
        assert torch.equal(quantizer(moved), after(moved)) and not torch.equal(quantizer(moved), kept)

    def test_in_training_the_grid_follows_the_optimizer(self, network):
        model = network()
        quantize_model(model, BitMap("per_tensor", dict.fromkeys(("0", "3", "4", "7"), np.array(4, np.uint8)),
                                     scheme="asymmetric"))  # fmt: skip
        start = zero_point_tables(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(5):
            optimizer.zero_grad()
            model(draw(8, 3, 8, 8, seed=step)).square().sum().backward()
            optimizer.step()
        end = zero_point_tables(model)
        assert any(not torch.equal(start[name], end[name]) for name in start)
        for layer in (model[0], model[7]):
            weight = layer.parametrizations.weight.original.detach()
            delta, zero = make("absmax", weight.reshape(1, -1), torch.tensor([[15.0]]))
            expected = fake_quantize(weight, torch.tensor(4), delta[0, 0], zero[0, 0])
            assert torch.equal(layer.weight.detach(), expected) and len(expected.unique()) <= 16

    def test_it_says_so(self):
        quantizer = WeightQuantizer(draw(2, 3), torch.tensor([2, 4]), method="absmax", scheme="asymmetric")
        assert repr(quantizer).endswith("(bits={2, 4}, granularity=per_channel, scale=absmax, scheme=asymmetric)")

    @pytest.mark.parametrize("method", ["lsq", "weighted"])
    def test_a_method_without_zero_points_is_refused(self, method):
        line = f"^quantize.scale: got '{method}' with asymmetric weights; allowed: absmax | mse | percentile$"
        with pytest.raises(UserError, match=line.replace("|", r"\|")):
            WeightQuantizer(draw(2, 3), torch.tensor(4), method=method, scheme="asymmetric")

    @pytest.mark.parametrize(
        "zero, line",
        [
            (None, "got none with asymmetric step sizes; allowed: one for each step size"),
            ([[1]], r"got shape \(1, 1\); allowed: \(3, 1\)"),
            ([[1], [-1], [0]], r"got -1; allowed: from 0 to 2\^b - 1 at b bits, 0 at 0, 1 and 32 bits"),
            ([[1], [16], [0]], r"got 16; allowed: from 0 to 2\^b - 1 at b bits, 0 at 0, 1 and 32 bits"),
            ([[1], [15], [1]], r"got 1; allowed: from 0 to 2\^b - 1 at b bits, 0 at 0, 1 and 32 bits"),
        ],
    )
    def test_zero_points_that_cannot_be(self, zero, line):
        zeros = None if zero is None else torch.tensor(zero)
        with pytest.raises(ArtifactError, match=f"^zero points: {line}$"):
            WeightQuantizer(
                draw(3, 5), torch.tensor([2, 4, 32]), method="mse", scheme="asymmetric", table=torch.ones(3, 1),
                zero_points=zeros,
            )  # fmt: skip

    def test_zero_points_of_symmetric_grids_are_refused(self):
        line = "^zero points: got some with symmetric weights; allowed: beside asymmetric step sizes$"
        with pytest.raises(ArtifactError, match=line):
            WeightQuantizer(draw(3, 5), torch.tensor(4), method="mse", table=torch.ones(1, 1),
                            zero_points=torch.ones(1, 1))  # fmt: skip


class TestLadder:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("size", [1 << 18, 40])
    def test_grids_are_those_of_a_quantizer(self, method, size, monkeypatch):
        monkeypatch.setattr(rows_module, "BLOCK", size)
        weight, widths = draw(6, 30) + 0.3, (0, 1, 2, 3, 8, 16, 32)
        delta, zero = asymmetric_grids(weight, widths, method=method, percentile=97.0)
        assert delta.shape == zero.shape == (6, 7)
        for index, width in enumerate(widths):
            bits = torch.full((6,), width, dtype=torch.uint8)
            quantizer = WeightQuantizer(weight, bits, method=method, percentile=97.0, scheme="asymmetric")
            assert torch.equal(quantizer.table(weight), delta[:, [index]])
            assert torch.equal(quantizer.zero_points(weight), zero[:, [index]].int())
            rounded = quantize_rows(weight, width, delta[:, [index]], zero[:, [index]])
            assert torch.equal(rounded, quantizer(weight).detach())


SPEC = ModelSpec("test_efficientnet", ("a", "b"), 32, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def built():
    return build(SPEC, seed=0)


class TestFile:
    @pytest.fixture
    def model(self, built):
        return copy.deepcopy(built)

    @staticmethod
    def asymmetric(bits: BitMap) -> BitMap:
        return BitMap(bits.granularity, bits.layers, scheme="asymmetric")

    @pytest.mark.parametrize("method", METHODS)
    def test_logits_are_bit_identical(self, model, random_bits, granularity, method, tmp_path):
        bits = self.asymmetric(random_bits(model, granularity, (0, 1, 3, 8, 32)))
        quantize_model(model, bits, scale=method, percentile=99.0)
        model.to(memory_format=torch.channels_last)
        images = draw(8, 3, 32, 32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.train()(images).square().sum().backward()
        optimizer.step()
        refresh_scales(model)
        model(images).square().sum().backward()
        optimizer.step()  # grids of mse and percentile are no longer those of the weights
        with torch.no_grad():
            expected = model.eval()(images)
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        loaded, _, back = load_quantized(tmp_path / "q.safetensors")
        assert (back.granularity, back.scheme) == (granularity, "asymmetric")
        loaded.to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(loaded(images), expected)
        zeros = zero_point_tables(model)
        for name, table in scale_tables(model).items():
            assert torch.equal(scale_tables(loaded)[name], table)
            assert torch.equal(zero_point_tables(loaded)[name], zeros[name])
        save_quantized(tmp_path / "again.safetensors", loaded, SPEC)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
        arrays, meta = artifacts.read_tensors(tmp_path / "q.safetensors")
        for name in meta["layers"]:
            assert arrays[f"zero/{name}"].dtype == np.int32
            np.testing.assert_array_equal(arrays[f"zero/{name}"], zeros[name].numpy())

    def test_a_symmetric_file_says_nothing_of_it(self, model, random_bits, tmp_path):
        quantize_model(model, random_bits(model, "per_channel"), scale="mse")
        save_quantized(tmp_path / "q.safetensors", model, SPEC)
        arrays, meta = artifacts.read_tensors(tmp_path / "q.safetensors")
        assert "scheme" not in meta and not [name for name in arrays if name.startswith("zero/")]
        assert load_quantized(tmp_path / "q.safetensors")[2].scheme == "symmetric"

    @pytest.mark.parametrize("what", ["missing", "beyond"])
    def test_broken_zero_points(self, model, random_bits, tmp_path, what):
        path = tmp_path / "q.safetensors"
        quantize_model(model, self.asymmetric(random_bits(model, "per_tensor", (4,))), scale="mse")
        save_quantized(path, model, SPEC)
        arrays, meta = artifacts.read_tensors(path)
        arrays = {name: array.copy() for name, array in arrays.items()}
        first = meta["layers"][0]
        if what == "missing":
            del arrays[f"zero/{first}"]
            line = f"got no 'zero/{first}'; allowed: an output of the quantize stage"
        else:
            arrays[f"zero/{first}"][0] = 16
            line = f"layer {first}: zero points: got 16; allowed: from 0 to 2^b - 1 at b bits, 0 at 0, 1 and 32 bits"
        artifacts.write_tensors(path, arrays, meta=meta)
        with pytest.raises(ArtifactError) as error:
            load_quantized(path)
        assert str(error.value) == f"{path}: {line}"

    def test_a_bit_map_keeps_its_scheme(self, tmp_path):
        layers = {"fc": np.uint8([2, 4])}
        for scheme in ("symmetric", "asymmetric"):
            BitMap("per_channel", layers, scheme=scheme).save(tmp_path / scheme)
            assert BitMap.load(tmp_path / scheme).scheme == scheme
        assert "scheme" not in artifacts.read_tensors(tmp_path / "symmetric")[1]
