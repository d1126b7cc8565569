"""A width for every weight: against brute force, against the knapsack over a table, and against other blocks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairquant.allocate.knapsack import Infeasible, minimise
from fairquant.allocate.objective import Objective
from fairquant.assign._budgets import Budgets, Filling
from fairquant.assign._sample import Point, Sample
from fairquant.assign._search import Search
from fairquant.assign._stream import Stream, round_weights
from fairquant.assign.per_param import StreamedLayer, minimise_streamed, streamed_totals
from fairquant.quantize.ladder import asymmetric_grids, quantize_rows, step_sizes

WIDTHS = (0, 1, 2, 3, 4, 6, 8)
BITS = np.array(WIDTHS, dtype=np.float64)
SHAPES = ((24, 27), (32, 40), (10, 130), (1, 64), (64, 1))
GROUPS = 4
COARSE = 2e-2
"""The gap of 3,356 weights: each is a visible share of everything, and λ alone cannot make the groups quite equal."""
OBJECTIVES = {
    "mean": Objective.tail(GROUPS, cap=1 / GROUPS),
    "max": Objective.tail(GROUPS, cap=1.0),
    "cvar": Objective.tail(GROUPS, cap=0.4),
    "balanced": Objective.tail(GROUPS, cap=1.0, scale=[1.0, 0.5, 2.0, 0.0]),
}


def increase(delta, weight):
    return np.float32(0.5) * delta * delta


def case(shapes=SHAPES, seed=0, spread=1.0, widths=WIDTHS):
    """Layers of Gaussian weights with log-normal maps that the groups share in part."""
    rng = np.random.default_rng(seed)
    layers = []
    for number, (out, n) in enumerate(shapes):
        weight = rng.standard_normal((out, n), dtype=np.float32) * np.float32(rng.uniform(0.5, 2))
        shared = spread * rng.standard_normal((out, n)) + rng.normal()
        maps = np.exp(shared + 0.5 * rng.standard_normal((GROUPS, out, n))).astype(np.float32)
        steps = step_sizes(torch.from_numpy(weight), widths, method="absmax", percentile=100).numpy()
        layers.append(StreamedLayer(f"layer{number}", weight, maps, steps))
    return layers


def count(layers):
    return sum(layer.weight.size for layer in layers)


def bits(layers, widths=WIDTHS):
    return np.broadcast_to(np.array(widths, dtype=np.float64), (1, len(layers), len(widths))).copy()


def table(layers, widths, costs):
    """The whole table in float64, by the quantizer's own arithmetic: losses (G, U, W), costs (K, U, W)."""
    losses, prices = [], []
    for number, layer in enumerate(layers):
        w, parts = torch.from_numpy(layer.weight), []
        for index, width in enumerate(widths):
            step, zero = layer.grid(slice(None), index)
            rounded = quantize_rows(w, width, torch.from_numpy(step), None if zero is None else torch.from_numpy(zero))
            delta = rounded - w
            parts.append(layer.maps.astype(np.float64) * increase(delta.numpy(), layer.weight))
        losses.append(np.stack(parts, axis=-1).reshape(len(layer.maps), -1, len(widths)))
        prices.append(np.repeat(costs[:, number : number + 1], layer.weight.size, axis=1))
    return np.concatenate(losses, axis=1), np.concatenate(prices, axis=1)


def check(solution, layers, widths, costs, limits, objective, offset=0.0):
    """What a solution says of itself is true: totals, value, spending, budgets, bound and gap."""
    losses, prices = table(layers, widths, costs)
    choice = np.concatenate([part.reshape(-1) for part in solution.choice]).astype(np.int64)
    units = np.arange(len(choice))
    totals = losses[:, units, choice].sum(axis=1) + offset
    spent = [math.fsum(row[units, choice].tolist()) for row in prices]
    assert [part.shape for part in solution.choice] == [layer.weight.shape for layer in layers]
    np.testing.assert_allclose(solution.totals, totals, rtol=1e-9)
    assert solution.spent.tolist() == spent
    assert (np.array(spent) <= limits).all()
    assert solution.value == pytest.approx(objective.value(totals), rel=1e-9)
    assert 0 <= solution.bound <= solution.value
    assert solution.gap == pytest.approx((solution.value - solution.bound) / max(solution.value, 1e-300))
    return losses, prices, choice


