"""Batch norm folded into codes, and step sizes that an integer bias can be counted in, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.export.codes import CodedLayer
from fairquant.export.graph.lut import is_integer
from fairquant.export.graph.recode import LARGEST_BIAS, fit_for_bias, folded, integer_bias

NONE = np.empty(0, np.float32)


def layer(bits: list[int] | int, levels: list[list[int]], delta: list[float]) -> CodedLayer:
    """Return the layer whose ``levels`` (out, in) count ``delta`` (out,) or (1,)."""
    widths, whole = np.array(bits, np.uint8), np.array(levels)
    rows = np.broadcast_to(widths.reshape(-1, 1), whole.shape).astype(int)
    codes = np.where(rows == 1, whole > 0, whole + (1 << np.maximum(rows - 1, 0)) - 1) * (rows > 0)
    column = np.array(delta, np.float32).reshape(-1, 1)
    return CodedLayer(
        "fc", whole.shape, widths, "symmetric", codes.astype(np.uint16), column, None, NONE, None, NONE
    )  # fmt: skip


def test_factors_scale_mirror_and_prune():
    before = layer([2, 8, 1, 4, 0], [[1, -1, 0], [127, -5, 3], [1, -1, 1], [7, 0, -7], [0, 0, 0]], [0.5, 0.1, 2, 1, 1])
    factor = np.array([2.0, -0.3, -1.0, 0.0, 5.0])
    after = folded(before, factor)
    assert after.levels().tolist() == [[1, -1, 0], [-127, 5, -3], [-1, 1, -1], [0, 0, 0], [0, 0, 0]]
    assert after.bits.tolist() == [2, 8, 1, 0, 0] and is_integer(after)
    wanted = before.weight().astype(np.float64) * factor[:, None]
    np.testing.assert_allclose(after.weight(), wanted, rtol=2e-7, atol=0)


def test_one_width_and_step_for_a_layer_become_one_for_each_channel():
    after = folded(layer(3, [[3, -1], [0, 2]], [0.25]), np.array([4.0, 0.5]))
    assert (after.bits.tolist(), after.delta.tolist()) == ([3, 3], [[1.0], [0.125]])
    assert folded(layer(3, [[3, -1], [0, 2]], [0.25]), None).weight().tolist() == [[0.75, -0.25], [0.0, 0.5]]


def test_a_step_below_the_normal_numbers_prunes():
    after = folded(layer([8, 8], [[100], [100]], [1e-3, 1e-3]), np.array([1e-36, 1e-30]))
    assert after.bits.tolist() == [0, 8] and np.isfinite(after.delta).all() and (after.delta > 0).all()


def test_a_bias_that_fits_changes_nothing():
    before = folded(layer([8, 4], [[100, -3], [7, 1]], [0.01, 0.02]), None)
    bias = np.array([3.0, -0.2])
    after = fit_for_bias(before, bias, np.array([0.05]))
    assert after is not None and np.array_equal(after.levels(), before.levels())
    assert np.array_equal(after.delta, before.delta)
    codes, steps = integer_bias(after, bias, np.float32(0.05))
    assert codes.tolist() == [6000, -200] and codes.dtype == np.int32
    np.testing.assert_allclose(codes * steps.astype(np.float64), bias, rtol=1e-6)


def test_a_channel_switched_off_keeps_its_bias_and_rounds_its_codes():
    """Δ = 1e-12 against a bias of 5: the least step that fits is 5 / 2^30 / Δ_x."""
    before = folded(layer([8, 8], [[127, -90], [127, -90]], [1e-12, 0.01]), None)
    bias = np.array([5.0, 5.0])
    after = fit_for_bias(before, bias, np.array([0.05, 0.1]))
    assert after is not None
    assert after.levels().tolist() == [[0, 0], [127, -90]] and after.bits.tolist() == [0, 8]
    for scale in (0.05, 0.1):
        codes, steps = integer_bias(after, bias, np.float32(scale))
        assert np.abs(codes.astype(np.int64)).max() <= LARGEST_BIAS
        np.testing.assert_allclose(codes * steps.astype(np.float64), bias, rtol=2e-6)


def test_what_is_rounded_stays_within_half_a_step():
    before = folded(layer([8, 1], [[127, -90, 4], [1, -1, 1]], [1.5e-8, 1.5e-8]), None)
    after = fit_for_bias(before, np.array([2.0, 2.0]), np.array([0.1]))
    assert after is not None and after.bits.tolist() == [8, 1]
    step = after.delta[:, :1].astype(np.float64)
    assert (np.abs(after.weight() - before.weight().astype(np.float64)) <= step / 2 * 1.0001).all()
    assert step.min() == pytest.approx(2.0 / 2**30 / 0.1, rel=1e-5)


def test_one_bit_that_rounds_to_nothing_is_pruned():
    after = fit_for_bias(folded(layer([1], [[1, -1]], [1e-9]), None), np.array([2.0]), np.array([0.1]))
    assert after is not None and after.levels().tolist() == [[0, 0]] and after.bits.tolist() == [0]


def test_a_channel_without_codes_holds_its_bias_to_30_bits():
    after = fit_for_bias(folded(layer([0], [[0]], [1.0]), None), np.array([0.7]), np.array([0.1]))
    assert after is not None
    codes, steps = integer_bias(after, np.array([0.7]), np.float32(0.1))
    assert 2**28 < codes[0] <= LARGEST_BIAS
    assert codes[0] * np.float64(steps[0]) == pytest.approx(0.7, rel=1e-7)


def test_sums_that_need_more_than_30_bits_stay_floating():
    wide = folded(layer([8], [[127] * 40000], [0.01]), None)
    assert fit_for_bias(wide, np.array([0.0]), np.array([0.1])) is None
