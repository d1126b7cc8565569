"""The search for group weights, prices and their multiplier over all single weights; the method is in ``per_param``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fairquant.allocate.objective import Objective
from fairquant.assign._budgets import Budgets, Filling
from fairquant.assign._sample import Point, Sample
from fairquant.assign._stream import Evaluation, Floats, Index, Stream

log = logging.getLogger(__name__)

ROUNDS = 6
"""Newton steps at most."""
STEP = 2e-3
"""Prices of a pass lie this share apart."""
PASSES = 60
"""The multiplier's interval is halved in each, should nothing better be known: enough for float64."""
COARSE = 1e-4
"""How near to the sample's own optimum the search starts: it is not that of all weights anyway."""
LIKELY = 0.8
"""Share of the gap that may be open before the budgets are filled, which costs a pass."""
EQUALS = 0.05
"""Share of the gap spent on weighing every group a little: nobody's losses count as nothing."""
ROUNDING = 1e-12
"""Of float64 sums, as a share of what is summed: taken off the bound."""


@dataclass(frozen=True)
class Found:
    """The best choice so far, with the fields of ``per_param.StreamedSolution``."""

    choice: list[Index]
    totals: Floats
    value: float
    bound: float
    gap: float
    spent: Floats
    group_weights: Floats
    prices: Floats


@dataclass(frozen=True)
class _Window:
    """Multipliers s of the prices: at ``dear`` all budgets are kept, at ``cheap`` not; the two are equal where s is 0.

    ``counts`` (n_layers, W) are the weights at each width at ``dear``.
    """

    dear: float
    cheap: float
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Visit:
    """All weights at a point: totals (G,), spending above the limits (K,), D, and whether it seems good enough."""

    point: Point
    tried: dict[float, Evaluation]
    totals: Floats
    over: Floats
    dual: float
    promising: bool


