"""A sample of single weights that stands for all of them: where to start, and how the dual curves.

A weight's chance of being drawn is one half even and one half its share of the losses, averaged over the widths; what
is drawn counts as often as it stands for weights (Horvitz & Thompson 1952, J. American Statistical Association 47).
Solved as a table, the sample gives group weights λ and prices μ near those of all weights. From there on a pass over
all weights says the dual's true slope (the groups' totals, and spending above the limits), and the sample only its
curvature: a Newton step maximises

    slope·x − ½ x·H·x        over the x that keep Σ λ, 0 ≤ λ ≤ cap and μ ≥ 0

The sample's dual is a polyhedron; H is taken from differences of its slope so far apart that thousands of the drawn
weights change their minds in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

from fairquant.allocate.knapsack.dual import Relaxation, maximise
from fairquant.allocate.knapsack.problem import Problem, cheapest
from fairquant.allocate.objective import Objective
from fairquant.assign._stream import Floats, Stream, round_weights

Positions = npt.NDArray[np.int64]

FIRST = 16_384
"""Weights drawn evenly to see what the widths cost on average."""
APART = 0.2
"""The differences' distance, as a share of λ_g (at least of a quarter of 1/G) and of the prices."""
REACH = 20.0
"""The longest Newton step, in such distances."""
RIDGE = 1e-3
"""Added to the curvature, as a share of its mean: the dual is flat along λ ∝ μ."""
STRAIGHT = 1e-6
"""Also added, as a share of the slope: where nothing curves the step goes as far as it may."""
PENALTY = 1e4
"""Weight of Σ λ in the least-squares problem, as a multiple of the curvature's root."""


@dataclass(frozen=True)
class Point:
    """Where the dual is evaluated: ``weights`` (G,), λ times the objective's scale, and ``prices`` (K,)."""

    weights: Floats
    prices: Floats


@dataclass(frozen=True)
class Sample:
    """Some weights' ``losses`` (G, U, W) and ``costs`` (K, U, W), counted as often as each stands for others."""

    losses: Floats
    costs: Floats

    @classmethod
    def whole(cls, stream: Stream) -> Sample:
        """Return the table of all weights."""
        every = [np.arange(size) for size in stream.sizes]
        return cls._of(stream, every, [np.ones(size) for size in stream.sizes])

    @classmethod
    def draw(cls, stream: Stream, number: int, seed: int, weights: Floats) -> Sample:
        """Draw about ``number`` weights; group losses count by ``weights`` (G,) for the chance of being drawn."""
        generator = np.random.default_rng(seed)
        total = sum(stream.sizes)
        evenly = [_spread(np.full(size, min(1.0, FIRST / total)), generator) for size in stream.sizes]
        first = cls._of(stream, evenly, [np.ones(len(at)) for at in evenly])
        means = np.einsum("g,guw->w", weights, first.losses) / max(1, first.losses.shape[1])
        scores = stream.scores(weights, np.divide(1.0, means * len(means), out=np.zeros_like(means), where=means > 0))
        rate = number / sum(float(score.sum(dtype=np.float64)) for score in scores)
        positions, stand_for = [], []
        for score in scores:
            chances = np.minimum(score * np.float64(rate), 1.0)
            positions.append(_spread(chances, generator))
            stand_for.append(1.0 / chances[positions[-1]])
        return cls._of(stream, positions, stand_for)

    @classmethod
    def _of(cls, stream: Stream, positions: list[Positions], stand_for: list[Floats]) -> Sample:
        """Return the table of some weights of each layer and how many each stands for."""
        budgets, layers, widths = stream.costs.shape
        losses, costs = [np.empty((stream.groups, 0, widths))], [np.empty((budgets, 0, widths))]
        for layer, at, number in zip(range(layers), positions, stand_for, strict=True):
            losses.append(_table(stream, layer, at) * number[:, None])
            costs.append(stream.costs[:, layer, None, :] * number[:, None])
        return cls(np.concatenate(losses, axis=1), np.concatenate(costs, axis=1))

    def solve(self, rooms: Floats, offset: Floats, objective: Objective, *, gap: float) -> Point:
        """Return the group weights and prices at the sample's dual optimum, within a share ``gap`` of it.

        ``rooms`` (K,) say where the limits lie between all weights' cheapest (0) and widest (1) choice; ``offset`` (G,)
        is lost whatever is chosen. A budget that leaves no room at all gets no price.
        """
        groups, _, widths = self.losses.shape
        fixed = np.broadcast_to(offset[:, None, None], (groups, 1, widths))
        losses = np.concatenate([self.losses, fixed], axis=1)
        costs = np.concatenate([self.costs, np.zeros((len(rooms), 1, widths))], axis=1)
        smallest = cheapest(costs)
        limits = np.maximum(smallest + rooms * (costs[:, :, -1].sum(axis=1) - smallest), smallest)
        relaxation = Relaxation(Problem(losses, costs, limits, objective))
        dual = maximise(relaxation, gap)
        prices = np.zeros(len(rooms))
        prices[relaxation.binding] = dual.prices / relaxation.room
        weights = np.full(groups, 1 / groups) if objective.is_mean else dual.weights
        return Point(weights * objective.scale, prices)

    def improve(self, point: Point, totals: Floats, over: Floats, objective: Objective, *, reach: float) -> Point:
        """Return the point after a Newton step from ``point``.

        ``totals`` (G,) are what all weights lose there, ``over`` (K,) what they spend above the limits; a step goes at
        most ``reach`` of the usual way.
        """
        scale, cap = objective.scale, objective.cap
        free = np.flatnonzero(scale > 0)
        shares = np.divide(point.weights, scale, out=np.zeros_like(scale), where=scale > 0)[free]
        unit = np.where(point.prices > 0, point.prices, self.typical_prices(point.weights))
        size = np.concatenate([APART * np.maximum(shares, 0.25 / len(scale)), np.full(len(unit), APART)])
        slope = np.concatenate([scale[free] * totals[free], unit * over]) * size
        curvature = self._curvature(point, scale, free, unit, size)
        low = np.concatenate([-shares, -point.prices / unit]) / size
        high = np.concatenate([np.maximum(cap - shares, 0.0), np.full(len(unit), np.inf)]) / size
        longest = REACH * reach
        step = _maximise(slope, curvature, np.append(size[: len(free)], np.zeros(len(unit))),
                         np.clip(low, -longest, 0.0), np.clip(high, 0.0, longest)) * size  # fmt: skip
        moved = np.clip(shares + step[: len(free)], 0.0, cap)
        moved *= min(1.0, shares.sum() / max(moved.sum(), np.finfo(float).tiny))  # never above: D would be no bound
        weights = point.weights.copy()
        weights[free] = scale[free] * moved
        return Point(weights, np.maximum(point.prices + unit * step[len(free) :], 0.0))

    def typical_prices(self, weights: Floats) -> Floats:
        """Return the loss saved per unit spent, (K,), from all weights at their cheapest to all at their widest."""
        saved = float(weights @ (self.losses[:, :, 0] - self.losses.min(axis=2)).sum(axis=1))
        span = self.costs[:, :, -1].sum(axis=1) - self.costs[:, :, 0].sum(axis=1)
        prices: Floats = (saved or 1.0) / np.where(span > 0, span, 1.0)
        return prices

    def _curvature(self, point: Point, scale: Floats, free: Positions, unit: Floats, size: Floats) -> Floats:
        """Return −∂²D of the sample in steps of ``size``: symmetric, positive semidefinite but for noise."""
        rows = []
        for number in range(len(size)):
            ends = []
            for sign in (1, -1):
                move = np.zeros(len(size))
                move[number] = sign * size[number]
                weights = point.weights.copy()
                weights[free] = np.maximum(weights[free] + scale[free] * move[: len(free)], 0.0)
                prices = np.maximum(point.prices + unit * move[len(free) :], 0.0)
                totals, spent = self._evaluate(weights, prices)
                moved = np.concatenate([(weights - point.weights)[free] / scale[free], (prices - point.prices) / unit])
                ends.append((np.concatenate([scale[free] * totals[free], unit * spent]) * size, moved[number]))
            (above, right), (below, left) = ends
            rows.append((below - above) / (right - left) * size[number])
        curvature = np.array(rows)
        symmetric: Floats = (curvature + curvature.T) / 2
        return symmetric

    def _evaluate(self, weights: Floats, prices: Floats) -> tuple[Floats, Floats]:
        """Return the sample's totals (G,) and spending (K,)."""
        groups, units, widths = self.losses.shape
        priced = (weights @ self.losses.reshape(groups, -1)).reshape(units, widths)
        priced += np.einsum("k,kuw->uw", prices, self.costs)
        rows, choice = np.arange(units), priced.argmin(axis=1)
        return self.losses[:, rows, choice].sum(axis=1), self.costs[:, rows, choice].sum(axis=1)


