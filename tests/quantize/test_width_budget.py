"""Rounding to a budget: met from below, as closely as the units allow, order kept."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.errors import UserError
from fairquant.quantize.width_budget import round_to_budget


def average(widths, sizes):
    return float((widths * sizes).sum() / sizes.sum())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("target", [2.0, 3.3, 4.0, 7.9, 8.0])
def test_from_below_and_close(seed, target):
    rng = np.random.default_rng(seed)
    widths, sizes = rng.uniform(2, 8, 300), rng.integers(1, 40, 300)
    result = round_to_budget(widths, sizes, target=target, bit_min=2, bit_max=8)
    assert result.min() >= 2 and result.max() <= 8
    assert average(result, sizes) <= target + 1e-9
    can_rise = sizes[result < 8]
    if len(can_rise):
        assert (target - average(result, sizes)) * sizes.sum() < can_rise.min() + 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_equal_sizes_are_one_shift(seed):
    """Brute force: among all shifts on a fine grid, none that meets the budget has a larger average."""
    rng = np.random.default_rng(seed)
    widths, sizes = rng.uniform(2, 8, 40), np.ones(40, dtype=np.int64)
    result = round_to_budget(widths, sizes, target=4.3, bit_min=2, bit_max=8)
    shifts = np.linspace(-6, 6, 24001)
    rounded = np.clip(np.floor(widths + shifts[:, None] + 0.5), 2, 8)
    allowed = rounded[rounded.mean(1) <= 4.3 + 1e-9]
    best = allowed[allowed.mean(1).argmax()]
    assert result.mean() >= best.mean()
    assert np.abs(result - best).sum() <= 1


def test_widths_on_target_stay():
    widths, sizes = np.array([2.0, 4.0, 8.0, 2.0]), np.array([10, 10, 10, 10])
    assert round_to_budget(widths, sizes, target=4.0, bit_min=2, bit_max=8).tolist() == [2, 4, 8, 2]


def test_large_units_leave_room_for_small_ones():
    result = round_to_budget(np.array([4.0, 3.9, 3.8]), np.array([100, 3, 3]), target=3.5, bit_min=2, bit_max=8)
    assert result.tolist()[0] == 3  # a whole step of the large unit would break the budget
    assert 3.45 < average(result, np.array([100, 3, 3])) <= 3.5 or result.tolist()[1:] == [8, 8]


def test_refuses_the_impossible():
    with pytest.raises(UserError, match="^target_bits: got 1.5; allowed: at least bit_min 2$"):
        round_to_budget(np.array([4.0]), np.array([1]), target=1.5, bit_min=2, bit_max=8)
