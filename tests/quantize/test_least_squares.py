"""Errors from sums over sorted weights against the errors themselves, and the search built on them."""

from __future__ import annotations

import pytest
import torch

from fairquant.quantize.scales import _sorted_rows
from fairquant.quantize.scales._least_squares import RATIOS, best_step, least_squares_ladder
from fairquant.quantize.scales._sorted_rows import SortedRows


def error_of(weight: torch.Tensor, factors: torch.Tensor, delta: torch.Tensor, top: float) -> torch.Tensor:
    """Σ f·(ŵ − w)² of rows (r, n) for step sizes (r, K), weight by weight in float64: (r, K)."""
    step = delta.double()[:, :, None]
    codes = (weight.double()[:, None] / step).round().clamp(-top, top)
    return (factors.double()[:, None] * (codes * step - weight.double()[:, None]).square()).sum(2)


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def rows(request):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 90, generator=generator).pow(3)
    weight[0, 40:] = 0.0
    weight[1] = weight[1].sign() * 0.3
    factors = torch.rand(7, 90, generator=generator).pow(8) if request.param else torch.ones(7, 90)
    factors[2, ::2] = factors[2, ::2] * (0 if request.param else 1)
    return weight, factors, SortedRows.of(weight, factors if request.param else None)


class TestSortedRows:
    @pytest.mark.parametrize("by_search", [True, False])
    @pytest.mark.parametrize("bits", range(2, 13))
    def test_the_error_at_any_step(self, rows, bits, by_search, monkeypatch):
        monkeypatch.setattr(_sorted_rows, "SEARCH_COST", 0 if by_search else float("inf"))
        weight, factors, sorted_rows = rows
        top = 2.0 ** (bits - 1) - 1
        delta = weight.abs().amax(1, keepdim=True) / top * torch.tensor([1.21, 1.0, 0.83, 0.31, 0.057])
        trials = sorted_rows.trials(delta, top)
        expected = error_of(weight, factors, delta, top)
        floor = (factors.double() * weight.double().square()).sum(1, keepdim=True) * 1e-12
        torch.testing.assert_close(trials[:, :, 3], torch.maximum(expected, floor), rtol=1e-5, atol=1e-10)
        codes = (weight.double()[:, None] / delta.double()[:, :, None]).abs().round().clamp(max=top)
        product = (factors.double() * weight.abs().double())[:, None]
        torch.testing.assert_close(trials[:, :, 0], delta.double())
        torch.testing.assert_close(trials[:, :, 1], (product * codes).sum(2), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            trials[:, :, 2], (factors.double()[:, None] * codes.square()).sum(2), rtol=1e-6, atol=0
        )

    @pytest.mark.parametrize("top", [1.0, 7.0, 127.0])
    def test_some_rows_and_small_batches_give_the_same_numbers(self, rows, top, monkeypatch):
        weight, _, sorted_rows = rows
        delta = weight.abs().amax(1, keepdim=True) / top * torch.tensor([1.0, 0.9, 0.5])
        whole = sorted_rows.trials(delta, top)
        some = torch.tensor([5, 0, 3])
        assert torch.equal(sorted_rows.trials(delta[some], top, some), whole[some])
        monkeypatch.setattr(_sorted_rows, "TEMPORARY", 1)
        assert torch.equal(sorted_rows.trials(delta, top), whole)

    def test_what_is_clipped(self, rows):
        weight, factors, sorted_rows = rows
        clip = weight.abs().amax(1, keepdim=True) * torch.tensor([1.0, 0.5, 0.013])
        size, f = weight.abs().double()[:, None], factors.double()[:, None]
        over = size > clip.double()[:, :, None]
        beyond, inside = sorted_rows.clipped(clip)
        expected = torch.where(over, f * (size - clip.double()[:, :, None]).square(), 0.0).sum(2)
        torch.testing.assert_close(beyond, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(inside, torch.where(over, 0.0, f).sum(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 9, 12])
def test_leaving_ratios_out_never_costs_the_best_of_the_grid(rows, bits):
    weight, factors, sorted_rows = rows
    top = 2.0 ** (bits - 1) - 1
    found = error_of(weight, factors, best_step(sorted_rows, top), top)[:, 0]
    grid = error_of(weight, factors, weight.abs().amax(1, keepdim=True) / top * torch.tensor(RATIOS), top)
    rounding = (factors.double() * weight.double().square()).sum(1) * 2e-12
    assert (found <= grid.amin(1) * (1 + 1e-5) + rounding).all()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_weights_on_a_grid_keep_it(bits):
    """Nothing is lost at c = 1, so nothing is to be gained by another step: a quantized row is a fixed point."""
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (4, 50), generator=torch.Generator().manual_seed(bits))
    codes[:, 0] = top
    step = torch.tensor([[0.1], [1e-6], [3.7], [2e4]])
    weight = codes * step
    assert torch.equal(least_squares_ladder(weight, [float(top)]), weight.abs().amax(1, keepdim=True) / top)


@pytest.mark.parametrize("top", [1.0, 3.0, 31.0, 127.0, 255.0])
@pytest.mark.parametrize("n", [9, 300, 5000])
def test_order_sign_and_company_do_not_matter(top, n):
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(6, n, generator=generator)
    found = least_squares_ladder(weight, [top])
    turned = torch.where(torch.rand(6, n, generator=generator) < 0.5, -weight, weight)
    assert torch.equal(least_squares_ladder(turned[:, torch.randperm(n, generator=generator)], [top]), found)
    assert torch.equal(torch.cat([least_squares_ladder(row[None], [top]) for row in weight]), found)
    assert torch.equal(least_squares_ladder(weight * 2.0**20, [top]), found * 2.0**20)
