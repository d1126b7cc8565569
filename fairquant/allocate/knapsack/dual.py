"""A certified lower bound: the Lagrangian dual over group weights λ and prices μ, maximised by cutting planes.

``D(λ, μ) = Σ_u min_w (Σ_g λ_g·scale_g·losses[g, u, w] + Σ_k μ_k·excess[k, u, w]) − Σ_k μ_k``

bounds the optimum from below for all λ in the capped simplex and μ ≥ 0. D is concave and piecewise linear; each
evaluation gives, for every block of units, one linear function above that block's part of D (the totals of the choice
taken). A small linear program over all of them says where to evaluate next (Kelley's cutting planes, one model per
block), and its own optimum closes the gap from above. Its dual variables mix the choices seen so far into a solution of
the relaxed problem (Dantzig & Wolfe), from which ``core`` starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from fairquant.allocate.knapsack.problem import Choice, Floats, Problem

BLOCKS = 32  # more make the model tighter and its linear programs larger; the best of 8, 32 and 128 on 26,560 units
UNITS_AT_ONCE = 16384  # float32 losses become float64 in parts of so many units
LEAST = 1e-12
"""Of the largest price, what a linear program's unit is at least: beyond 1e15 its solver takes numbers for infinite."""
BISECTIONS = 14
ITERATIONS = 100
GOLDEN = 0.6180339887498949


class Relaxation:
    """The problem without its budgets, which are priced instead.

    Costs are counted from the cheapest choice and in shares of what the limits leave above it (``excess``, limit 1).
    Choices that break a limit alone are never taken; budgets that no choice of all can break are left out. A mean over
    groups is linear and becomes one group.
    """

    def __init__(self, problem: Problem) -> None:
        """Derive excess, allowed choices and the groups that count from ``problem``."""
        self.problem = problem
        above = problem.costs - problem.costs[:, :, :1]
        room = problem.limits - problem.smallest
        self.allowed: npt.NDArray[np.bool_] = np.asarray((above <= room[:, None, None]).all(axis=0))
        self.binding = np.flatnonzero((room > 0) & (above.max(axis=2, initial=0.0).sum(axis=1) > room))
        self.room = room[self.binding]
        self.excess: Floats = above[self.binding] / self.room[:, None, None]
        objective, losses = problem.objective, problem.losses
        if objective.is_mean:
            self.losses: npt.NDArray[np.floating[Any]] = np.empty((1, *losses.shape[1:]))
            for part in self._parts():
                self.losses[0, part] = _weighted(objective.scale / len(losses), losses[:, part])
            self.scale, self.cap = np.ones(1), 1.0
        else:
            self.losses, self.scale, self.cap = losses, objective.scale, objective.cap
        blocks = min(BLOCKS, len(problem.units))
        self.block = problem.units % blocks
        self.n_blocks = blocks

    def _parts(self) -> Iterator[slice]:
        units = self.problem.losses.shape[1]
        return (slice(start, min(start + UNITS_AT_ONCE, units)) for start in range(0, units, UNITS_AT_ONCE))

    def priced(self, weights: Floats, prices: Floats) -> Floats:
        """Return the weighted loss plus priced cost of every choice (U, W); infinite where it is not allowed."""
        return np.where(self.allowed, self.priced_freely(weights, prices), np.inf)

    def priced_freely(self, weights: Floats, prices: Floats) -> Floats:
        """Return the same as if every choice were allowed."""
        values = np.empty(self.allowed.shape)
        for part in self._parts():
            values[part] = _weighted(weights * self.scale, self.losses[:, part])
            if len(prices):
                values[part] += _weighted(prices, self.excess[:, part])
        return values

    def block_totals(self, choice: Choice) -> tuple[Floats, Floats]:
        """Return each block's scaled losses (G, B) and excess costs (K, B) of a choice."""
        units = self.problem.units
        losses, excess = self.losses[:, units, choice], self.excess[:, units, choice]
        sums = np.array([np.bincount(self.block, row, self.n_blocks) for row in (*losses, *excess)], dtype=np.float64)
        return sums[: len(losses)] * self.scale[:, None], sums[len(losses) :]


