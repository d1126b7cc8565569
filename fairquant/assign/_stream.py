"""Single weights, pass by pass: priced choices of every weight from blocks that stay in the processor's cache.

For group weights λ (scaled) and the price p_b of each width in a layer, a weight with maps I_g that loses h_b at width
b times its importance takes

    argmin_b  m·h_b + p_b        m = Σ_g λ_g I_g        (ties: the cheapest width)

in float64. Nothing of the size groups × weights or weights × widths is ever held: h_b is computed anew in every pass.

Results do not depend on how rows are cut into blocks: arithmetic is elementwise, losses are summed row by row, rows by
``math.fsum`` (exact), and spending is counted in whole numbers of weights per width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fairquant.assign._budgets import Filling
    from fairquant.assign.per_param import StreamedLayer

Single = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Index = npt.NDArray[np.uint8]
Increase = Callable[[Single, Single], Single]

BLOCK = 16_384
"""Weights of a block: its dozen buffers fit into a megabyte."""
PRUNED, SIGN, UNTOUCHED = 0, 1, 32


def round_weights(weight: Single, width: int, step: Single, out: Single, zero: Single | None = None) -> None:
    """Write ``weight`` (r, n) at ``width`` bits with step sizes (r, 1) into ``out``; the arithmetic of ``fake_quant``.

    ``zero`` (r, 1) are the zero points of asymmetric grids.

    >>> out = np.empty((1, 3), np.float32)
    >>> round_weights(np.float32([[0.9, -0.2, 0.5]]), 2, np.float32([[0.5]]), out)
    >>> out.tolist()
    [[0.5, -0.0, 0.5]]
    """
    if width == PRUNED:
        out.fill(0)
    elif width == UNTOUCHED:
        np.copyto(out, weight)
    elif width == SIGN:
        np.copyto(out, np.where(weight < 0, -step, step))
    else:
        if zero is None:
            high: Single | np.float32 = np.float32(2 ** (width - 1) - 1)
            low: Single | np.float32 = -high
        else:
            low, high = -zero, np.float32(2**width - 1) - zero
        np.divide(weight, step, out=out)
        np.rint(out, out=out)
        np.clip(out, low, high, out=out)
        np.multiply(out, step, out=out)


@dataclass(frozen=True)
class Evaluation:
    """What all weights choose at given prices.

    ``counts`` (n_layers, W): weights at each width; ``priced``: Σ over weights of the least m·h + p;
    ``totals`` (G,): the groups' losses, None where they were not asked for.
    """

    counts: Counts
    priced: float
    totals: Floats | None


class _Best:
    """The best choice so far of a block's weights at prices (W,): ``index``, and what it costs, ``priced``."""

    def __init__(self, shape: tuple[int, ...], prices: Floats) -> None:
        self.index, self.priced, self.prices = np.zeros(shape, np.uint8), np.empty(shape), prices

    def offer(self, width: int, loss: Floats, workspace: _Workspace) -> None:
        """Take choice number ``width`` where it is better; they come in ascending order."""
        if width == 0:
            np.add(loss, self.prices[0], out=self.priced)
            return
        priced, better = workspace.priced, workspace.better
        np.add(loss, self.prices[width], out=priced)
        np.less(priced, self.priced, out=better)
        np.minimum(self.priced, priced, out=self.priced)
        taken = np.multiply(better.view(np.uint8), np.uint8(width), out=better.view(np.uint8))
        np.maximum(self.index, taken, out=self.index)  # a masked copy takes ten times as long


class _Workspace:
    """Buffers of a block, and the rounding effect h (W, r, n) of all widths."""

    def __init__(self, shape: tuple[int, ...], widths: int) -> None:
        self.effects = np.empty((widths, *shape), np.float32)
        self.delta = np.empty(shape, np.float32)
        self.combined, self.loss, self.priced = np.empty(shape), np.empty(shape), np.empty(shape)
        self.better = np.empty(shape, dtype=bool)
        self.places = np.arange(self.loss.size).reshape(shape)
        self.at = np.empty(shape, np.intp)

    def chosen(self, index: Index) -> Single:
        """Return the effect of the choice ``index`` (r, n)."""
        np.multiply(index, np.intp(index.size), out=self.at)
        np.add(self.at, self.places, out=self.at)
        return np.take(self.effects.reshape(-1), self.at, mode="clip")


