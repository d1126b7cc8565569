"""One width for every single weight: the knapsack over groups for models whose table of losses would not fit.

With group weights λ and prices μ every weight chooses for itself, so the problem is its dual's

    D(λ, μ) = Σ_w min_b (Σ_g λ_g·scale_g·I_g·h_b + Σ_k μ_k·cost_kb) + Σ_g λ_g·scale_g·offset_g − Σ_k μ_k·limit_k

concave in a dozen variables, and each of its values bounds the optimum from below. A sample of the weights is solved as
a table (``fairquant.allocate.knapsack``); from there Newton steps, each a pass over all weights, lead to the λ and μ of
all weights (``_sample``, ``_search``). The choice is a monotone function of one multiplier s on μ: a few more passes
enclose the s that meets all budgets, and within that small interval steps are taken in model order until nothing more
fits (``_budgets``). D over all weights in float64 proves the result.

Everett 1963 (Operations Research 11) for the multiplier, Geoffrion 1974 (Math. Programming Study 2) for the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairquant.allocate.knapsack import minimise
from fairquant.allocate.objective import Objective
from fairquant.assign._budgets import Budgets
from fairquant.assign._sample import Sample
from fairquant.assign._search import Search
from fairquant.assign._stream import BLOCK, Floats, Increase, Index, Single, Stream

SAMPLE = 65_536
"""Weights in the sample; a problem of no more is solved as a table."""


@dataclass(frozen=True)
class StreamedLayer:
    """A layer's ``weight`` (out, n), importance ``maps`` (G, out, n) and ``steps`` (out, W), all float32.

    ``maps`` may be a strided view of a memory-mapped file; it is read in blocks of rows. ``steps`` are the step sizes
    of every channel at every candidate width, ``zeros`` (out, W) the zero points with them where grids are asymmetric;
    those at 0 and 32 bits are not looked at.
    """

    name: str
    weight: Single
    maps: Single
    steps: Single
    zeros: Single | None = None

    def grid(self, rows: slice | npt.NDArray[np.intp], number: int) -> tuple[Single, Single | None]:
        """Return the step sizes and zero points (r, 1) of some channels at candidate width ``number``."""
        step = self.steps[rows, number : number + 1]
        return step, None if self.zeros is None else self.zeros[rows, number : number + 1]


@dataclass(frozen=True)
class StreamedSolution:
    """Index into the widths for every weight, by layer (out, n), and its proof, as in ``knapsack.Solution``."""

    choice: list[Index]
    totals: Floats
    value: float
    bound: float
    gap: float
    spent: Floats
    group_weights: Floats
    prices: Floats


def minimise_streamed(
    layers: Sequence[StreamedLayer],
    widths: Sequence[int],
    costs: Floats,
    limits: npt.ArrayLike,
    objective: Objective,
    *,
    increase: Increase,
    offset: Floats | None = None,
    gap: float = 1e-3,
    seed: int = 0,
    sample: int = SAMPLE,
    block: int = BLOCK,
) -> StreamedSolution:
    """Return a width for every weight with the least objective of the groups' predicted losses within all budgets.

    Args:
        layers: in model order.
        widths: candidates, ascending: 0…16 or 32.
        costs: (K, n_layers, W), of one weight of a layer at a width, ≥ 0 and not decreasing in W.
        limits: (K,).
        objective: over the groups' totals.
        increase: (δ, weight) → h ≥ 0, of their shape; group g is predicted to lose Σ maps[g]·h.
        offset: (G,), what the groups lose whatever is chosen; part of the totals. None: nothing.
        gap: how far from the optimum the result may be, as a share; the result's own ``gap`` is what was proved.
        seed: of the sample.
        sample: weights in the sample; a model of no more is solved exactly, as a table.
        block: weights per block; results do not depend on it.

    Raises ``Infeasible`` where the cheapest widths exceed a limit, ``ValueError`` for shapes that do not fit and losses
    that are negative or not finite.

    >>> layer = StreamedLayer("fc", np.float32([[0.9, 0.1]]), np.float32([[[2, 2]]]), np.float32([[1, 0.9, 0.3]]))
    >>> solution = minimise_streamed([layer], (0, 2, 3), np.array([[[0.0, 2.0, 3.0]]]), [2.5], Objective.tail(1, cap=1),
    ...                              increase=lambda delta, weight: 0.5 * delta * delta)
    >>> solution.choice[0].tolist(), round(solution.value, 6), solution.spent.tolist()
    ([[1, 0]], 0.01, [2.0])
    """
    groups = len(objective.scale)
    stream = Stream(layers, groups, tuple(widths), np.asarray(costs, np.float64), increase, block)
    budgets = Budgets(stream.costs, np.asarray(limits, np.float64), stream.sizes, len(stream.widths))
    constant = np.zeros(groups) if offset is None else np.asarray(offset, np.float64)
    _check_shapes(layers, len(stream.widths), groups)
    if sum(stream.sizes) <= sample:
        return _as_table(stream, budgets, Sample.whole(stream), objective, constant, gap)
    drawn = Sample.draw(stream, sample, seed, objective.scale / groups)
    found = Search(stream, budgets, objective, constant, drawn, gap).run()
    return StreamedSolution(**vars(found))


def streamed_totals(
    layers: Sequence[StreamedLayer], widths: Sequence[int], number: int, groups: int, *, increase: Increase
) -> Floats:
    """Return what each group is predicted to lose (G,) with every weight at ``widths[number]``."""
    costs = np.ones((1, len(layers), len(widths)))
    costs[:, :, number] = 0.0
    stream = Stream(layers, groups, tuple(widths), costs, increase)
    totals = stream.evaluate(np.ones(groups), [np.array([1e300])], totals=0)[0].totals
    assert totals is not None
    return totals


def _check_shapes(layers: Sequence[StreamedLayer], widths: int, groups: int) -> None:
    for layer in layers:
        out, n = layer.weight.shape
        zeros = layer.steps if layer.zeros is None else layer.zeros
        parts = (
            ("maps", layer.maps, (groups, out, n)),
            ("steps", layer.steps, (out, widths)),
            ("zeros", zeros, (out, widths)),
        )
        for name, array, shape in parts:
            if array.shape != shape:
                raise ValueError(f"{name} of layer {layer.name}: got shape {array.shape}; allowed: {shape}")


def _as_table(
    stream: Stream, budgets: Budgets, table: Sample, objective: Objective, offset: Floats, gap: float
) -> StreamedSolution:
    """Solve with the losses of all weights at hand; ``offset`` is a unit without a choice."""
    groups, _, widths = table.losses.shape
    losses = np.concatenate([table.losses, np.broadcast_to(offset[:, None, None], (groups, 1, widths))], axis=1)
    costs = np.concatenate([table.costs, np.zeros((len(budgets.limits), 1, widths))], axis=1)
    found = minimise(losses, costs, budgets.limits, objective, gap=gap)
    parts = np.split(found.choice.astype(np.uint8), np.cumsum(stream.sizes, dtype=np.int64))[
        :-1
    ]  # the last: the offset
    choice = [part.reshape(layer.weight.shape) for part, layer in zip(parts, stream.layers, strict=True)]
    return StreamedSolution(
        choice, found.totals, found.value, found.bound, found.gap, found.spent, found.group_weights, found.prices
    )
