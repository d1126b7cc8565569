"""Observers that search the range with the least expected squared error over a histogram of everything seen."""

from __future__ import annotations

import torch
from torch import Tensor

from fairquant.quantize.affine import Codes
from fairquant.quantize.observers._counts import Counts
from fairquant.quantize.observers._error import expected_errors

SIDE = 1 << 11
"""Bins on either side of 0: a bin is at most max |x| / 2^10 wide."""

RATIO, STEPS = 0.75, 24
"""The first round tries the shares 1, 0.75, 0.75² … 0.75^23 ≈ 0.001 of an extreme."""
FINER, AROUND, ROUNDS = 4, 3, 4
"""Each later round tries AROUND shares on either side of the best one, their logarithms FINER times closer."""


class Searched(Counts):
    """The range [a·min, b·max], a and b at most 1, with the least expected squared error; ``together``: a = b."""

    def __init__(self, codes: Codes, *, together: bool) -> None:
        """Search for grids with ``codes``; the two ends of a symmetric range always move together."""
        super().__init__(SIDE)
        self.codes, self.together = codes, together or codes.symmetric

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the range; not for every step, as it searches, on the CPU."""
        edges, counts = self.filled(zeros=False)  # 0 has no error on any grid
        low, high = self.low.cpu().clamp(max=0.0), self.high.cpu().clamp(min=0.0)
        if len(counts) == 0 or not bool(torch.isfinite(high - low)):
            return self.low, self.high
        best = torch.zeros(2, dtype=torch.float64)
        for number in range(ROUNDS + 1):
            powers = self._candidates(best, number)
            lows, highs = (end * (RATIO**power).float() for end, power in zip((low, high), powers.T, strict=True))
            best = powers[expected_errors(edges, counts, lows, highs, self.codes).argmin()]
        share = (RATIO**best).float()
        return (low * share[0]).to(self.low), (high * share[1]).to(self.high)

    def _candidates(self, best: Tensor, number: int) -> Tensor:
        """Return the shares to try in a round as powers of ``RATIO``, (c, 2), larger ranges first."""
        if number == 0:
            steps = torch.arange(STEPS, dtype=torch.float64).expand(2, -1)
        else:
            around = torch.arange(-AROUND, AROUND + 1, dtype=torch.float64) / FINER**number
            steps = (best[:, None] + around).clamp_(min=0.0)
        if self.together:
            return steps.T
        return torch.cartesian_prod(*steps)
