"""The squared error of rows of weights at any step size, from sums over the sorted weights.

For weights f ≥ 0 (1: plain least squares), a step Δ, codes 0…M and thresholds t_k = (k − ½)·Δ, let N(t) and C(t) be the
sums of f and of f·|w| over the weights with |w| > t. As |w| gets code q where it exceeds q thresholds,

    Σ f·(|w| − Δq)² = S − 2Δ·A + Δ²·B,   A = Σ f|w|q = Σ_k C(t_k),   B = Σ f q² = Σ_k (2k − 1)·N(t_k),   S = Σ f w²

so that an error costs M binary searches in a sorted row instead of several operations per weight. A weight that lies
on a threshold up to the last place of float32 may get the neighbouring code: its error is the same there.

Sums are in float64: the error, 1e-5 of S at 8 bits and 1e-10 at 16, is a difference of numbers of the size of S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RESOLUTION = 1e-12
"""Errors below this part of S are rounding: they count as equal to it."""
SEARCH_COST = 10
"""A binary search is taken to cost as much as this many weights looked at one by one: 8 to 16 are quickest on a CPU."""
TEMPORARY = 1 << 20
"""Searches, or weights looked at, at a time: about 40 MiB of temporaries."""
STEP, FIRST, SECOND, ERROR = range(4)
"""Columns of a trial: Δ, A, B and the error."""


@dataclass(frozen=True)
class SortedRows:
    """Rows of weights by falling magnitude, with running sums; no row influences another.

    Attributes:
        low: −|w| (r, n), ascending.
        factors: f in the same order, float64; None: 1.
        mass: sums of f over the first 0…n weights, (r, n + 1), float64; None: 0…n.
        first: the same sums of f|w|.
        second: the same sums of f w².
    """

    low: Tensor
    factors: Tensor | None
    mass: Tensor | None
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, weight: Tensor, factors: Tensor | None) -> SortedRows:
        """Sort rows (r, n) with their f ≥ 0, (r, n); None stands for 1."""
        low, factors = sort_rows(weight.detach().abs().neg_(), factors)
        size = low.double().neg_()
        product = size if factors is None else factors * size
        mass = None if factors is None else running_sums(factors)
        return cls(low, factors, mass, running_sums(product), running_sums(product * size))

    def trials(self, delta: Tensor, top: float, rows: Tensor | None = None) -> Tensor:
        """Try step sizes ``delta`` (r, K) with M = ``top`` on ``rows`` (indices; None: all): (r, K, 4) float64.

        The last dimension is Δ, A, B, error. The error is at least what is told from rounding.
        """
        by_search = top * SEARCH_COST < self.low.shape[1]
        moments = self._by_search if by_search else self._one_by_one
        each = max(1, delta.shape[0] * (int(top) if by_search else self.low.shape[1]))
        total = _of_rows(self.second[:, -1:], rows)
        parts, at_once = [], max(1, TEMPORARY // each)
        for start in range(0, delta.shape[1], at_once):
            part = delta[:, start : start + at_once]
            first, second = moments(part, top, rows)
            step = part.double()
            error = total - 2 * step * first + step.square() * second
            parts.append(torch.stack([step, first, second, torch.maximum(error, total * RESOLUTION)], 2))
        return torch.cat(parts, 1)

    def clipped(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ f·(|w| − t)² over the weights with |w| > t, and Σ f over the others, for t = ``clip`` (r, K)."""
        place = torch.searchsorted(self.low, clip.neg())
        mass, level = self._mass_at(place), clip.double()
        beyond = self.second.gather(1, place) - 2 * level * self.first.gather(1, place) + level.square() * mass
        return beyond, self._mass_at(torch.full_like(place[:, :1], self.low.shape[1])) - mass

    def _by_search(self, delta: Tensor, top: float, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        codes = torch.arange(1, int(top) + 1, dtype=delta.dtype, device=delta.device)
        place = torch.searchsorted(_of_rows(self.low, rows), (delta[:, :, None] * (0.5 - codes)).flatten(1))
        if rows is None:
            first, mass = self.first.gather(1, place), self._mass_at(place)
        else:
            flat = place + rows[:, None] * self.first.shape[1]
            first = self.first.view(-1)[flat]
            mass = place.double() if self.mass is None else self.mass.view(-1)[flat]
        shape = (*delta.shape, len(codes))
        return first.view(shape).sum(2), mass.view(shape).mul_(2 * codes.double() - 1).sum(2)

    def _one_by_one(self, delta: Tensor, top: float, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        size = _of_rows(self.low, rows).neg()[:, None]
        codes = (size / delta[:, :, None]).round_().clamp_(max=top).double()
        weighted = codes if self.factors is None else codes * _of_rows(self.factors, rows)[:, None]
        return (weighted * size.double()).sum(2), (weighted * codes).sum(2)

    def _mass_at(self, place: Tensor) -> Tensor:
        return place.double() if self.mass is None else self.mass.gather(1, place)


def _of_rows(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def sort_rows(low: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Sort rows, and ``factors`` with them; on a CPU by numpy, several times as quick as torch there."""
    if factors is None:
        return torch.from_numpy(np.sort(low.numpy(), axis=1)) if low.is_cpu else low.sort(1).values, None
    order = torch.from_numpy(np.argsort(low.numpy(), axis=1)) if low.is_cpu else low.argsort(1)
    return low.gather(1, order), factors.gather(1, order).double()


def running_sums(values: Tensor) -> Tensor:
    """Return the sums of the first 0…n values of each row (r, n): (r, n + 1)."""
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1)
    torch.cumsum(values, 1, out=sums[:, 1:])
    return sums