def _maximise(slope: Floats, curvature: Floats, sums: Floats, low: Floats, high: Floats) -> Floats:
    """Return x in [low, high] with sums·x = 0 that maximises slope·x − ½ x·curvature·x, as bounded least squares."""
    values, vectors = np.linalg.eigh(curvature)
    values = np.maximum(values, 0.0)
    if not slope.any():
        return np.zeros_like(slope)
    roots = np.sqrt(values + RIDGE * values.mean() + STRAIGHT * np.abs(slope).max())
    matrix = np.vstack([roots[:, None] * vectors.T, PENALTY * roots.max() * sums / np.linalg.norm(sums)])
    target = np.append(vectors.T @ slope / roots, 0.0)
    moves = np.flatnonzero(high - low > 1e-12)
    x = np.zeros_like(slope)
    x[moves] = lsq_linear(matrix[:, moves], target, (low[moves], high[moves]), method="bvls").x
    return x


def _spread(chances: Floats, generator: np.random.Generator) -> Positions:
    """Return positions drawn with ``chances`` (n,) in [0, 1], evenly: any run of them holds their sum but for one."""
    passed = np.floor(np.cumsum(chances) + generator.random())
    return np.flatnonzero(np.diff(passed, prepend=0.0) > 0)


def _table(stream: Stream, layer: int, positions: Positions) -> Floats:
    """Return the losses (G, U, W) of some weights of a layer, given by flat position."""
    data = stream.layers[layer]
    rows, columns = np.divmod(positions, max(1, data.weight.shape[1]))
    weight = np.ascontiguousarray(data.weight[rows, columns][:, None])
    maps, delta = data.maps[:, rows, columns].astype(np.float64), np.empty_like(weight)
    losses = np.empty((*maps.shape, len(stream.widths)))
    for number, width in enumerate(stream.widths):
        step, zero = data.grid(rows, number)
        round_weights(weight, width, step, delta, zero)
        losses[:, :, number] = maps * stream.increase(delta - weight, weight)[:, 0]
    return losses