def streamed(layers, costs, limits, objective, *, widths=WIDTHS, sample=600, **options):
    """Solve with a sample much smaller than the problem, so that the passes over all weights have to do the work."""
    return minimise_streamed(layers, widths, costs, limits, objective, increase=increase, sample=sample, **options)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 8, 16, 32])
def test_weights_are_rounded_as_the_quantizer_rounds_them(width):
    rng = np.random.default_rng(width)
    weight = rng.standard_normal((5, 300)).astype(np.float32)
    weight[0, :7] = [0.0, -0.0, 0.25, 0.75, -0.25, 1.25, -1.75]
    step = np.float32([[0.5], [0.1], [1.0], [0.01], [3.0]])
    out = np.empty_like(weight)
    round_weights(weight, width, step, out)
    expected = quantize_rows(torch.from_numpy(weight), width, torch.from_numpy(step)).numpy()
    assert (out == expected).all()


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 8, 16, 32])
def test_weights_are_rounded_as_the_quantizer_rounds_them_with_zero_points(width):
    rng = np.random.default_rng(width)
    weight = rng.standard_normal((5, 300)).astype(np.float32)
    weight[0, :7] = [0.0, -0.0, 0.25, 0.75, -0.25, 1.25, -1.75]
    step = np.float32([[0.5], [0.1], [1.0], [0.01], [3.0]])
    zero = rng.integers(0, 2 ** min(width, 16), (5, 1)).astype(np.float32)
    out = np.empty_like(weight)
    round_weights(weight, width, step, out, zero)
    expected = quantize_rows(torch.from_numpy(weight), width, torch.from_numpy(step), torch.from_numpy(zero)).numpy()
    assert (out == expected).all()


def test_a_large_problem_with_zero_points():
    """Streamed losses, the sample's table and the proof are those of asymmetric grids."""
    layers = []
    for layer in case(((20, 60), (30, 40)), seed=3):
        weight = torch.from_numpy(layer.weight + np.float32(0.7))
        steps, zeros = asymmetric_grids(weight, WIDTHS, method="absmax", percentile=100)
        layers.append(StreamedLayer(layer.name, weight.numpy(), layer.maps, steps.numpy(), zeros.numpy()))
    costs, limits, objective = bits(layers), np.array([4.0 * count(layers)]), OBJECTIVES["max"]
    solution = streamed(layers, costs, limits, objective, gap=COARSE)
    check(solution, layers, WIDTHS, costs, limits, objective)
    assert solution.gap <= COARSE
    symmetric = [StreamedLayer(x.name, x.weight, x.maps, step_sizes(torch.from_numpy(x.weight), WIDTHS,
                                                                    method="absmax", percentile=100).numpy())
                 for x in layers]  # fmt: skip
    assert solution.value < streamed(symmetric, costs, limits, objective, gap=COARSE).value


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(5))
def test_brute_force(name, seed):
    layers, widths = case(((1, 3), (2, 2)), seed=seed, widths=(0, 2, 4)), (0, 2, 4)
    costs = np.array([[[0, 2, 4], [0, 3, 5]], [[1, 1, 2], [0, 1, 4]]], dtype=np.float64)
    losses, prices = table(layers, widths, costs)
    limits, units = np.array([13.0, 11.0]), np.arange(7)
    best = min(
        OBJECTIVES[name].value(losses[:, units, choice].sum(axis=1))
        for choice in map(list, itertools.product(range(3), repeat=7))
        if (prices[:, units, choice].sum(axis=1) <= limits).all()
    )
    solution = minimise_streamed(layers, widths, costs, limits, OBJECTIVES[name], increase=increase)
    check(solution, layers, widths, costs, limits, OBJECTIVES[name])
    assert best * (1 - 1e-9) <= solution.value <= best * (1 + 1e-3)
    assert solution.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("average", [1.3, 2.0, 3.7])
