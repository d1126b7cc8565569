"""The step size with the least squared error Σ f·(ŵ − w)² of a row (f = 1: the "mse" range setting).

1. The grid Δ = c · max|w| / M of 64 clipping ratios c. What is clipped at c is part of the error and grows as c falls;
   ratios at which it exceeds an error already found are left out, and the result is still that of the whole grid.
2. Between the neighbours of the best ratio, two finer grids of four steps each: the grid's spacing alone adds 3 % to
   the error at 8 bits (rows of 1,152 or 4,608 long-tailed weights).
3. Lloyd's iteration (Lloyd 1982, doi 10.1109/TIT.1982.1056489): for the codes of Δ the best step is Σ f|w|q / Σ f q².

Every step is taken only where the error falls, so the result is never worse than c = 1, absmax; of equals the largest
ratio wins. All steps of a row depend on that row alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairquant.quantize.fake_quant import NO_GRID
from fairquant.quantize.scales._slots import floor
from fairquant.quantize.scales._sorted_rows import ERROR, FIRST, SECOND, STEP, SortedRows

SPACING = 0.01 ** (1 / 63)
RATIOS = tuple(SPACING**step for step in range(64))
"""64 clipping ratios from 1 down to 0.01, evenly spaced in their logarithm (7 % apart)."""
REFINEMENTS = tuple(tuple(SPACING ** (part * width) for part in (-2, -1, 1, 2)) for width in (1 / 3, 1 / 9))
"""Factors of the finer grids: a third and a ninth of the spacing apart."""
LLOYD_STEPS = 2
AT_ONCE = 4
"""Ratios tried together; rows that need no more drop out after them."""


def least_squares(weight: Tensor, largest: Tensor, factors: Tensor | None = None) -> Tensor:
    """Return the best step sizes, of the shape of ``largest``.

    Args:
        weight: rows (r, n).
        largest: M, (r, 1) or, where each weight has its own, (r, n); where it is 0.5 (no grid) the answer is 1.
        factors: f ≥ 0, (r, n); None stands for 1.
    """
    delta = torch.ones_like(largest)
    for top in (top for top in torch.unique(largest).tolist() if top != NO_GRID):
        chosen = largest == top
        if largest.shape[1] > 1:
            mass = chosen.to(weight.dtype) if factors is None else torch.where(chosen, factors, 0.0)
            delta = torch.where(chosen, best_step(SortedRows.of(weight, mass), top), delta)
        else:
            rows = chosen[:, 0].nonzero()[:, 0]
            some = SortedRows.of(weight[rows], None if factors is None else factors[rows])
            delta[rows] = best_step(some, top)
    return delta


def least_squares_ladder(weight: Tensor, largest: Sequence[float], factors: Tensor | None = None) -> Tensor:
    """Return the best step sizes of rows (r, n) at each M of ``largest``, (r, W); the rows are sorted once."""
    rows = SortedRows.of(weight, factors)
    return torch.cat([best_step(rows, top) for top in largest], 1)


def best_step(rows: SortedRows, top: float) -> Tensor:
    """Return the step size (r, 1) with the least error at M = ``top``."""
    dtype, smallest = rows.low.dtype, floor(rows.low)
    highest = torch.finfo(dtype).max
    best = _best_of_grid(rows, top)
    for factors in REFINEMENTS:
        near = best[:, STEP, None].to(dtype) * torch.tensor(factors, dtype=dtype, device=best.device)
        best = _better(best, rows.trials(near.clamp_(smallest, highest), top))
    for _ in range(LLOYD_STEPS):
        codes_own = best[:, FIRST] / best[:, SECOND].clamp_min(torch.finfo(torch.float64).tiny)
        best = _better(best, rows.trials(codes_own[:, None].clamp(smallest, highest).to(dtype), top))
    return best[:, STEP, None].to(dtype)


def _best_of_grid(rows: SortedRows, top: float) -> Tensor:
    """Return the best trial of the grid for each row, (r, 4)."""
    ratios = torch.tensor(RATIOS, dtype=rows.low.dtype, device=rows.low.device)
    widest = (-rows.low[:, :1] / top).clamp_min_(floor(rows.low))
    grid = (widest * ratios).clamp_min_(floor(rows.low))
    needed = _ratios_needed(rows, grid, top)
    best = rows.first.new_full((len(grid), 4), torch.inf)
    for start in range(0, len(RATIOS), AT_ONCE):
        some = (needed > start).nonzero()[:, 0]
        if not len(some):
            break
        trials = rows.trials(grid[some, start : start + AT_ONCE], top, None if len(some) == len(grid) else some)
        best[some] = _better(best[some], trials)
    return best


def _ratios_needed(rows: SortedRows, grid: Tensor, top: float) -> Tensor:
    """Return how many ratios of ``grid`` (r, 64), from the largest on, can hold the least error: (r,)."""
    clip = (grid * (top * (1 + 1e-6))).contiguous()  # a little too far out, so that "beyond" is a lower bound
    beyond, inside = rows.clipped(clip)
    guess = (beyond + inside * grid.double().square() / 12).argmin(1, keepdim=True)
    reached = rows.trials(grid.gather(1, guess), top)[:, :, ERROR]
    return torch.maximum((beyond <= reached).sum(1), guess[:, 0] + 1)


def _better(best: Tensor, trials: Tensor) -> Tensor:
    """Return for each row the first of the least of ``trials`` (r, K, 4), or ``best`` (r, 4) unless that is worse."""
    error = trials[:, :, ERROR]
    least = error.amin(1, keepdim=True)
    place = torch.arange(error.shape[1], device=error.device)
    place = torch.where(error <= least, place, len(place) - 1).amin(1)
    found = trials[torch.arange(len(trials), device=error.device), place]
    return torch.where(least < best[:, ERROR, None], found, best)
