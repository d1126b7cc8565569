"""Step sizes: a contract for every plug-in, and an independent formula for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant import plugins
from fairquant.quantize.fake_quant import fake_quantize

NAMES = plugins.names("scale")


def make(name: str, weight: torch.Tensor, largest: torch.Tensor, percentile: float = 99.0) -> torch.Tensor:
    scale: torch.Tensor = plugins.load("scale", name).make_scale(weight, largest, percentile=percentile)
    return scale


def test_the_plugins():
    expected = {"absmax": "step", "lsq": "learned", "mse": "epoch", "percentile": "epoch"}
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


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_never_loses_to_absmax_and_finds_the_best_of_its_grid(bits):
    torch.manual_seed(bits)
    weight = torch.randn(8, 300).pow(3)
    top = 2.0 ** (bits - 1) - 1
    largest, widths = torch.full((8, 1), top), torch.tensor(bits)
    delta = make("mse", weight, largest)
    error = squared_error(weight, widths, delta).sum(1)
    clip = weight.abs().amax(1, keepdim=True)
    grid = torch.stack([squared_error(weight, widths, clip * 0.01 ** (k / 63) / top).sum(1) for k in range(64)])
    assert (error <= squared_error(weight, widths, make("absmax", weight, largest)).sum(1)).all()
    torch.testing.assert_close(error, grid.amin(0), rtol=1e-4, atol=0)
    fine = torch.stack([squared_error(weight, widths, clip * r / top).sum(1) for r in torch.linspace(0.01, 1, 500)])
    assert (error <= fine.amin(0) * 1.1).all()


def test_mse_searches_each_width_of_a_row():
    torch.manual_seed(5)
    weight = torch.randn(4, 400)
    bits = torch.tensor([2, 4, 32])[torch.randint(0, 3, (4, 400))]
    largest = torch.tensor([1.0, 7.0, 0.5])[torch.searchsorted(torch.tensor([2, 4, 32]), bits)]
    delta = make("mse", weight, largest)
    for row in range(4):
        for width, top in ((2, 1.0), (4, 7.0)):
            chosen = bits[row] == width
            used = delta[row][chosen]
            assert used.unique().numel() == 1
            clip = weight[row].abs().amax()
            errors = [
                squared_error(weight[row][chosen][None], torch.tensor(width), clip * 0.01 ** (k / 63) / top).sum()
                for k in range(64)
            ]
            got = squared_error(weight[row][chosen][None], torch.tensor(width), used[:1]).sum()
            torch.testing.assert_close(got, min(errors), rtol=1e-4, atol=0)


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