def test_passes_over_all_weights_find_what_the_table_gives(name, average):
    layers, objective = case(), OBJECTIVES[name]
    costs, limits = bits(layers), np.array([average * count(layers)])
    solution = streamed(layers, costs, limits, objective)
    losses, prices, _ = check(solution, layers, WIDTHS, costs, limits, objective)
    reference = minimise(losses, prices, limits, objective, gap=1e-3)
    assert solution.bound <= reference.value * (1 + 1e-9)
    assert reference.bound * (1 - 1e-9) <= solution.value <= reference.value * (1 + COARSE)
    assert solution.gap <= COARSE
    assert limits[0] - solution.spent[0] < 4  # less than one weight's step, which may leave out a width or two


@pytest.mark.parametrize("name", OBJECTIVES)
def test_many_weights_within_the_gap_asked_for(name):
    layers = case(((64, 288), (128, 100), (40, 250)), seed=3)
    costs, limits = bits(layers), np.array([2.5 * count(layers)])
    solution = streamed(layers, costs, limits, OBJECTIVES[name], sample=8192)
    check(solution, layers, WIDTHS, costs, limits, OBJECTIVES[name])
    assert solution.gap <= 1e-3


@pytest.mark.parametrize("name", ["mean", "max"])
@pytest.mark.parametrize("share", [(0.3, 0.3), (0.3, 0.9), (0.9, 0.2), (0.45, 0.3)])
def test_two_budgets_and_costs_that_differ_by_layer(name, share):
    layers, objective = case(seed=1), OBJECTIVES[name]
    rng = np.random.default_rng(7)
    work = rng.uniform(0.1, 10, len(layers))
    costs = np.stack([bits(layers)[0] + 0.37 * (BITS > 0), work[:, None] * BITS])
    sizes = np.array([layer.weight.size for layer in layers])
    limits = np.array(share) * (costs[:, :, -1] @ sizes)
    solution = streamed(layers, costs, limits, objective)
    losses, prices, choice = check(solution, layers, WIDTHS, costs, limits, objective)
    reference = minimise(losses, prices, limits, objective, gap=1e-3)
    assert reference.bound * (1 - 1e-9) <= solution.value <= reference.value * (1 + COARSE)
    assert solution.bound <= reference.value * (1 + 1e-9)
    widest = np.diff(costs, axis=2).max(axis=(1, 2)) * 2
    assert (limits - solution.spent < widest).any()
    assert (solution.prices >= 0).all()


def test_what_is_lost_anyway_decides_who_is_worst():
    layers, objective = case(seed=2), OBJECTIVES["max"]
    costs, limits = bits(layers), np.array([2.0 * count(layers)])
    plain = streamed(layers, costs, limits, objective)
    offset = np.array([0.0, 5.0 * plain.value, 0.0, 0.0])
    solution = streamed(layers, costs, limits, objective, offset=offset)
    losses, prices, _ = check(solution, layers, WIDTHS, costs, limits, objective, offset)
    alone = Objective(np.array([0.0, 1.0, 0.0, 0.0]), 1.0)  # nobody else can become worst
    reference = minimise(losses, prices, limits, alone)
    assert solution.value == pytest.approx(reference.value + offset[1], rel=1e-3)
    assert solution.group_weights.argmax() == 1


def test_results_do_not_depend_on_blocks():
    layers, objective = case(), OBJECTIVES["max"]
    costs, limits = bits(layers), np.array([2.0 * count(layers)])
    first = streamed(layers, costs, limits, objective)
    for block in (1, 100, 1 << 20):
        other = streamed(layers, costs, limits, objective, block=block)
        assert all((a == b).all() for a, b in zip(first.choice, other.choice, strict=True))
        for field in ("totals", "spent", "group_weights", "prices"):
            assert getattr(first, field).tobytes() == getattr(other, field).tobytes()
        assert (first.value, first.bound, first.gap) == (other.value, other.bound, other.gap)


