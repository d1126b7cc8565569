"""Step sizes: a contract for every plug-in, and an independent formula for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.quantize.fake_quant import fake_quantize
from fairquant.quantize.scales._slots import row_max

NAMES = plugins.names("scale")


def make(name: str, weight: torch.Tensor, largest: torch.Tensor, percentile: float = 99.0) -> torch.Tensor:
    scale: torch.Tensor = plugins.load("scale", name).make_scale(weight, largest, percentile=percentile)
    return scale


def test_the_plugins():
    expected = {"absmax": "step", "lsq": "learned", "mse": "epoch", "percentile": "epoch", "weighted": "learned"}
    assert expected.items() <= {name: plugins.load("scale", name).REFRESH for name in NAMES}.items()


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize("mixed", [False, True])
    def test_shape_positive_finite_and_pure(self, name, mixed):
        torch.manual_seed(0)
        weight = torch.randn(6, 40)
        weight[0] = 0.0  # zeros
        weight[1] = -0.5  # constant
        weight[2] = 1e-42  # denormal
        largest = torch.tensor([0.5, 1.0, 7.0])[torch.randint(0, 3, (6, 40 if mixed else 1))]
        before = weight.clone()
        delta = make(name, weight, largest)
        assert delta.shape == largest.shape and delta.dtype == weight.dtype
        assert torch.isfinite(delta).all() and (delta > 0).all()
        assert torch.isfinite(1 / delta).all()
        assert torch.equal(weight, before)
        assert torch.equal(delta, make(name, weight, largest))

    @pytest.mark.parametrize("mixed", [False, True])
    def test_rows_do_not_influence_each_other(self, name, mixed):
        torch.manual_seed(1)
        weight = torch.randn(5, 30)
        largest = torch.tensor([1.0, 7.0])[torch.randint(0, 2, (5, 30 if mixed else 1))]
        order = torch.tensor([3, 1, 4, 0, 2])
        assert torch.equal(make(name, weight, largest)[order], make(name, weight[order], largest[order]))

    def test_one_weight_per_row(self, name):
        assert torch.isfinite(make(name, torch.tensor([[2.0], [0.0]]), torch.full((2, 1), 7.0))).all()

    def test_scales_with_the_weight(self, name):
        torch.manual_seed(2)
        weight, largest = torch.randn(3, 50), torch.full((3, 1), 3.0)
        torch.testing.assert_close(make(name, weight * 4, largest), make(name, weight, largest) * 4)


def test_absmax_is_the_maximum_over_the_top():
    torch.manual_seed(3)
    weight = torch.randn(4, 33)
    largest = torch.tensor([[1.0], [7.0], [127.0], [3.0]])
    assert torch.equal(make("absmax", weight, largest), weight.abs().amax(1, keepdim=True) / largest)


@pytest.mark.parametrize("bits", range(2, 17))
def test_absmax_never_clips(bits):
    """The promise CLIPS = False rests on: |w| ≤ M·Δ after rounding to float32, up to the last place."""
    torch.manual_seed(bits)
    weight = torch.randn(200, 20) * torch.logspace(-30, 30, 200)[:, None]
    top = 2.0 ** (bits - 1) - 1
    delta = make("absmax", weight, torch.full((200, 1), top))
    assert (weight / delta).round().abs().max() == top


@pytest.mark.parametrize("percentile", [50.5, 90.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpys(percentile):
    weight = np.random.default_rng(0).normal(size=(5, 257)).astype(np.float32)
    expected = np.percentile(np.abs(weight.astype(np.float64)), percentile, axis=1) / 7
    got = make("percentile", torch.from_numpy(weight), torch.full((5, 1), 7.0), percentile)[:, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def squared_error(weight: torch.Tensor, bits: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return (fake_quantize(weight, bits, delta).double() - weight.double()).square()


def old_search(weight: torch.Tensor, factors: torch.Tensor, clip: torch.Tensor, bits: int) -> torch.Tensor:
    """The least error of each row on the grid of clipping ratios, weight by weight: an elementwise oracle."""
    top = 2.0 ** (bits - 1) - 1
    errors = [factors * squared_error(weight, torch.tensor(bits), clip * 0.01 ** (k / 63) / top) for k in range(64)]
    return torch.stack([error.sum(1) for error in errors]).amin(0)


@pytest.mark.parametrize("name", ["mse", "weighted"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_never_loses_to_absmax_or_its_grid(name, bits):
    torch.manual_seed(bits)
    weight = torch.randn(8, 300).pow(3)
    top = 2.0 ** (bits - 1) - 1
    largest, widths = torch.full((8, 1), top), torch.tensor(bits)
    delta = make(name, weight, largest)
    error = squared_error(weight, widths, delta).sum(1)
    clip = weight.abs().amax(1, keepdim=True)
    grid = old_search(weight, torch.ones(8, 300), clip, bits)
    assert (error <= squared_error(weight, widths, make("absmax", weight, largest)).sum(1)).all()
    assert (error <= grid * (1 + 1e-6)).all() and (error >= grid * 0.9).all()
    fine = torch.stack([squared_error(weight, widths, clip * r / top).sum(1) for r in torch.linspace(0.01, 1.05, 1000)])
    assert (error <= fine.amin(0) * 1.07).all() and (error / fine.amin(0)).median() <= 1.01


@pytest.mark.parametrize("name", ["mse", "weighted"])
def test_least_squares_searches_each_width_of_a_row(name):
    torch.manual_seed(5)
    weight = torch.randn(4, 400)
    bits = torch.tensor([2, 4, 32])[torch.randint(0, 3, (4, 400))]
    largest = torch.tensor([1.0, 7.0, 0.5])[torch.searchsorted(torch.tensor([2, 4, 32]), bits)]
    delta = make(name, weight, largest)
    for width in (2, 4):
        used = torch.where(bits == width, delta, 0.0).amax(1, keepdim=True)
        assert torch.equal(torch.where(bits == width, used, 0.0), torch.where(bits == width, delta, 0.0))  # one per row
        mask = (bits == width).double()
        error = (mask * squared_error(weight, torch.tensor(width), used)).sum(1)
        grid = old_search(weight, mask, weight.abs().amax(1, keepdim=True), width)
        assert (error <= grid * (1 + 1e-6)).all() and (error >= grid * 0.93).all()


class TestWeighted:
    @staticmethod
    def make(weight, largest, importance):
        return plugins.load("scale", "weighted").make_scale(weight, largest, percentile=99.0, importance=importance)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_against_brute_force_in_float64(self, bits):
        torch.manual_seed(bits)
        weight, importance = torch.randn(5, 400).double(), torch.rand(5, 400).double().pow(3)
        top = 2.0 ** (bits - 1) - 1
        delta = self.make(weight.float(), torch.full((5, 1), top), importance.float()).double()
        floored = torch.maximum(importance, importance.mean(1, keepdim=True) / 1000)

        def error(step):
            return (floored * ((weight / step).round().clamp(-top, top) * step - weight).square()).sum(1)

        widest = weight.abs().amax(1, keepdim=True) / top
        grid = torch.stack([error(widest * 0.01 ** (k / 63)) for k in range(64)]).amin(0)
        assert (error(delta) <= grid * (1 + 1e-6)).all() and (error(delta) <= error(widest)).all()
        fine = torch.stack([error(widest * ratio) for ratio in np.geomspace(0.01, 1.1, 4000)]).amin(0)
        assert (error(delta) / fine).median() <= 1.05
        if bits <= 5:  # beyond, the best of thousands of steps is luck in rounding the few weights that count
            assert (error(delta) <= fine * 1.07).all()
        if bits <= 4:
            assert (error(delta) < error(make("mse", weight.float(), torch.full((5, 1), top)).double())).all()

    def test_without_importance_or_with_one_value_it_is_least_squares(self):
        torch.manual_seed(0)
        weight, largest = torch.randn(4, 60), torch.tensor([[1.0], [3.0], [7.0], [127.0]])
        plain = make("mse", weight, largest)
        assert torch.equal(make("weighted", weight, largest), plain)
        assert torch.equal(self.make(weight, largest, torch.zeros(4, 60)), plain)
        torch.testing.assert_close(self.make(weight, largest, torch.full((4, 60), 0.3)), plain, rtol=1e-5, atol=0)

    def test_the_floor_is_a_thousandth_of_the_rows_mean(self):
        factors = plugins.load("scale", "weighted").factors
        importance = torch.tensor([[0.0, 0.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 1e-9]])
        expected = torch.tensor([[2e-3, 2e-3, 2e-3, 8.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 1.5e-3]])
        torch.testing.assert_close(factors(importance), expected)

    def test_unimportant_weights_still_count_a_little(self):
        """All importance on two equal weights: their own magnitude is best at 2 bits, whatever the others are."""
        weight = torch.tensor([[0.25, -0.25, *[1.0] * 8]])
        importance = torch.tensor([[1.0, 1.0, *[0.0] * 8]])
        delta = self.make(weight, torch.ones(1, 1), importance)
        floor = 1e-3 * 0.2
        expected = (0.5 + floor * 8) / (2 + floor * 8)  # every code is 1
        torch.testing.assert_close(delta, torch.tensor([[expected]]), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("scale", [2.0**-90, 2.0**60])
    def test_the_unit_of_the_importance_does_not_matter(self, scale):
        torch.manual_seed(1)
        weight, importance = torch.randn(3, 50), torch.rand(3, 50)
        largest = torch.full((3, 1), 3.0)
        assert torch.equal(self.make(weight, largest, importance), self.make(weight, largest, importance * scale))

    def test_degenerate_importance_gives_usable_steps(self):
        weight = torch.randn(6, 20)
        weight[3], weight[4] = 0.0, 1e-42
        importance = torch.zeros(6, 20)
        importance[1, 0], importance[2], importance[5] = 1e-45, 3e38, 1e-45
        for top in (1.0, 7.0, 127.0, 32767.0):
            delta = self.make(weight, torch.full((6, 1), top), importance)
            assert torch.isfinite(delta).all() and torch.isfinite(1 / delta).all() and (delta > 0).all()

    @pytest.mark.parametrize("mixed", [False, True])
    def test_rows_do_not_influence_each_other(self, mixed):
        torch.manual_seed(1)
        weight, importance = torch.randn(5, 30), torch.rand(5, 30)
        largest = torch.tensor([1.0, 7.0])[torch.randint(0, 2, (5, 30 if mixed else 1))]
        order = torch.tensor([3, 1, 4, 0, 2])
        whole = self.make(weight, largest, importance)
        assert torch.equal(whole[order], self.make(weight[order], largest[order], importance[order]))

    def test_the_step_at_one_bit_is_the_weighted_mean(self):
        torch.manual_seed(2)
        weight, importance = torch.randn(4, 33), torch.rand(4, 33) + 0.1
        got = plugins.load("scale", "weighted").sign_step(weight, importance=importance)
        expected = np.average(weight.abs().double().numpy(), axis=1, weights=importance.double().numpy())
        np.testing.assert_allclose(got[:, 0].numpy(), expected, rtol=1e-6)


def test_lsq_starts_where_the_paper_says():
    torch.manual_seed(6)
    weight = torch.randn(3, 100)
    largest = torch.tensor([[1.0], [7.0], [127.0]])
    expected = 2 * weight.double().abs().mean(1, keepdim=True) / largest.double().sqrt()
    torch.testing.assert_close(make("lsq", weight, largest), expected.float())
    bits = torch.randint(0, 2, (3, 100))
    mixed = make("lsq", weight, torch.tensor([1.0, 7.0])[bits])
    chosen = bits[0] == 1
    one = 2 * weight[0][chosen].abs().mean() / 7**0.5
    torch.testing.assert_close(mixed[0][chosen].unique(), one[None])


def test_the_largest_weight_is_the_same_by_one_kernel_as_by_two_reductions():
    """On a GPU ``row_max`` is a norm; it cannot run here, its operation can."""
    rows = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    rows[1], rows[2, 4], rows[3, 5] = 0.0, float("nan"), -float("inf")
    norm = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1, keepdim=True)
    assert torch.equal(norm.nan_to_num(-1.0), row_max(rows).nan_to_num(-1.0))