@dataclass
class Stream:
    """All weights, in model order, with what rounding one to each of ``widths`` does (``increase``).

    ``costs`` (K, n_layers, W) are those of one weight. Raises ``ValueError`` in the first pass for losses that are
    negative or not finite.
    """

    layers: Sequence[StreamedLayer]
    groups: int
    widths: tuple[int, ...]
    costs: Floats
    increase: Increase
    block: int = BLOCK
    checked: bool = field(default=False, init=False)
    workspace: _Workspace | None = field(default=None, init=False, repr=False)

    @property
    def sizes(self) -> list[int]:
        """Return the number of weights of each layer."""
        return [layer.weight.size for layer in self.layers]

    def layer_prices(self, prices: Floats) -> Floats:
        """Return the price of each width in each layer, (n_layers, W), for prices (K,) of the budgets."""
        charged: Floats = np.einsum("k,klw->lw", prices, self.costs)
        return charged

    def evaluate(self, weights: Floats, prices: Sequence[Floats], *, totals: int | None) -> list[Evaluation]:
        """Evaluate several ``prices`` (K,) at group weights (G,) in one pass; number ``totals`` of them with totals."""
        charged = [self.layer_prices(price) for price in prices]
        counts = np.zeros((len(prices), len(self.layers), len(self.widths)), np.int64)
        priced: list[list[float]] = [[] for _ in prices]
        sums: list[Floats] = []
        for layer, rows in self._blocks():
            best = self._choose(layer, rows, weights, [price[layer] for price in charged])
            for number, choice in enumerate(best):
                counts[number, layer] += self._count(choice.index)
                priced[number] += choice.priced.sum(axis=1).tolist()
            if totals is not None:
                sums.append(self._group_sums(layer, rows, best[totals].index))
        self.checked = True
        return [
            Evaluation(counts[number], math.fsum(priced[number]), _total(sums) if number == totals else None)
            for number in range(len(prices))
        ]

    def fill(self, weights: Floats, dear: Floats, cheap: Floats, filling: Filling) -> tuple[list[Index], Evaluation]:
        """Choose at prices ``dear`` (K,), and at ``cheap`` as long as ``filling`` has room, in model order.

        Returns the choice of each layer (out, n) and its evaluation; ``priced`` is that of ``dear`` alone.
        """
        charged = [self.layer_prices(dear), self.layer_prices(cheap)]
        choice = [np.empty(layer.weight.shape, np.uint8) for layer in self.layers]
        counts = np.zeros((len(self.layers), len(self.widths)), np.int64)
        priced: list[float] = []
        sums = []
        for layer, rows in self._blocks():
            first, second = self._choose(layer, rows, weights, [price[layer] for price in charged])
            taken = filling.take(layer, first.index, second.index)
            choice[layer][rows] = np.where(taken, second.index, first.index)
            counts[layer] += self._count(choice[layer][rows])
            priced += first.priced.sum(axis=1).tolist()
            sums.append(self._group_sums(layer, rows, choice[layer][rows]))
        return choice, Evaluation(counts, math.fsum(priced), _total(sums))

    def widen(self, weights: Floats, choice: list[Index], filling: Filling) -> Evaluation:
        """Let weights take the widest width at which no group loses more, as ``filling`` has room, in model order.

        A weight that no group misses, or that is the same at several widths, takes the cheapest width at any price, and
        leaves bits that nobody else needs. ``choice`` is changed in place.
        """
        counts = np.zeros((len(self.layers), len(self.widths)), np.int64)
        sums = []
        for layer, rows in self._blocks():
            self._choose(layer, rows, weights, [])
            index = choice[layer][rows]
            work = self._work(index.shape)
            effect, missed = work.chosen(index), work.combined > 0
            wider = index.copy()
            for number in range(1, len(self.widths)):
                harmless = ~missed | (work.effects[number] <= effect)
                np.copyto(wider, np.uint8(number), where=harmless & (number > index))
            taken = filling.take(layer, index, wider)
            choice[layer][rows] = np.where(taken, wider, index)
            counts[layer] += self._count(choice[layer][rows])
            sums.append(self._group_sums(layer, rows, choice[layer][rows]))
        return Evaluation(counts, math.nan, _total(sums))

    def scores(self, weights: Floats, shares: Floats) -> list[Single]:
        """Return 1 + Σ over widths of shares·loss of every weight, its groups counted by ``weights``: (out·n,) each."""
        scores = [np.empty(layer.weight.size, np.float32) for layer in self.layers]
        for layer, rows in self._blocks():
            self._choose(layer, rows, weights, [])
            work = self._work(self.layers[layer].weight[rows].shape)
            work.priced.fill(0.0)
            for share, effect in zip(shares.tolist(), work.effects, strict=True):
                np.copyto(work.loss, effect)
                np.multiply(work.loss, share, out=work.loss)
                np.add(work.priced, work.loss, out=work.priced)
            np.multiply(work.priced, work.combined, out=work.priced)
            scores[layer].reshape(self.layers[layer].weight.shape)[rows] = work.priced + 1.0
        return scores

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        """Yield (layer, rows): about ``block`` weights, whole rows, at least one."""
        for number, layer in enumerate(self.layers):
            out, n = layer.weight.shape
            at_once = max(1, self.block // max(1, n))
            for start in range(0, out, at_once):
                yield number, slice(start, min(start + at_once, out))

    def _work(self, shape: tuple[int, ...]) -> _Workspace:
        """Return buffers of a block's shape; those of the last block where it is the same."""
        if self.workspace is None or self.workspace.delta.shape != shape:
            self.workspace = _Workspace(shape, len(self.widths))
        return self.workspace

    def _choose(self, layer: int, rows: slice, weights: Floats, charged: Sequence[Floats]) -> list[_Best]:
        """Return the best choice of a block's weights for each of ``charged``, prices (W,) of this layer's widths."""
        data = self.layers[layer]
        weight = data.weight[rows]
        work = self._work(weight.shape)
        self._combine(data, rows, weights, work)
        best = [_Best(weight.shape, prices) for prices in charged]
        for number, width in enumerate(self.widths):
            step, zero = data.grid(rows, number)
            round_weights(weight, width, step, work.delta, zero)
            np.subtract(work.delta, weight, out=work.delta)
            work.effects[number] = self.increase(work.delta, weight)
            if not self.checked:
                _check(data.name, work.effects[number])
            np.copyto(work.loss, work.effects[number])
            np.multiply(work.loss, work.combined, out=work.loss)
            for choice in best:
                choice.offer(number, work.loss, work)
        return best

    def _combine(self, data: StreamedLayer, rows: slice, weights: Floats, work: _Workspace) -> None:
        """Write Σ_g weights[g]·maps[g] in float64 to ``work.combined``, without the groups of weight 0."""
        work.combined.fill(0.0)
        for group, weight in enumerate(weights.tolist()):
            if not self.checked:
                _check(data.name, data.maps[group, rows])
            if weight:
                np.copyto(work.loss, data.maps[group, rows])
                np.multiply(work.loss, weight, out=work.loss)
                np.add(work.combined, work.loss, out=work.combined)

    def _group_sums(self, layer: int, rows: slice, index: Index) -> Floats:
        """Return Σ over each row's weights of maps·effect of the choice (r, n), of the block priced last: (G, r)."""
        maps, work = self.layers[layer].maps, self._work(index.shape)
        effect = work.chosen(index).astype(np.float64)
        sums = np.empty((len(maps), len(index)))
        for group in range(len(maps)):
            np.copyto(work.loss, maps[group, rows])
            np.multiply(work.loss, effect, out=work.loss)
            work.loss.sum(axis=1, out=sums[group])
        return sums

    def _count(self, index: Index) -> Counts:
        """Return how many of a block's weights took each width (W,)."""
        return np.array([np.count_nonzero(index == number) for number in range(len(self.widths))])


def _check(name: str, values: npt.NDArray[np.floating[Any]]) -> None:
    if values.size and not (values.min() >= 0 and values.max() < np.inf):
        raise ValueError(f"layer {name}: got NaN, infinity or a negative number; allowed: finite maps and losses >= 0")


def _total(sums: Sequence[Floats]) -> Floats:
    """Return the exact sum of row sums, rounded once: blocks of (G, r) → (G,)."""
    return np.array([math.fsum(group.tolist()) for group in np.concatenate(sums, axis=1)])
