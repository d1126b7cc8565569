"""Grids of exported activations against the fake quantization they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairquant.export.graph.grids import ActivationGrid
from fairquant.quantize.activation import ActivationQuantizer
from fairquant.quantize.affine import fake_quantize_affine


def quantizer(bits: int, scheme: str, low: float, high: float) -> ActivationQuantizer:
    made = ActivationQuantizer(bits=bits, scheme=scheme, observer="minmax")
    made.load_grid(*made.codes.grid(torch.tensor(low), torch.tensor(high)))
    return made


def numbers(grid: ActivationGrid, x: np.ndarray) -> np.ndarray:
    """QuantizeLinear, Clip, DequantizeLinear as ONNX defines them."""
    kind = np.iinfo(grid.dtype)
    codes = np.clip(np.rint(x / grid.scale) + grid.zero, kind.min, kind.max)
    return ((np.clip(codes, grid.least, grid.largest) - grid.zero) * grid.scale).astype(np.float32)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_stand_for_the_simulations_numbers(bits, scheme):
    q = quantizer(bits, scheme, -0.7, 2.3)
    grid, x = ActivationGrid.of(q), np.linspace(-4, 4, 4001, dtype=np.float32)
    assert grid.integer and grid.dtype == np.uint8 and grid.zero == (128 if scheme == "symmetric" else q.zero_point)
    wanted = fake_quantize_affine(torch.from_numpy(x), q.scale, q.zero_point, q.codes).numpy()
    differ = numbers(grid, x) != wanted  # x/Δ against x · (1/Δ): ties
    assert differ.mean() < 1e-3


def test_grids_that_are_not_integers():
    wide = ActivationGrid.of(quantizer(12, "symmetric", -1.0, 1.0))
    assert not wide.integer and not wide.dynamic and (wide.least, wide.largest, wide.zero) == (-2047, 2047, 0)
    dynamic = ActivationGrid.of(ActivationQuantizer(bits=8, scheme="asymmetric", observer="minmax", dynamic=True))
    assert dynamic.dynamic and not dynamic.integer and (dynamic.least, dynamic.largest) == (0, 255)


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-0.3, 1.0), (-np.inf, 0.5), (7.0, 9.0)])
@pytest.mark.parametrize(("bits", "scheme"), [(8, "asymmetric"), (4, "asymmetric"), (8, "symmetric")])
def test_cutting_codes_is_cutting_numbers(bits, scheme, low, high):
    grid = ActivationGrid.of(quantizer(bits, scheme, -0.7, 2.3))
    x = np.random.default_rng(0).normal(0, 3, 20000).astype(np.float32)
    assert np.array_equal(numbers(grid.within(low, high), x), numbers(grid, np.clip(x, low, high)))


def test_only_codes_that_the_type_lacks_need_no_clip():
    assert not ActivationGrid.of(quantizer(8, "asymmetric", -1.0, 1.0)).clips
    assert not ActivationGrid.of(quantizer(8, "asymmetric", 0.0, 1.0)).within(0.0, 1.0).clips
    assert ActivationGrid.of(quantizer(8, "symmetric", -1.0, 1.0)).clips
    assert ActivationGrid.of(quantizer(7, "asymmetric", -1.0, 1.0)).clips
    assert not ActivationGrid.of(quantizer(7, "asymmetric", -1.0, 1.0)).whole().clips


@pytest.mark.parametrize(("bits", "scheme"), [(8, "asymmetric"), (3, "asymmetric"), (8, "symmetric"), (5, "symmetric")])
def test_a_signed_grid_covers_the_range(bits, scheme):
    grid = ActivationGrid.of(quantizer(bits, scheme, -0.7, 2.3))
    signed = grid.signed()
    ends = [float(grid.scale) * (end - grid.zero) for end in (grid.least, grid.largest)]
    assert (signed.dtype, signed.zero, signed.clips) == (np.int8, 0, False)
    assert float(signed.scale) * 127 == pytest.approx(max(map(abs, ends)), rel=1e-6)
    if (bits, scheme) == (8, "symmetric"):
        assert signed.scale == grid.scale
