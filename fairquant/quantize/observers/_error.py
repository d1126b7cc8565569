"""The squared error a grid is expected to make on the values of a histogram, spread evenly within each bin.

In units of Δ, with v = x/Δ + z and r(v) = clamp(round(v), q_min, q_max), the error (v − r)² has the antiderivative
r/12 + (v − r)³/3 on and off the grid, so that a bin [a, b] with n values is expected to add
n · Δ² · (A(v_b) − A(v_a)) / (v_b − v_a).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairquant.quantize.affine import Codes

AT_ONCE = 1 << 20
"""Numbers in a temporary."""
NARROW = 1e-6
"""Of a step: a bin narrower than this is a single value, for A(v_b) − A(v_a) would be rounded away."""


def expected_errors(edges: Tensor, counts: Tensor, low: Tensor, high: Tensor, codes: Codes) -> Tensor:
    """Return the error summed over all values on the grid of each range, (c,) float64.

    Args:
        edges: of the bins, ascending, float64 (k + 1,).
        counts: values in each bin, (k,).
        low: ends of the ranges, (c,) float32, as an observer would return them.
        high: likewise.
        codes: the grid's integers.

    >>> edges, counts = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([12])
    >>> top = torch.tensor([3.0, 1.5])  # 12 values spread over one step, over two
    >>> expected_errors(edges, counts, torch.zeros(2), top, Codes.of(2, "asymmetric"))
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    scales, zero_points = codes.grid(low, high)
    used = counts.nonzero().flatten()
    begin, end, weights = edges[:-1][used], edges[1:][used], counts[used].double()
    rows = max(1, AT_ONCE // max(1, len(used)))
    parts = []
    for scale, zero_point in zip(torch.split(scales, rows), torch.split(zero_points, rows), strict=True):
        step, shift = scale.double()[:, None], zero_point.double()[:, None]
        mean = _mean_error(begin / step + shift, end / step + shift, codes)
        parts.append((mean @ weights) * step[:, 0].square())
    return torch.cat(parts)


def _mean_error(begin: Tensor, end: Tensor, codes: Codes) -> Tensor:
    """Return the mean of (v − r(v))² over [begin, end], in steps."""
    width = end - begin
    narrow = width < NARROW
    middle = (begin + end) / 2
    at_middle = (middle - _nearest(middle, codes)).square()
    spread = (_antiderivative(end, codes) - _antiderivative(begin, codes)) / torch.where(narrow, 1.0, width)
    return torch.where(narrow, at_middle, spread)


def _nearest(v: Tensor, codes: Codes) -> Tensor:
    return v.round().clamp_(codes.least, codes.largest)


def _antiderivative(v: Tensor, codes: Codes) -> Tensor:
    nearest = _nearest(v, codes)
    return nearest / 12 + (v - nearest).pow_(3) / 3
