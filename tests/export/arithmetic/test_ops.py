"""The arithmetic of whole numbers against numbers computed by hand and with Python's exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from fairquant.errors import UserError
from fairquant.export.arithmetic import ops
from fairquant.export.arithmetic.floats import FLOAT_OPERATORS
from fairquant.export.arithmetic.graph import Grid
from fairquant.export.arithmetic.window import Window, window_of

PLAIN = Window((1, 1), (1, 1), (0, 0, 0, 0))


def grid(scale, zero, dtype=np.uint8, axis=0):
    return Grid(np.asarray(scale, np.float32), np.asarray(zero, dtype), axis)


def fused(a, b, c) -> np.float32:
    """a · b + c rounded once, from fractions."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.float32(float(exact))
    around = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    return min(around, key=lambda value: (abs(Fraction(float(value)) - exact), value.view(np.uint32) & 1))


def test_quantize_rounds_halves_to_even_and_clamps():
    x = torch.tensor([-1.0, 0.25, 0.75, 1.25, 1000.0, -1000.0])
    assert ops.quantize(x, grid(0.5, 10)).tolist() == [8, 10, 12, 12, 255, 0]
    assert ops.quantize(x, grid(0.5, -1, np.int8)).tolist() == [-3, -1, 1, 1, 127, -128]


def test_quantize_divides():
    """x / s and x · (1 / s) differ; the file format says division."""
    random = np.random.default_rng(0)
    x, scale = random.normal(size=100000).astype(np.float32), np.float32(0.0123)
    expected = np.clip(np.rint(x / scale) + 128, 0, 255)
    assert np.array_equal(ops.quantize(torch.from_numpy(x), grid(scale, 128)).numpy(), expected)


def test_quantize_per_channel_is_refused():
    with pytest.raises(UserError, match="got a scale per channel; allowed: one scale for an activation"):
        ops.quantize(torch.ones(2), grid([1, 2], [0, 0]))


def test_dequantize_per_channel():
    codes = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
    by_row = ops.dequantize(codes, grid([0.5, 2], [1, -1], np.int8))
    assert by_row.tolist() == [[0.0, 0.5], [8.0, 10.0]]
    assert ops.dequantize(codes, grid([0.5, 2], [1, -1], np.int8, axis=1)).tolist() == [[0.0, 6.0], [1.0, 10.0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_every_pair_of_codes_is_added_with_fused_multiply_adds(dtype):
    random = np.random.default_rng(3)
    least, largest = (0, 255) if dtype is np.uint8 else (-128, 127)
    scales = random.uniform(0.01, 0.1, 3).astype(np.float32)
    zeros = random.integers(least, largest + 1, 3)
    first, second, result = (grid(scale, zero, dtype) for scale, zero in zip(scales, zeros, strict=True))
    a, b = random.integers(least, largest + 1, (2, 2000)).astype(dtype)
    ratio_a, ratio_b = scales[0] / scales[2], scales[1] / scales[2]
    zero_a, zero_b, zero = zeros - least
    constant = np.float32(zero) - fused(ratio_a, zero_a, np.float32(ratio_b * np.float32(zero_b)))
    pairs = zip(a.astype(int) - least, b.astype(int) - least, strict=True)
    sums = [fused(x, ratio_a, fused(y, ratio_b, constant)) for x, y in pairs]
    expected = np.clip(np.rint(sums), 0, 255) + least
    got = ops.add(torch.from_numpy(a), torch.from_numpy(b), first, second, result)
    assert np.array_equal(got.numpy(), expected)


def test_adding_other_shapes_is_refused():
    one = grid(1, 0)
    with pytest.raises(UserError, match=r"^Add: got codes of shapes \[2\] and \[1\]; allowed: one shape$"):
        ops.add(torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8), one, one, one)


def test_a_product_by_hand():
    """(5 − 2) · 4 + (1 − 2) · (−3) + 6 = 21; 21 · (0.5 · 0.25 / 0.75) = 3.5, the even neighbour is 4."""
    weight = np.array([[4], [-3]], np.int8)
    products = ops.Products.of(
        weight, grid([0.25], [0], np.int8), np.array([6], np.int32), grid(0.5, 2), grid(0.75, 7), out=1
    )
    codes = torch.tensor([[5, 1]], dtype=torch.uint8)
    assert products.weight.dtype == torch.float32
    assert ops.multiply(codes, products).tolist() == [[11]]
    floating = ops.Products.of(weight, grid([0.25], [0], np.int8), None, grid(0.5, 2), None, out=1)
    assert ops.multiply(codes, floating).tolist() == [[15 * 0.125]]


def test_sums_beyond_float32_stay_whole():
    """2^24 + 1 is no float32: a sum of that size is taken in float64 and rounded once, as a 32-bit integer is."""
    channels = 1200
    weight = np.full((channels, 1), 127, np.int8)
    codes = torch.full((1, channels), 255, dtype=torch.uint8)
    codes[0, 0] = 254
    products = ops.Products.of(weight, grid([1.0], [0], np.int8), None, grid(1.0, 0), None, out=1)
    assert products.weight.dtype == torch.float64
    assert ops.multiply(codes, products).item() == float(np.float32(127 * (255 * channels - 1)))


def test_sums_beyond_32_bits_wrap_around():
    weight, bias = np.array([[127]], np.int8), np.array([2**31 - 1], np.int32)
    products = ops.Products.of(weight, grid([1.0], [0], np.int8), bias, grid(1.0, 0), None, out=1)
    assert products.wraps
    assert ops.multiply(torch.tensor([[1]], dtype=torch.uint8), products).item() == float(np.float32(-(2**31) + 126))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 1)])
