"""Arithmetic of whole numbers as onnxruntime's CPU kernels do it, down to the order of their float32 roundings.

q are codes, s scales (float32), z zero points; ⌊·⌉ rounds halves to even; every operation on scales is one float32
operation; ``clamp`` is to the codes of the result.

- Q:  q = clamp(⌊x / s⌉ + z)           DQ:  x = (q − z) · s
- convolution, matrix product: a = Σ (q_x − z_x) · (q_w − z_w) + b, a 32-bit integer;
  to codes: clamp(⌊float32(a) · ((s_x · s_w) / s_y)⌉ + z_y)       to floats: float32(a) · (s_x · s_w)
- sum, with r_a = s_a / s_y, r_b = s_b / s_y and fused multiply-adds:
  c = z_y − fma(r_a, z_a, r_b · z_b),  clamp(⌊fma(q_a, r_a, fma(q_b, r_b, c))⌉)
- global average of n numbers: clamp(⌊float32(Σ q − n · z_x) · (s_x / (s_y · n))⌉ + z_y)
- average of k × k numbers: clamp(⌊(Σ s_x · (q − z_x) / n) / s_y + z_y⌉), the float32 sum in row-major order; of a
  window as large as the image the global average

In sums and averages z_y is rounded together with the rest, so it matters where codes begin: int8 codes are counted from
−128 there, as onnxruntime on x86 does where it reads int8 as uint8.

Sums of products are taken in floating point, in float32 where no partial sum can reach 2^24 and in float64 otherwise:
both hold every whole number that can occur, so the order of summation does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fairquant.errors import UserError
from fairquant.export.arithmetic.graph import Array, Grid
from fairquant.export.arithmetic.window import Window

EXACT_FLOAT32 = 2**24
WORD = 2**32
TORCH_TYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.int8): torch.int8, np.dtype(np.int32): torch.int32}


def _single(value: Array) -> np.float32:
    return np.float32(value.reshape(()))


def to_codes(rounded: Tensor, grid: Grid) -> Tensor:
    """Return whole numbers (floating, any shape) plus the zero point as codes, clamped. Overwrites ``rounded``."""
    zero = int(grid.zero)
    return rounded.clamp_(grid.least - zero, grid.largest - zero).add_(zero).to(TORCH_TYPES[grid.zero.dtype])


def spread(values: Array, dimensions: int, axis: int) -> Tensor:
    """Return per-channel values (channels,) or () as a tensor that broadcasts along ``axis``."""
    tensor = torch.from_numpy(np.array(values))
    if tensor.ndim == 0:
        return tensor
    shape = [1] * dimensions
    shape[axis] = -1
    return tensor.reshape(shape)


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """Return the codes of float32 ``x`` on a grid with one scale."""
    if not grid.single:
        raise UserError("QuantizeLinear: got a scale per channel; allowed: one scale for an activation")
    return to_codes((x / float(grid.scale)).round_(), grid)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """Return the float32 numbers that codes stand for."""
    zero = spread(grid.zero.astype(np.int64), codes.ndim, grid.axis)
    scale = spread(grid.scale, codes.ndim, grid.axis)
    return (codes.to(torch.int64) - zero).float() * scale


@dataclass(frozen=True, eq=False)
class Products:
    """A constant weight whose products with activations are summed: codes less zero points, and what follows.

    Attributes:
        weight: whole numbers, float32 or float64, whichever holds every sum.
        bias: of the same type, (out,); None without.
        zero: of the activations.
        scale: float32 (out,) | (): what turns sums into the result.
        wraps: whether sums can leave 32 bits, so that they must wrap around.
        result: the grid of the result; None for floating numbers.
    """

    weight: Tensor
    bias: Tensor | None
    zero: int
    scale: Tensor
    wraps: bool
    result: Grid | None

    @classmethod
    def of(
        cls, codes: Array, weight: Grid, bias: Array | None, activation: Grid, result: Grid | None, *, out: int,
        alpha: float = 1.0,
    ) -> Products:  # fmt: skip
        """Prepare a weight whose dimension ``out`` are the outputs; ``alpha`` multiplies scales as in Gemm."""
        zeros = spread(weight.zero.astype(np.int64), codes.ndim, out).numpy()
        levels = codes.astype(np.int64) - zeros
        others = tuple(place for place in range(codes.ndim) if place != out)
        largest = max(int(activation.zero) - activation.least, activation.largest - int(activation.zero))
        bound = np.abs(levels).sum(axis=others) * largest
        if bias is not None:
            bound = bound + np.abs(bias.astype(np.int64))
        dtype = torch.float32 if int(bound.max(initial=0)) < EXACT_FLOAT32 else torch.float64
        scale = np.float32(alpha) * _single(activation.scale) * weight.scale
        if result is not None:
            scale = scale / _single(result.scale)
        return cls(
            torch.from_numpy(levels).to(dtype), None if bias is None else torch.from_numpy(bias.copy()).to(dtype),
            int(activation.zero), torch.from_numpy(np.array(scale, dtype=np.float32)),
            int(bound.max(initial=0)) >= WORD // 2, result,
        )  # fmt: skip

    def centred(self, codes: Tensor) -> Tensor:
        """Return the activations' codes less their zero point, in the weight's type."""
        x = codes.to(self.weight.dtype)
        return x.sub_(self.zero) if self.zero else x

    def finish(self, sums: Tensor, *, trailing: int) -> Tensor:
        """Return the result of sums whose outputs are the dimension before ``trailing`` others. Overwrites ``sums``."""
        shape = (-1,) + (1,) * trailing
        if self.bias is not None:
            sums.add_(self.bias.reshape(shape))
        if self.wraps:
            sums = torch.remainder(sums + WORD // 2, WORD) - WORD // 2
        scaled = sums.float().mul_(self.scale.reshape(shape) if self.scale.ndim else self.scale)
        return scaled if self.result is None else to_codes(scaled.round_(), self.result)


def convolve(codes: Tensor, products: Products, window: Window) -> Tensor:
    """Return the result of a two-dimensional convolution of ``codes`` (B, C, H, W)."""
    x, padding = products.centred(codes), window.pads[:2]
    if window.pads[:2] != window.pads[2:]:
        x, padding = F.pad(x, window.padding), (0, 0)
    sums = F.conv2d(x, products.weight, None, window.strides, padding, window.dilations, window.groups)
    return products.finish(sums, trailing=2)


def multiply(codes: Tensor, products: Products) -> Tensor:
    """Return the result of the matrix product of ``codes`` (…, K) with a weight (K, N)."""
    return products.finish(products.centred(codes) @ products.weight, trailing=0)


def add(a: Tensor, b: Tensor, first: Grid, second: Grid, result: Grid) -> Tensor:
    """Return the codes of the sum of two tensors of one shape."""
    if a.shape != b.shape:
        raise UserError(f"Add: got codes of shapes {[*a.shape]} and {[*b.shape]}; allowed: one shape")
    ratio_a, ratio_b = first.scale / result.scale, second.scale / result.scale
    zero_a, zero_b, zero = (np.float32(int(grid.zero) - grid.least) for grid in (first, second, result))
    both = np.float32(np.float64(ratio_a) * zero_a + np.float64(np.float32(ratio_b * zero_b)))
    constant = np.float32(zero - both)
    left, right = a.double().sub_(first.least), b.double().sub_(second.least)
    total = right.mul_(float(ratio_b)).add_(float(constant)).float().double()
    return _from_unsigned(total.add_(left.mul_(float(ratio_a))).float().round_(), result)


def _from_unsigned(rounded: Tensor, grid: Grid) -> Tensor:
    """Return the codes of whole numbers that count from the least code."""
    return rounded.clamp_(0, grid.largest - grid.least).add_(grid.least).to(TORCH_TYPES[grid.zero.dtype])


def global_average(codes: Tensor, grid: Grid, result: Grid) -> Tensor:
    """Return the codes of the mean over the last two dimensions of ``codes`` (B, C, H, W), kept with length 1."""
    count = codes.shape[-2] * codes.shape[-1]
    sums = codes.to(torch.int64).sum(dim=(-2, -1), keepdim=True) - count * int(grid.zero)
    scale = _single(grid.scale) / (_single(result.scale) * np.float32(count))
    return to_codes((sums.float() * float(scale)).round_(), result)


def average(
    codes: Tensor, grid: Grid, result: Grid, *, kernel: Sequence[int], window: Window, count_padding: bool
) -> Tensor:
    """Return the codes of the mean over a moving window of ``codes`` (B, C, H, W)."""
    if tuple(kernel) == tuple(codes.shape[-2:]) and not any(window.pads):
        return global_average(codes, grid, result)
    x = window.padded(dequantize(codes, grid), kernel, outside=0.0, beyond=0.0)
    ones = torch.ones((1, 1, *codes.shape[-2:]), dtype=torch.float32)
    inside = window.padded(ones, kernel, outside=float(count_padding), beyond=0.0)
    tall, wide = (
        (size - span) // step + 1 for size, span, step in zip(x.shape[-2:], kernel, window.strides, strict=True)
    )
    total, count = torch.zeros((*x.shape[:2], tall, wide)), torch.zeros((1, 1, tall, wide))
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = slice(row, row + (tall - 1) * window.strides[0] + 1, window.strides[0])
            columns = slice(column, column + (wide - 1) * window.strides[1] + 1, window.strides[1])
            total += x[..., rows, columns]
            count += inside[..., rows, columns]
    mean = total.div_(count).div_(float(result.scale)).add_(float(int(result.zero) - result.least))
    return _from_unsigned(mean.round_(), result)


def max_pool(x: Tensor, *, kernel: Sequence[int], window: Window) -> Tensor:
    """Return the largest of a moving window of ``x`` (B, C, H, W): floats, or codes of 8 bits."""
    if x.is_floating_point():
        x = window.padded(x, kernel, outside=-math.inf, beyond=-math.inf)
        return F.max_pool2d(x, tuple(kernel), window.strides, 0, window.dilations)
    return max_pool(x.float(), kernel=kernel, window=window).to(x.dtype)