class Search:
    """The search for λ, μ and s."""

    def __init__(
        self, stream: Stream, budgets: Budgets, objective: Objective, offset: Floats, sample: Sample, gap: float
    ) -> None:
        """Take the problem; ``offset`` (G,) is lost whatever is chosen."""
        self.stream, self.budgets, self.objective = stream, budgets, objective
        self.offset, self.sample, self.gap = offset, sample, gap
        self.best: Found | None = None
        self.bound = 0.0  # losses are not negative

    def run(self) -> Found:
        """Go up the dual until the proved gap is small enough, at most ``ROUNDS`` steps."""
        span, room = self.budgets.largest - self.budgets.smallest, self.budgets.limits - self.budgets.smallest
        rooms = np.divide(np.minimum(room, span), span, out=np.ones_like(span), where=span > 0)
        start = self.sample.solve(rooms, self.offset, self.objective, gap=COARSE)
        here, reach = self._visit(start), 1.0
        for number in range(ROUNDS):
            last = number == ROUNDS - 1
            if here.promising or last:
                self._finish(here.point, here.tried)
            if last or (self.best is not None and self.best.gap <= self.gap):
                break
            there = self._visit(self.sample.improve(here.point, here.totals, here.over, self.objective, reach=reach))
            here, reach = (there, reach) if there.dual > here.dual else (here, reach / 4)
        assert self.best is not None  # the last round always finishes
        found = self._with_free_steps(self.best)
        if found.gap > self.gap:
            log.warning("optimal: proved to be within %.2g of the optimum; asked for %.2g", found.gap, self.gap)
        return found

    def _with_free_steps(self, found: Found) -> Found:
        """Return ``found`` with wider widths, as they fit, where no group loses by them: no price asks for these."""
        counts = np.stack([np.bincount(c.reshape(-1), minlength=len(self.stream.widths)) for c in found.choice])
        steps = np.diff(self.budgets.costs, axis=2)
        fits = (steps <= (self.budgets.limits - found.spent)[:, None, None]).all(axis=0)
        if not (fits & (counts[:, :-1] > 0)).any():
            return found
        made = self.stream.widen(found.group_weights, found.choice, Filling(self.budgets, counts))
        assert made.totals is not None
        totals = made.totals + self.offset
        value = float(self.objective.value(totals))
        bound = min(found.bound, value)
        gap = (value - bound) / max(value, np.finfo(float).tiny)
        return replace(found, totals=totals, value=value, bound=bound, gap=gap, spent=self.budgets.spent(made.counts))

    def _visit(self, point: Point) -> _Visit:
        """Evaluate the dual over all weights at ``point``, and close by for the multiplier."""
        point = self._spread(point)
        tried = self._evaluate(point, [1.0, 1 + STEP, 1 - STEP])
        at = tried[1.0]
        assert at.totals is not None
        totals, over = at.totals + self.offset, self.budgets.spent(at.counts) - self.budgets.limits
        promising = self._promises(point, totals, over)
        return _Visit(point, tried, totals, over, self._dual(point, 1.0, at), promising)

    def _spread(self, point: Point) -> Point:
        """Return the point with a small equal share for every group: weights still within the objective's."""
        share = 0.0 if self.objective.is_mean else min(self.gap * EQUALS, 1e-3)
        equal = self.objective.scale / len(self.objective.scale)
        return replace(point, weights=(1 - share) * point.weights + share * equal)

    def _evaluate(self, point: Point, factors: list[float]) -> dict[float, Evaluation]:
        """Evaluate multiples of a point's prices; the first with totals."""
        if not point.prices.any():
            factors = factors[:1]
        found = self.stream.evaluate(point.weights, [factor * point.prices for factor in factors], totals=0)
        for factor, evaluation in zip(factors, found, strict=True):
            self.bound = max(self.bound, self._dual(point, factor, evaluation))
        return dict(zip(factors, found, strict=True))

    def _dual(self, point: Point, factor: float, evaluation: Evaluation) -> float:
        """Return D, less what rounding may have added."""
        constant, charge = float(point.weights @ self.offset), factor * float(point.prices @ self.budgets.limits)
        return evaluation.priced + constant - charge - ROUNDING * (evaluation.priced + constant + abs(charge))

    def _promises(self, point: Point, totals: Floats, over: Floats) -> bool:
        """Return whether filling the budgets from here looks likely to end within the gap."""
        priced = point.prices > 0
        if (over > 0)[~priced].any():
            return False  # a budget that seemed not to bind
        charge = (point.prices * over)[priced]
        value = float(self.objective.value(totals))
        lost = value - float(point.weights @ totals) + (float(np.ptp(charge)) if len(charge) else 0.0)
        return lost <= self.gap * LIKELY * max(value + float(charge.sum()), 0.0)

    def _finish(self, point: Point, tried: dict[float, Evaluation]) -> None:
        """Enclose the multiplier, make the choice, and keep it if it is the best."""
        window, point = self._enclose(point, tried)
        filling = Filling(self.budgets, window.counts)
        choice, made = self.stream.fill(point.weights, window.dear * point.prices, window.cheap * point.prices, filling)
        self.bound = max(self.bound, self._dual(point, window.dear, made))
        assert made.totals is not None
        totals = made.totals + self.offset
        value = float(self.objective.value(totals))
        if self.best is None or value < self.best.value:
            self.best = Found(
                choice,
                totals,
                value,
                0.0,
                0.0,
                self.budgets.spent(made.counts),
                point.weights,
                window.dear * point.prices,
            )
        bound = min(self.bound, self.best.value)
        gap = (self.best.value - bound) / max(self.best.value, np.finfo(float).tiny)
        self.best = replace(self.best, bound=bound, gap=gap)

    def _enclose(self, point: Point, tried: dict[float, Evaluation]) -> tuple[_Window, Point]:
        """Find the multiplier's window, so small that the order of steps within does not matter for the gap."""
        kept = {factor: self._keeps(evaluation) for factor, evaluation in tried.items()}
        if not point.prices.any():
            if kept[1.0]:
                return _Window(1.0, 1.0, tried[1.0].counts), point
            point, tried, kept = self._priced(point, tried[1.0]), {}, {}
        for _ in range(PASSES):
            factors = self._next(point, tried, kept)
            if not factors:
                break
            new = self._evaluate(point, factors)
            tried, kept = tried | new, kept | {factor: self._keeps(evaluation) for factor, evaluation in new.items()}
        dear = min(factor for factor, fits in kept.items() if fits)
        cheap = max((factor for factor, fits in kept.items() if not fits), default=dear)
        return _Window(dear, cheap, tried[dear].counts), point

    def _keeps(self, evaluation: Evaluation) -> bool:
        return self.budgets.keeps(self.budgets.totals(evaluation.counts))

    def _priced(self, point: Point, free: Evaluation) -> Point:
        """Return prices for budgets that seemed not to bind and do: the average loss saved per unit spent."""
        over = self.budgets.spent(free.counts) > self.budgets.limits
        return replace(point, prices=np.where(over, self.sample.typical_prices(point.weights), 0.0))

    def _next(self, point: Point, tried: dict[float, Evaluation], kept: dict[float, bool]) -> list[float]:
        """Return multipliers to try next, none once the window is small enough."""
        dear = min((factor for factor, fits in kept.items() if fits), default=np.inf)
        cheap = max((factor for factor, fits in kept.items() if not fits), default=-1.0)
        if dear == 0 or not tried:
            return [1.0] if not tried else []
        if dear < np.inf and cheap >= 0 and self._small(point, dear, tried[dear], cheap, tried[cheap]):
            return []
        guess = self._crossing(tried, dear, cheap)
        factors = {guess, guess * (1 - STEP), guess * (1 + STEP)}
        if cheap < 0:
            factors.add(0.0)
        elif dear < np.inf:
            factors.add(np.sqrt(cheap * dear) if cheap > 0 else dear / 1024)
        return sorted(float(factor) for factor in factors if cheap < factor < dear)

    def _small(self, point: Point, dear: float, kept: Evaluation, cheap: float, over: Evaluation) -> bool:
        """Return whether taking the window's steps in any order costs less than a small part of the gap."""
        worth = point.prices @ (self.budgets.spent(over.counts) - self.budgets.spent(kept.counts))
        value = kept.priced + point.weights @ self.offset - dear * (point.prices @ self.budgets.spent(kept.counts))
        return bool((dear - cheap) * worth <= self.gap / 50 * value)

    def _crossing(self, tried: dict[float, Evaluation], dear: float, cheap: float) -> float:
        """Return where spending should meet the limits, by a straight line over log s, at most a factor of 16 away."""
        span = np.maximum(self.budgets.largest - self.budgets.smallest, np.finfo(float).tiny)
        over = {
            factor: float(((self.budgets.spent(tried[factor].counts) - self.budgets.limits) / span).max())
            for factor in tried if factor > 0
        }  # fmt: skip
        if dear < np.inf and cheap > 0:
            ends = [cheap, dear]
        else:
            ends = sorted(sorted(over, key=lambda factor: (abs(over[factor]), factor))[:2])
        nearest = ends[-1] if cheap <= 0 < over[ends[-1]] or dear == np.inf else ends[0]
        step = np.log(16.0) if dear == np.inf else -np.log(16.0)
        if len(ends) == 2 and over[ends[0]] > over[ends[1]]:
            slope = (over[ends[1]] - over[ends[0]]) / np.log(ends[1] / ends[0])
            step = float(np.clip(-over[nearest] / slope, -np.log(16.0), np.log(16.0)))
        return float(nearest * np.exp(step))