def _weighted(weights: Floats, values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return Σ_i weights[i]·values[i] in float64: (I,), (I, U, W) → (U, W)."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    return (weights @ flat).reshape(values.shape[1:])


@dataclass(frozen=True)
class Dual:
    """The best bound found, where it was found, and what is needed to go on from it.

    ``bound`` holds for every choice within the budgets; ``weights`` (λ) and ``prices`` (μ per share of the room) give
    it; ``choice`` is a rounded solution of the relaxation, near the budgets but not necessarily within them;
    ``feasible`` is the best choice met that keeps them, of objective ``value``.
    """

    bound: float
    weights: Floats
    prices: Floats
    choice: Choice
    feasible: Choice
    value: float


class _Search:
    """The state of the cutting-plane method."""

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self.choices: list[Choice] = []
        self.cuts: list[tuple[Floats, Floats]] = []
        problem = relaxation.problem
        self.feasible = np.zeros(len(problem.units), dtype=np.int64)
        self.value = self.top = problem.value(self.feasible)
        self.add(self.feasible)
        self.bound = 0.0  # losses are not negative
        self.weights = np.full(len(relaxation.scale), 1.0 / len(relaxation.scale))
        self.prices = np.zeros(len(relaxation.room))
        self.mix = np.ones((1, relaxation.n_blocks))

    def add(self, choice: Choice) -> Floats:
        """Keep a choice as a cut of each block; return its excess cost (K,)."""
        totals, excess = self.relaxation.block_totals(choice)
        self.choices.append(choice)
        self.cuts.append((totals, excess))
        problem = self.relaxation.problem
        if (excess.sum(axis=1) <= 1 + 1e-9).all():
            value = problem.value(choice)
            if value < self.value and problem.fits(choice):
                self.feasible, self.value = choice, value
        spent: Floats = excess.sum(axis=1)
        return spent

    def evaluate(self, weights: Floats, prices: Floats) -> Floats:
        """Evaluate D, keep the bound if it is the best, and add the cuts; return the excess cost (K,) there."""
        priced = self.relaxation.priced(weights, prices)
        choice = priced.argmin(axis=1)
        bound = float(priced[self.relaxation.problem.units, choice].sum() - prices.sum())
        if bound > self.bound or len(self.choices) == 1:
            self.bound, self.weights, self.prices = max(bound, self.bound), weights, prices
        return self.add(choice)

    def bisect(self) -> None:
        """Find the order of magnitude of the prices: one common price at equal weights, by bisection of its log."""
        low, high = -40.0, 0.0
        for _ in range(BISECTIONS if len(self.prices) else 1):
            middle = (low + high) / 2
            over = self.evaluate(self.weights, np.full(len(self.prices), self.top * 2.0**middle)) > 1
            low, high = (middle, high) if over.any() else (low, middle)

    def step(self) -> float:
        """Maximise the model of all cuts and evaluate D there; return the model's maximum, which is ≥ max D."""
        unit = max(self.value, LEAST * self.top) or 1.0
        totals = np.stack([cut[0] for cut in self.cuts]) / unit  # (cuts, G, B)
        excess = np.stack([cut[1] for cut in self.cuts])
        cuts, groups, blocks = totals.shape
        slopes = np.concatenate([totals, excess], axis=1).transpose(0, 2, 1).reshape(cuts * blocks, -1)
        one_per_block = sparse.kron(np.ones((cuts, 1)), sparse.eye(blocks))
        n_prices = excess.shape[1]
        model = linprog(
            np.concatenate([np.zeros(groups), np.ones(n_prices), -np.ones(blocks)]),
            A_ub=sparse.hstack([sparse.csr_matrix(-slopes), one_per_block], format="csc"),
            b_ub=np.zeros(cuts * blocks),
            A_eq=np.concatenate([np.ones(groups), np.zeros(n_prices + blocks)])[None],
            b_eq=[1.0],
            bounds=[(0, self.relaxation.cap)] * groups + [(0, self.top / unit)] * n_prices + [(None, None)] * blocks,
            method="highs",
        )
        if model.status != 0:
            raise RuntimeError(f"the linear program over the cuts ended with status {model.status}: {model.message}")
        self.mix = -model.ineqlin.marginals.reshape(cuts, blocks)
        weights = _onto_simplex(model.x[:groups], self.relaxation.cap)
        self.evaluate(weights, np.maximum(model.x[groups : groups + n_prices], 0.0) * unit)
        return float(-model.fun * unit)

    def rounded(self) -> Choice:
        """Round the mixture of choices: choice i is taken by a share mix[i, b] of block b's units, spread evenly."""
        block, shares = self.relaxation.block, np.maximum(self.mix, 0.0)
        ends = np.cumsum(shares, axis=0) / np.maximum(shares.sum(axis=0), 1e-300)
        draws = ((np.arange(len(block)) // self.relaxation.n_blocks + 0.5) * GOLDEN) % 1.0
        taken = np.minimum((ends[:, block] < draws).sum(axis=0), len(ends) - 1)
        choice: Choice = np.stack(self.choices[: len(ends)])[taken, np.arange(len(block))]
        return choice


def _onto_simplex(weights: Floats, cap: float) -> Floats:
    """Return weights that are exactly ≥ 0, ≤ cap and sum to 1, from a linear program's that nearly are."""
    weights = np.clip(weights, 0.0, cap)
    missing, left = 1.0 - weights.sum(), cap - weights
    if missing < 0:
        weights = weights / weights.sum()
    elif left.sum() > 0:
        weights = weights + left * (missing / left.sum())
    return weights


def maximise(relaxation: Relaxation, tolerance: float) -> Dual:
    """Return the best bound, within a share ``tolerance`` of the relaxation's optimum unless iterations run out."""
    search = _Search(relaxation)
    search.bisect()
    for _ in range(ITERATIONS):
        known = len(search.cuts)
        upper = search.step()
        if upper - search.bound <= tolerance * abs(upper) or len(search.cuts) == known:
            break
    return Dual(search.bound, search.weights, search.prices, search.rounded(), search.feasible, search.value)
