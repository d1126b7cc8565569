"""The squared error of rows of weights on asymmetric grids, from sums over the weights in ascending order.

For weights f ≥ 0 (1: plain least squares), a step Δ and a zero point z, a weight's multiple of Δ is q = −z + the number
of thresholds t_k = (k − ½)·Δ, k = 1 − z … L − z, below it. With N(t) and C(t) the sums of f and f·w over the weights
above t,

    Σ f·(w − Δq)² = S − 2Δ·A + Δ²·B,   A = Σ f w q = −z·ΣFw + Σ_k C(t_k),   B = Σ f q² = z²·Σf + Σ_k (2k − 1)·N(t_k)

(S = Σ f w²), as in ``_sorted_rows``, whose bounds on rounding and on memory hold here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairquant.quantize.fake_quant import clip_
from fairquant.quantize.scales._sorted_rows import RESOLUTION, SEARCH_COST, TEMPORARY, running_sums, sort_rows


@dataclass(frozen=True)
class Trial:
    """Grids tried on rows: Δ and z (r, K), A and B of the formula above and the error, float64 (r, K)."""

    delta: Tensor
    zero: Tensor
    first: Tensor
    second: Tensor
    error: Tensor

    def best(self, before: Trial | None = None) -> Trial:
        """Return the first of the least errors of each row, (r, 1) each; ``before`` stays unless it is worse."""
        least = self.error.argmin(1, keepdim=True)
        found = Trial(*(getattr(self, name).gather(1, least) for name in self.__dataclass_fields__))
        if before is None:
            return found
        better = found.error < before.error
        return Trial(*(torch.where(better, getattr(found, n), getattr(before, n)) for n in self.__dataclass_fields__))


@dataclass(frozen=True)
class SignedRows:
    """Rows of weights in ascending order, with running sums; no row influences another.

    Attributes:
        values: w (r, n), ascending.
        factors: f in the same order, float64; None: 1.
        mass: sums of f over the first 0…n weights, (r, n + 1), float64.
        first: the same sums of f·w.
        second: the same sums of f·w².
    """

    values: Tensor
    factors: Tensor | None
    mass: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, weight: Tensor, factors: Tensor | None) -> SignedRows:
        """Sort rows (r, n) with their f ≥ 0, (r, n); None stands for 1."""
        values, factors = sort_rows(weight.detach(), factors)
        exact = values.double()
        mass = torch.ones_like(exact) if factors is None else factors
        product = exact * mass
        return cls(values, factors, running_sums(mass), running_sums(product), running_sums(product * exact))

    def trial(self, delta: Tensor, zero: Tensor, levels: int) -> Trial:
        """Try grids of ``levels`` steps with Δ and z, (r, K) each, of the weights' type."""
        by_search = levels * SEARCH_COST < self.values.shape[1]
        moments = self._by_search if by_search else self._one_by_one
        each = max(1, delta.shape[0] * (levels if by_search else self.values.shape[1]))
        at_once = max(1, TEMPORARY // each)
        parts = [
            moments(delta[:, start : start + at_once], zero[:, start : start + at_once], levels)
            for start in range(0, delta.shape[1], at_once)
        ]
        first, second = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        total, step = self.second[:, -1:], delta.double()
        error = total - 2 * step * first + step.square() * second
        return Trial(delta, zero, first, second, torch.maximum(error, total * RESOLUTION))

    def cut(self, low: Tensor, high: Tensor) -> Tensor:
        """Return Σ f·(distance)² of the weights below ``low`` (r, K) and of those above ``high`` (r, K): (2, r, K)."""
        below = torch.searchsorted(self.values, low.contiguous())
        above = torch.searchsorted(self.values, high.contiguous())
        parts = []
        for end, mass, first, second in (
            (low.double(), self.mass.gather(1, below), self.first.gather(1, below), self.second.gather(1, below)),
            (high.double(), *(sums[:, -1:] - sums.gather(1, above) for sums in (self.mass, self.first, self.second))),
        ):
            parts.append((second - 2 * end * first + end.square() * mass).clamp_min_(0))
        return torch.stack(parts)

    def _by_search(self, delta: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        count = torch.arange(1, levels + 1, dtype=delta.dtype, device=delta.device)
        codes = count - zero[:, :, None]
        place = torch.searchsorted(self.values, ((codes - 0.5) * delta[:, :, None]).flatten(1))
        above = (self.first[:, -1:] - self.first.gather(1, place)).view(codes.shape).sum(2)
        mass = (self.mass[:, -1:] - self.mass.gather(1, place)).view(codes.shape).mul_(2 * codes.double() - 1).sum(2)
        z = zero.double()
        return above - z * self.first[:, -1:], mass + z.square() * self.mass[:, -1:]

    def _one_by_one(self, delta: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        codes = (self.values[:, None] / delta[:, :, None]).round_()
        codes = clip_(codes, -zero[:, :, None], levels - zero[:, :, None]).double()
        weighted = codes if self.factors is None else codes * self.factors[:, None]
        return (weighted * self.values.double()[:, None]).sum(2), (weighted * codes).sum(2)