def test_convolution_against_int64_loops(groups, pads):
    random = np.random.default_rng(groups)
    codes = random.integers(0, 256, (2, 4, 6, 5)).astype(np.uint8)
    weight = random.integers(-128, 128, (4, 4 // groups, 3, 2)).astype(np.int8)
    bias = random.integers(-500, 500, 4).astype(np.int32)
    zero, window = 77, Window((2, 1), (1, 2), pads, groups)
    products = ops.Products.of(weight, grid(np.ones(4), np.zeros(4), np.int8), bias, grid(1.0, zero), None, out=0)
    got = ops.convolve(torch.from_numpy(codes), products, window).numpy()
    top, left, bottom, right = pads
    x = np.pad(codes.astype(np.int64) - zero, ((0, 0), (0, 0), (top, bottom), (left, right)))
    expected = np.zeros(got.shape, np.int64)
    for image, out, row, column in np.ndindex(*got.shape):
        first = out // (4 // groups) * (4 // groups)
        part = x[image, first : first + 4 // groups, row * 2 : row * 2 + 3, column : column + 3 : 2]
        expected[image, out, row, column] = (part * weight[out]).sum() + bias[out]
    assert np.array_equal(got, expected)


def test_global_average_by_hand():
    codes = torch.tensor([[[[1, 2], [3, 5]]]], dtype=torch.uint8)  # mean of q − 1 is 1.75
    assert ops.global_average(codes, grid(1.0, 1), grid(0.5, 10)).tolist() == [[[[14]]]]  # 3.5 → 4
    assert ops.global_average(codes, grid(1.0, 1), grid(0.7, 10)).tolist() == [[[[12]]]]  # 2.5 → 2


@pytest.mark.parametrize(("count_padding", "corner"), [(False, 6), (True, 3)])
def test_average_counts_what_it_is_told(count_padding, corner):
    """The upper windows hold one row of padding and one of numbers 7 − 1; the lower ones two rows of numbers."""
    codes = torch.full((1, 1, 2, 2), 7, dtype=torch.uint8)
    got = ops.average(
        codes, grid(1.0, 1), grid(1.0, 0), kernel=(2, 1), window=Window((1, 1), (1, 1), (1, 0, 0, 0)),
        count_padding=count_padding,
    )  # fmt: skip
    assert got.tolist() == [[[[corner, corner], [6, 6]]]]


def test_max_pool_of_codes_ignores_padding():
    codes = torch.tensor([[[[-128, -5], [-7, -100]]]], dtype=torch.int8)
    pooled = ops.max_pool(codes, kernel=(2, 2), window=Window((2, 2), (1, 1), (1, 1, 1, 1)))
    assert pooled.dtype == torch.int8
    assert pooled.tolist() == [[[[-128, -5], [-7, -100]]]]


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("pad", [0, 1])
def test_windows_that_reach_past_the_end_against_torch(size, pad):
    images = torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(size))
    window = Window((2, 3), (1, 1), (pad,) * 4, rounds_up=True)
    expected = torch.nn.functional.max_pool2d(images, (3, 2), (2, 3), pad, ceil_mode=True)
    assert torch.equal(ops.max_pool(images, kernel=(3, 2), window=window), expected)
    attributes = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [pad] * 4, "ceil_mode": 1, "auto_pad": b"NOTSET"}
    expected = torch.nn.functional.avg_pool2d(images, (3, 2), (2, 3), pad, ceil_mode=True, count_include_pad=False)
    assert torch.allclose(FLOAT_OPERATORS["AveragePool"](attributes, images), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"auto_pad": b"SAME_UPPER"}, "c: got auto_pad SAME_UPPER; allowed: pads"),
        ({"strides": [1], "pads": [0, 0]}, r"c: got strides \(1,\) and pads \(0, 0\); allowed: images of two"),
    ],
)
def test_other_windows_are_refused(attributes, text):
    with pytest.raises(UserError, match=text):
        window_of(attributes, "c")