def test_the_same_input_gives_the_same_result_and_strided_maps_do_too():
    layers, objective = case(), OBJECTIVES["cvar"]
    costs, limits = bits(layers), np.array([2.0 * count(layers)])
    strided = [replace(layer, maps=np.repeat(layer.maps, 2, axis=1)[:, ::2]) for layer in layers]
    assert not strided[0].maps.flags.c_contiguous
    first, again, other = (streamed(given, costs, limits, objective) for given in (layers, layers, strided))
    for solution in (again, other):
        assert all((a == b).all() for a, b in zip(first.choice, solution.choice, strict=True))
        assert (first.value, first.bound) == (solution.value, solution.bound)


def test_inputs_are_not_changed():
    layers = case(((8, 100),))
    copies = [(layer.weight.copy(), layer.maps.copy(), layer.steps.copy()) for layer in layers]
    streamed(layers, bits(layers), [1600.0], OBJECTIVES["max"], sample=100)
    for layer, (weight, maps, steps) in zip(layers, copies, strict=True):
        assert (layer.weight == weight).all() and (layer.maps == maps).all() and (layer.steps == steps).all()


@pytest.mark.parametrize("sample", [100, 10_000])
def test_maps_of_zeros_cost_nothing(sample):
    layers = [replace(layer, maps=np.zeros_like(layer.maps)) for layer in case()]
    solution = streamed(layers, bits(layers), [count(layers)], OBJECTIVES["max"], sample=sample)
    check(solution, layers, WIDTHS, bits(layers), [count(layers)], OBJECTIVES["max"])
    assert (solution.value, solution.bound, solution.gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("sample", [100, 10_000])
@pytest.mark.parametrize("missed", [0.0, 0.5])
def test_weights_nobody_misses_take_what_is_left(sample, missed):
    layers = case()
    for layer in layers:
        layer.maps[:, : int((1 - missed) * layer.maps.shape[1])] = 0  # what lies behind a dead unit has no gradient
    limit = 7.0 * count(layers)
    solution = streamed(layers, bits(layers), [limit], OBJECTIVES["max"], sample=sample)
    check(solution, layers, WIDTHS, bits(layers), [limit], OBJECTIVES["max"])
    assert 0 <= limit - solution.spent[0] < WIDTHS[-1]  # less than one weight's


def test_weights_of_zero_take_the_cheapest_width():
    layers = case(((16, 100), (16, 100)))
    layers[0].weight[:, ::2] = 0
    solution = streamed(layers, bits(layers), [2.0 * count(layers)], OBJECTIVES["max"])
    check(solution, layers, WIDTHS, bits(layers), [2.0 * count(layers)], OBJECTIVES["max"])
    assert (solution.choice[0][:, ::2] == 0).all()
    assert (solution.choice[0][:, 1::2] > 0).any()


@pytest.mark.parametrize("sample", [100, 10_000])
def test_one_width_leaves_nothing_to_choose(sample):
    layers = case(widths=(4,))
    costs = bits(layers, (4,))
    solution = streamed(layers, costs, [4.0 * count(layers)], OBJECTIVES["max"], widths=(4,), sample=sample)
    check(solution, layers, (4,), costs, [4.0 * count(layers)], OBJECTIVES["max"])
    assert all((part == 0).all() for part in solution.choice)
    assert solution.gap <= 1e-3


@pytest.mark.parametrize("average", [8.0, 100.0])
def test_a_budget_that_does_not_bind_has_no_price(average):
    layers = case()
    solution = streamed(layers, bits(layers), [average * count(layers)], OBJECTIVES["max"])
    losses, *_ = check(solution, layers, WIDTHS, bits(layers), [average * count(layers)], OBJECTIVES["max"])
    assert solution.value == pytest.approx(losses.min(axis=2).sum(axis=1).max(), rel=1e-3)
    assert solution.gap <= 1e-3


@pytest.mark.parametrize("number", range(len(WIDTHS)))
def test_one_width_for_all_loses_what_the_table_says(number):
    layers = case()
    losses, _ = table(layers, WIDTHS, bits(layers))
    found = streamed_totals(layers, WIDTHS, number, GROUPS, increase=increase)
    np.testing.assert_allclose(found, losses[:, :, number].sum(axis=1), rtol=1e-9)


def test_untouched_weights_lose_nothing():
    widths = (2, 32)
    layers = case(((64, 144), (30, 90)), widths=widths)
    costs, limits = bits(layers, widths), np.array([12.0 * count(layers)])
    solution = streamed(layers, costs, limits, OBJECTIVES["max"], widths=widths, sample=4096)
    check(solution, layers, widths, costs, limits, OBJECTIVES["max"])
    assert solution.gap <= COARSE
    assert limits[0] - solution.spent[0] < 30
    free = streamed(layers, costs, [32.0 * count(layers)], OBJECTIVES["max"], widths=widths)
    assert free.value == 0.0


def test_equal_weights_are_told_apart_by_their_place():
    """Every step has the same price: exactly as many are taken as fit, the first in model order."""
    shape = (40, 50)
    layer = StreamedLayer(
        "same", np.full(shape, 0.4, np.float32), np.ones((GROUPS, *shape), np.float32), np.ones((40, 2), np.float32)
    )
    layer.steps[:, 1] = 0.4
    for block in (64, 16_384):
        solution = streamed([layer], np.array([[[0.0, 2.0]]]), [1235.0], OBJECTIVES["max"], widths=(0, 2), block=block)
        chosen = solution.choice[0].reshape(-1)
        assert chosen.sum() == 617
        assert (chosen[:617] == 1).all()
        assert solution.gap <= 1e-3


@pytest.mark.parametrize("sample", [100, 10_000])
def test_infeasible_names_the_smallest_budget(sample):
    layers = case()
    costs = np.concatenate([bits(layers), bits(layers) + 1.5])
    with pytest.raises(Infeasible) as caught:
        streamed(layers, costs, [10.0, 1.0], OBJECTIVES["max"], sample=sample)
    assert (caught.value.index, caught.value.limit, caught.value.smallest) == (1, 1.0, 1.5 * count(layers))
    exact = streamed(layers, costs, [1e9, 1.5 * count(layers)], OBJECTIVES["max"], sample=sample)
    assert all((part == 0).all() for part in exact.choice)


def test_no_layers():
    solution = minimise_streamed([], (2, 4), np.zeros((1, 0, 2)), [0.0], OBJECTIVES["max"], increase=increase,
                                 offset=np.arange(4.0))  # fmt: skip
    assert (solution.choice, solution.value, solution.totals.tolist()) == ([], 3.0, [0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("sample", [100, 10_000])
def test_mistakes_are_named(sample):
    layers = case(((8, 50),))
    costs = bits(layers)
    bad = [replace(layers[0], maps=layers[0].maps.copy())]
    bad[0].maps[2, 5, 7] = np.nan
    with pytest.raises(ValueError, match="NaN, infinity or a negative number; allowed: finite"):
        streamed(bad, costs, [800.0], OBJECTIVES["max"], sample=sample)
    with pytest.raises(ValueError, match=r"maps of layer layer0: got shape \(4, 8, 50\); allowed: \(2, 8, 50\)"):
        streamed(layers, costs, [800.0], Objective.tail(2, cap=1.0), sample=sample)
    with pytest.raises(ValueError, match=r"steps of layer layer0: got shape \(8, 7\); allowed: \(8, 2\)"):
        streamed(layers, costs[:, :, :2], [800.0], OBJECTIVES["max"], widths=(0, 2), sample=sample)
    with pytest.raises(ValueError, match=r"costs: got shape \(1, 1, 7\); allowed: \(2, 1, 7\)"):
        streamed(layers, costs, [800.0, 1.0], OBJECTIVES["max"], sample=sample)
    with pytest.raises(ValueError, match="a wider choice that costs less"):
        streamed(layers, costs[:, :, ::-1], [8000.0], OBJECTIVES["max"], sample=sample)


class TestStream:
    """One pass at given prices, beside the table's own minimum."""

    @pytest.mark.parametrize("price", [0.0, 0.02, 1.0, 1e9])
    def test_evaluation(self, price):
        layers, costs = case(), bits(case())
        weights = np.array([0.3, 0.0, 0.2, 0.5])
        stream = Stream(layers, GROUPS, WIDTHS, costs, increase)
        (found,) = stream.evaluate(weights, [np.array([price])], totals=0)
        losses, prices = table(layers, WIDTHS, costs)
        priced = np.einsum("g,guw->uw", weights, losses) + price * prices[0]
        choice = priced.argmin(axis=1)
        assert found.priced == pytest.approx(priced.min(axis=1).sum(), rel=1e-12)
        assert found.totals == pytest.approx(losses[:, np.arange(len(choice)), choice].sum(axis=1), rel=1e-12)
        assert found.counts.sum(axis=0).tolist() == np.bincount(choice, minlength=len(WIDTHS)).tolist()


class TestMultiplier:
    """The window around the multiplier that meets the budgets, from prices however wrong."""

    @pytest.mark.parametrize("factor", [0.0, 1e-9, 0.5, 1.0, 1.7, 1e9])
    def test_window_encloses_the_limit(self, factor):
        layers, objective, weights = case(), OBJECTIVES["mean"], np.full(GROUPS, 1 / GROUPS)
        stream = Stream(layers, GROUPS, WIDTHS, bits(layers), increase)
        budgets = Budgets(stream.costs, np.array([2.0 * count(layers)]), stream.sizes, len(WIDTHS))
        sample = Sample.draw(stream, 600, 0, weights)
        search = Search(stream, budgets, objective, np.zeros(GROUPS), sample, 1e-3)
        point = Point(weights, factor * sample.typical_prices(weights))
        tried = search._evaluate(point, [1.0])
        window, used = search._enclose(point, tried)
        dear, cheap = (s * float(used.prices[0]) for s in (window.dear, window.cheap))
        losses, prices = table(layers, WIDTHS, stream.costs)

        def spent(price):
            choice = (losses.mean(axis=0) + price * prices[0]).argmin(axis=1)
            return prices[0, np.arange(len(choice)), choice].sum()

        assert spent(dear) <= budgets.limits[0] < spent(cheap)
        assert 1 <= dear / cheap < 1.1
        assert budgets.spent(window.counts)[0] == spent(dear)


class TestFilling:
    """Steps in order, against one weight at a time."""

    @pytest.mark.parametrize("seed", range(5))
    def test_steps_are_those_of_a_plain_loop(self, seed):
        rng = np.random.default_rng(seed)
        costs = np.cumsum(rng.integers(0, 4, (2, 2, 3)) / 10, axis=2)
        low = [rng.integers(0, 2, (5, 40)).astype(np.uint8) for _ in range(2)]
        high = [np.minimum(part + rng.integers(0, 3, part.shape), 2).astype(np.uint8) for part in low]
        counts = np.stack([np.bincount(part.reshape(-1), minlength=3) for part in low])
        spent = [
            math.fsum(counts[layer, w] * costs[k, layer, w] for layer in range(2) for w in range(3)) for k in (0, 1)
        ]
        budgets = Budgets(costs, np.array(spent) + [7.03, 9.51], [200, 200], 3)
        expected, used = (
            [],
            [[costs[k, layer, w] for layer in range(2) for w in low[layer].reshape(-1)] for k in (0, 1)],
        )
        for layer in range(2):
            for a, b in zip(low[layer].reshape(-1), high[layer].reshape(-1), strict=True):
                steps = [[*used[k], costs[k, layer, b], -costs[k, layer, a]] for k in (0, 1)]
                fits = b > a and all(math.fsum(steps[k]) <= budgets.limits[k] for k in (0, 1))
                used = steps if fits else used
                expected.append(fits)
        for cut in (1, 2, 5):
            filling = Filling(budgets, counts)
            taken = [
                filling.take(layer, low[layer][rows : rows + cut], high[layer][rows : rows + cut]).reshape(-1)
                for layer in range(2)
                for rows in range(0, 5, cut)
            ]
            assert np.concatenate(taken).tolist() == expected
        assert 0 < sum(expected) < 400
