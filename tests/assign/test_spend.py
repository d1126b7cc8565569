"""Budgets are kept and used, and the widths are the best there are: against the size report and brute force."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from fairquant import plugins
from fairquant.allocate.bitmap import unit_shape
from fairquant.assign.losses import LayerLosses
from fairquant.assign.run import assign
from fairquant.assign.spend import coupled, protected_losses
from fairquant.config import Config
from fairquant.errors import ConfigError
from fairquant.importance.maps import ImportanceMaps
from tests.assign.small import (
    GROUPS,
    SHAPES,
    all_bitmaps,
    fits,
    importance_maps,
    loss_table,
    model_info,
    random_shapes,
    spending,
    weights,
)

RESERVE = 6e-6
"""Megabytes of a packed file that may stay unused: whole bytes of three layers and the map, a code that is not best."""
REDUCERS = [n for n in plugins.names("reducer") if hasattr(plugins.load("reducer", n), "objective")]


def configure(budget, *, bits=(0, 1, 2, 4, 8), reducer="max", granularity="per_channel", gap=0.001, **more):
    assign_ = {"optimal": {"bits": list(bits), "gap": gap, "couple": more.pop("couple", [])}, **more.pop("assign", {})}
    return Config(
        allocator="optimal",
        reducer=reducer,
        granularity=granularity,
        budget={"avg_bits": None, **budget},
        assign=assign_,
        quantize={"scale": "mse"},
        **more,
    )


def solve(shapes, config, *, seed=0, rest=3, groups=GROUPS, metric="fisher"):
    info, maps = model_info(shapes, rest=rest, seed=seed), importance_maps(shapes, groups, seed=seed, metric=metric)
    return info, maps, assign(maps, info, config, lambda: weights(shapes, seed=seed + 1))


def worth(name, totals, maps):
    """Return what a reducer makes of totals (…, G), written down anew."""
    if name == "mean":
        return totals.mean(axis=-1)
    if name == "cvar":  # α = 0.5: of three groups one and a half are the tail
        ordered = np.sort(totals, axis=-1)[..., ::-1]
        return (ordered[..., 0] + 0.5 * ordered[..., 1]) / 1.5
    if name == "balanced":
        stake = np.array([sum(float(v[g].sum(dtype=np.float64)) for v in maps.layers.values()) for g in range(3)])
        return (totals * stake.sum() / stake).max(axis=-1)
    return totals.max(axis=-1)


def totals_of(bits, maps, shapes, config, *, seed=0, metric="fisher"):
    """Return predicted losses (G,) of a whole map by plain loops."""
    total = np.zeros(len(maps.groups))
    for name, weight in weights(shapes, seed=seed + 1).items():
        widths = sorted(bits.counts(name))
        table = loss_table(weight, maps.layers[name], config, widths, metric)
        units = bits.layers[name].reshape(-1)
        total += sum(table[:, unit, widths.index(int(width))] for unit, width in enumerate(units))
    return total


class TestOptimum:
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
    @pytest.mark.parametrize("reducer", REDUCERS)
    @pytest.mark.parametrize("budget", [{"avg_bits": 2.5}, {"size_mb": 0.000062}, {"gbops": 4e-5}])
    def test_brute_force(self, granularity, reducer, budget):
        for seed in range(2):
            config = configure(budget, reducer=reducer, granularity=granularity, bits=(0, 2, 4), gap=1e-6)
            info, maps, found = solve(SHAPES, config, seed=seed)
            smaller = {key: limit - RESERVE if key == "size_mb" else limit for key, limit in budget.items()}
            best = spared = math.inf
            for bits in all_bitmaps(granularity, SHAPES, (0, 2, 4), {}):
                value = float(worth(reducer, self.quick(bits, maps, config, seed), maps))
                best = min(best, value if fits(bits, info, budget) else math.inf)
                spared = min(spared, value if fits(bits, info, smaller) else math.inf)
            assert spared < math.inf and fits(found.bits, info, budget)
            own = totals_of(found.bits, maps, SHAPES, config, seed=seed)
            np.testing.assert_allclose(found.spent.totals, own, rtol=1e-5)
            assert found.spent.value == pytest.approx(float(worth(reducer, own, maps)), rel=1e-5)
            assert found.spent.bound <= found.spent.value
            assert best * (1 - 1e-5) <= found.spent.value <= spared * (1 + 1e-5)

    def quick(self, bits, maps, config, seed):
        """Return totals (G,) from tables made once."""
        key = (config.granularity, seed)
        if getattr(self, "key", None) != key:
            self.key = key
            self.tables = {
                name: loss_table(weight, maps.layers[name], config, (0, 2, 4), "fisher")
                for name, weight in weights(SHAPES, seed=seed + 1).items()
            }
        index = {0: 0, 2: 1, 4: 2}
        return sum(
            self.tables[name][:, unit, index[int(width)]]
            for name, units in bits.layers.items()
            for unit, width in enumerate(units.reshape(-1))
        )

    @pytest.mark.parametrize("reducer", REDUCERS)
    def test_per_param_brute_force(self, reducer):
        shapes = {"conv": (1, 2, 1, 2), "fc": (2, 2)}
        config = configure({"avg_bits": 2.0}, reducer=reducer, granularity="per_param", bits=(0, 2, 4), gap=1e-6)
        info, maps, found = solve(shapes, config)
        channel = configure({"avg_bits": 2.0}, bits=(0, 2, 4))
        tables = {}
        for name, weight in weights(shapes).items():
            flat, importance = weight.reshape(len(weight), -1), maps.layers[name].reshape(3, len(weight), -1)
            alone = [  # one weight's own share of its channel's loss, with the channel's step size
                loss_table(flat, np.where(np.arange(importance[0].size).reshape(importance[0].shape) == place,
                                          importance, 0), channel, (0, 2, 4), "fisher").sum(axis=1)
                for place in range(flat.size)
            ]  # fmt: skip
            tables[name] = np.stack(alone, axis=1)
        index = {0: 0, 2: 1, 4: 2}
        best = math.inf
        for bits in all_bitmaps("per_param", shapes, (0, 2, 4), {}):
            if fits(bits, info, {"avg_bits": 2.0}):
                total = sum(
                    tables[name][:, place, index[int(width)]]
                    for name, units in bits.layers.items()
                    for place, width in enumerate(units.reshape(-1))
                )
                best = min(best, float(worth(reducer, total, maps)))
        assert fits(found.bits, info, {"avg_bits": 2.0})
        assert found.spent.value == pytest.approx(best, rel=1e-5)

    @pytest.mark.parametrize("metric", plugins.names("importance"))
    def test_every_metric(self, metric):
        config = configure({"avg_bits": 2.0}, bits=(0, 2, 4), gap=1e-6)
        info, maps, found = solve(SHAPES, config, metric=metric)
        own = totals_of(found.bits, maps, SHAPES, config, metric=metric)
        np.testing.assert_allclose(found.spent.totals, own, rtol=1e-5)
        assert fits(found.bits, info, {"avg_bits": 2.0})


BUDGETS = (
    {"avg_bits": 2.3}, {"size_mb": 0.9}, {"gbops": 0.4}, {"avg_bits": 3.1, "gbops": 0.4},
    {"size_mb": 0.9, "gbops": 0.5}, {"avg_bits": 2.6, "size_mb": 0.8, "gbops": 0.45},
)  # fmt: skip
"""Average bits, and shares of what 8 bits everywhere cost."""


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
@pytest.mark.parametrize("wanted", BUDGETS, ids=str)
def test_budgets_are_kept_and_met(granularity, wanted):
    """Never exceeded in the reports; what is left does not pay for one more step of any unit that would gain by it."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shapes = random_shapes(rng, layers=4, largest=9)
        info = model_info(shapes, rest=20, seed=seed)
        held = {"fc1": 8} if seed % 2 else {}
        whole = spending(next(all_bitmaps(granularity, shapes, (8,), {})), info)
        budget = {key: share if key == "avg_bits" else share * 0.5 * whole[key] for key, share in wanted.items()}
        protect = {"protect": {"layers": list(held), "bits": 8}}
        config = configure(budget, granularity=granularity, assign=protect, reducer="mean")
        try:
            info, maps, found = solve(shapes, config, seed=seed, rest=20)
        except ConfigError as error:  # the protected layers alone cost more
            assert held and "allowed: at least" in str(error)
            continue
        assert fits(found.bits, info, budget)
        assert all((found.bits.layers[name] == width).all() for name, width in held.items())
        if granularity != "per_param":
            assert not steps_left(found, info, budget, held, reserve=len(shapes) + 1 + 2 * 6 + 4)


WIDER = {"conv": (16, 3, 3, 3), **{f"mid{n}": (24, 24, 3, 3) for n in range(4)}, "fc": (10, 24)}


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
@pytest.mark.parametrize("width", [2, 4])
def test_never_worse_than_one_width_of_the_same_bytes(granularity, width):
    """One width needs no map of widths: a choice that pays for one has to be worth it."""
    _, _, alone = solve(WIDER, configure({"avg_bits": width}, bits=(width,), granularity=granularity))
    info = model_info(WIDER)
    size = spending(alone.bits, info)["size_mb"]
    for bits in ((width, 8), (2, 4, 8), (0, 1, 2, 4, 8)):
        found = solve(WIDER, configure({"size_mb": size}, bits=bits, granularity=granularity))[2]
        assert spending(found.bits, info)["size_mb"] <= size
        assert found.spent.value <= alone.spent.value * (1 + 1e-6)
        assert found.spent.bound <= found.spent.value


def test_packed_bytes_are_used_up():
    """Single weights whose map takes a third of the file: its code is known only once the widths are."""
    info = model_info(WIDER)
    size = 0.3 * spending(next(all_bitmaps("per_param", WIDER, (8,), {})), info)["size_mb"]

    def at(limit):
        found = solve(WIDER, configure({"size_mb": limit}, bits=range(9), granularity="per_param"))[2]
        return spending(found.bits, info)["size_mb"], found.spent.value

    used, value = at(size)
    assert 0 <= size - used <= 2e-3 * size
    others = [at(factor * size) for factor in (1.02, 1.05, 1.1)]
    assert all(value <= 1.02 * more for needed, more in others if needed <= size)


def test_one_width_keeps_the_other_budgets_too():
    _, _, alone = solve(WIDER, configure({"avg_bits": 4}, bits=(4,), granularity="per_param"))
    info = model_info(WIDER)
    budget = {"size_mb": spending(alone.bits, info)["size_mb"], "avg_bits": 3.5}
    found = solve(WIDER, configure(budget, bits=(2, 4, 8), granularity="per_param"))[2]
    assert fits(found.bits, info, budget)


@pytest.mark.parametrize("key", ["size_mb", "gbops"])
@pytest.mark.parametrize("limit", [1e15, 1e300, 1.7e308])
def test_a_limit_beyond_any_model_is_none(key, limit):
    found = solve(SHAPES, configure({key: limit}, bits=(2, 4, 8)))[2]
    assert all((widths == 8).all() for widths in found.bits.layers.values())


def steps_left(found, info, budget, held, reserve):
    """Return the units that could be one width wider within every budget, and would lose less for it.

    ``reserve``: bytes of a packed file that stay unused (whole bytes per layer, codes of widths that are not used).
    """
    widths, left = found.problem.widths, []
    limits = dict(budget)
    if "size_mb" in limits:
        limits["size_mb"] -= reserve / 1e6
    for name, units in found.bits.layers.items():
        if name in held:
            continue
        losses = found.problem.solver.layers[name].losses.sum(axis=0)
        for unit, width in enumerate(units.reshape(-1).tolist()):
            place = widths.index(width)
            if place + 1 == len(widths) or losses[unit, place + 1] >= losses[unit, place]:
                continue
            wider = {other: value.copy() for other, value in found.bits.layers.items()}
            wider[name].reshape(-1)[unit] = widths[place + 1]
            if fits(dataclasses.replace(found.bits, layers=wider), info, limits):
                left.append((name, unit))
    return left


class TestProtected:
    def test_their_loss_counts(self):
        """Two groups: a loses much in the protected layer, so that what is left protects a and not b."""
        shapes = {"conv": (1, 4), "one": (1, 4), "two": (1, 4)}
        rows = {"conv": [[9e3, 9e3, 9e3, 9e3], [0, 0, 0, 0]], "one": [[1, 1, 1, 1], [0, 0, 0, 0]],
                "two": [[0, 0, 0, 0], [2, 2, 2, 2]]}  # fmt: skip
        layers = {name: np.float32(value).reshape(2, 1, 4) for name, value in rows.items()}
        maps = ImportanceMaps(("a", "b"), (1, 1), layers, {"metric": "fisher"})
        same = weights(shapes)
        same["two"] = same["one"].copy()
        chosen = {}
        for width in (2, 32):
            protect = {"protect": {"layers": ["conv"], "bits": width}}
            config = configure({"avg_bits": (4 * width + 16) / 12}, bits=(0, 4), assign=protect)
            found = assign(maps, model_info(shapes), config, lambda: same)
            chosen[width] = (found.bits.layers["one"].item(), found.bits.layers["two"].item())
            own = loss_table(same["conv"], layers["conv"], config, (width,), "fisher")[:, 0, 0]
            assert (found.spent.totals >= own * (1 - 1e-6)).all()
        assert chosen == {2: (4, 0), 32: (0, 4)}

    def test_sums_by_hand(self):
        layers = {name: LayerLosses(np.array([[[1.0], [2.0]], [[3.0], [4.0]]]), np.ones((2, 1))) for name in "xy"}
        assert protected_losses(layers, 2).tolist() == [6.0, 14.0]
        assert protected_losses({}, 3).tolist() == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
    def test_everything_protected(self, granularity):
        protect = {"protect": {"layers": ["*"], "bits": 4}}
        info, maps, found = solve(SHAPES, configure({"avg_bits": 4.0}, granularity=granularity, assign=protect))
        assert found.bits.widths() == (4,) and found.bits.granularity == granularity
        if granularity != "per_param":
            own = totals_of(found.bits, maps, SHAPES, configure({"avg_bits": 4.0}, granularity=granularity))
            np.testing.assert_allclose(found.spent.totals, own, rtol=1e-5)

    def test_protected_layers_may_cost_too_much(self):
        protect = {"protect": {"layers": ["conv", "fc"], "bits": 32}}
        line = (
            "budget.avg_bits: got 4; allowed: at least 20, what 0 bits everywhere and 2 protected layers need "
            "(assign.optimal.bits, granularity per_channel)"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
            solve(SHAPES, configure({"avg_bits": 4.0}, assign=protect))


class TestCoupled:
    SHAPES = {"q": (3, 4), "k": (3, 4), "v": (3, 4), "proj": (4, 3)}

    def test_they_share_and_are_the_best_that_do(self):
        config = configure({"avg_bits": 2.0}, bits=(0, 2, 4), couple=[["q", "k"]], reducer="mean", gap=1e-6)
        info, maps, found = solve(self.SHAPES, config)
        np.testing.assert_array_equal(found.bits.layers["q"], found.bits.layers["k"])
        tables = {
            name: loss_table(weight, maps.layers[name], config, (0, 2, 4), "fisher").mean(axis=0)
            for name, weight in weights(self.SHAPES).items()
        }
        rows = np.concatenate([tables["q"] + tables["k"], tables["v"], tables["proj"]])
        costs = np.repeat([[0, 16, 32], [0, 8, 16], [0, 6, 12]], [3, 3, 4], axis=0)
        assert found.spent.value == pytest.approx(brute_force(rows, costs, 2 * 48), rel=1e-5)
        free = solve(self.SHAPES, configure({"avg_bits": 2.0}, bits=(0, 2, 4), reducer="mean", gap=1e-6))[2]
        assert free.spent.value <= found.spent.value
        assert not np.array_equal(free.bits.layers["q"], free.bits.layers["k"])

    def test_patterns_and_blocks(self):
        layers = {"b0.q": 4, "b0.k": 4, "b1.q": 4, "b1.k": 4, "fc": 2}

        def patterns(pattern):
            return [name for name in layers if re.fullmatch(pattern.replace("*", ".*"), name)]

        blocks = coupled(layers, patterns, (("b1.k", "b1.q"), ("b0.*",)))
        assert blocks == (("b0.q", "b0.k"), ("b1.q", "b1.k"), ("fc",))
        assert coupled(layers, patterns, ()) == tuple((name,) for name in layers)

    @pytest.mark.parametrize(
        "couple, line",
        [
            ([["q", "k"], ["k", "v"]], "got layer k in two lists; allowed: in one at most"),
            (
                [["q", "proj"]],
                "got layers q (3 units) and proj (4 units); allowed: layers with the same number of units",
            ),
            (
                [["q", "kk"]],
                "got 'kk', which matches no layer; allowed: first | last | classifier | a pattern of layer names "
                "(close: k)",
            ),
        ],
    )
    def test_mistakes(self, couple, line):
        with pytest.raises(ConfigError, match=f"^{re.escape('assign.optimal.couple: ' + line)}$"):
            solve(self.SHAPES, configure({"avg_bits": 2.0}, couple=couple))

    def test_single_weights_do_not_share(self):
        line = (
            "assign.optimal.couple: got [['q', 'k']] with granularity per_param; allowed: [] (single weights do not "
            "share widths)"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
            solve(self.SHAPES, configure({"avg_bits": 2.0}, couple=[["q", "k"]], granularity="per_param"))


def brute_force(rows, costs, limit):
    """Return the least sum of one entry of every row within the limit, by dynamic programming over whole costs."""
    best = np.full(limit + 1, np.inf)
    best[0] = 0.0
    for losses, prices in zip(rows, costs.tolist(), strict=True):
        new = np.full(limit + 1, np.inf)
        for loss, price in zip(losses, prices, strict=True):
            new[price:] = np.minimum(new[price:], best[: limit + 1 - price] + loss)
        best = new
    return float(best.min())


class TestInfeasible:
    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
    @pytest.mark.parametrize("key", ["avg_bits", "size_mb", "gbops"])
    @pytest.mark.parametrize("protected", [False, True])
    def test_the_budget_named_is_the_smallest(self, key, granularity, protected):
        for seed in range(3):
            shapes = random_shapes(np.random.default_rng(seed), layers=3, largest=7)
            protect = {"protect": {"layers": ["last"] if protected else [], "bits": 3}}
            shared = {"bits": (1, 2, 8), "granularity": granularity, "assign": protect}
            with pytest.raises(ConfigError) as error:
                solve(shapes, configure({key: 1e-7}, **shared), seed=seed)
            held = " and 1 protected layers" if protected else ""
            found = re.fullmatch(
                rf"budget\.{key}: got 1e-07; allowed: at least ([0-9.e+-]+), what 1 bits everywhere{held} need "
                rf"\(assign\.optimal\.bits, granularity {granularity}\)",
                str(error.value),
            )
            assert found, str(error.value)
            smallest = float(found[1])
            info, _, done = solve(shapes, configure({key: smallest}, **shared), seed=seed)
            assert fits(done.bits, info, {key: smallest})
            assert done.bits.widths() == ((1, 3) if protected else (1,))
            with pytest.raises(ConfigError, match=re.escape(f"at least {found[1]},")):
                solve(shapes, configure({key: smallest * (1 - 2e-5) - 1e-6 * (key == "size_mb")}, **shared), seed=seed)

    def test_by_hand(self):
        """16 weights, 7 channels: 2 bits everywhere are 2 bits; 16·2 bits in whole bytes, 7 scales, rest 3."""
        for key, text in (("avg_bits", "2"), ("size_mb", "4.7e-05")):
            line = (
                f"budget.{key}: got 1e-05; allowed: at least {text}, what 2 bits everywhere need "
                "(assign.optimal.bits, granularity per_channel)"
            )
            with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
                solve(SHAPES, configure({key: 1e-5}, bits=(2, 4)))

    def test_of_several_the_one_that_cannot_be_met(self):
        with pytest.raises(ConfigError, match=r"^budget\.gbops: got 1e-09; allowed: at least "):
            solve(SHAPES, configure({"avg_bits": 4.0, "gbops": 1e-9, "size_mb": 0.1}, bits=(2, 4)))

    def test_bytes_are_named_to_the_last_one(self):
        """A model of 46 MB: six digits would fall short of it."""
        shapes = {"fc": (3, 4)}
        with pytest.raises(ConfigError, match=r"at least 46\.761222, "):
            solve(shapes, configure({"size_mb": 1.0}, bits=(0, 2)), rest=11_690_305)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_the_order_of_groups_plays_no_part(reducer, granularity):
    config = configure({"avg_bits": 2.4}, reducer=reducer, granularity=granularity)
    shapes = {"conv": (4, 3, 3, 3), "fc": (5, 8)}
    info, maps, one = solve(shapes, config)
    order = [2, 0, 1]
    moved = ImportanceMaps(
        tuple(GROUPS[i] for i in order), (5,) * 3, {n: v[order] for n, v in maps.layers.items()}, maps.meta
    )
    two = assign(moved, info, config, lambda: weights(shapes))
    for name in shapes:
        np.testing.assert_array_equal(one.bits.layers[name], two.bits.layers[name])
    np.testing.assert_allclose(two.spent.totals, one.spent.totals[order], rtol=1e-12)
    np.testing.assert_allclose(two.spent.group_weights, one.spent.group_weights[order], rtol=1e-6, atol=1e-9)
    assert two.spent.value == pytest.approx(one.spent.value, rel=1e-12)


def test_minimax_protects_the_group_that_the_mean_gives_up():
    """Bits for one of two layers; b alone depends on the second."""
    shapes = {"shared": (1, 4), "own": (1, 8)}
    layers = {
        "shared": np.float32([[[4] * 4], [[1] * 4], [[4] * 4]]),
        "own": np.float32([[[0] * 8], [[4] * 8], [[0] * 8]]),
    }
    maps = ImportanceMaps(GROUPS, (1,) * 3, layers, {"metric": "fisher"})
    flat = {"shared": np.full((1, 4), 0.5, np.float32), "own": np.full((1, 8), 0.5, np.float32)}
    chosen = {}
    for reducer in ("mean", "max"):
        config = configure({"avg_bits": 2.7}, bits=(0, 4), reducer=reducer)
        found = assign(maps, model_info(shapes), config, lambda: flat)
        chosen[reducer] = [found.bits.layers[name].item() for name in shapes]
    assert chosen == {"mean": [4, 0], "max": [0, 4]}  # 4.5/3 against 4/3 lost, and 2 against 4


def test_a_price_is_what_more_budget_saves():
    shapes = {"conv": (8, 3, 3, 3), "fc": (20, 30)}
    config = configure({"avg_bits": 2.5}, reducer="mean", gap=1e-6)
    _, _, found = solve(shapes, config)
    _, _, more = solve(shapes, configure({"avg_bits": 2.6}, reducer="mean", gap=1e-6))
    saved = (found.spent.value - more.spent.value) / 0.1
    assert found.spent.prices["avg_bits"] == pytest.approx(saved, rel=0.3)
    _, _, plenty = solve(shapes, configure({"avg_bits": 32.0}, reducer="mean"))
    assert plenty.spent.prices == {"avg_bits": 0.0}
    assert plenty.bits.widths() == (8,)


def test_shapes_of_what_is_found():
    for granularity in ("per_tensor", "per_channel", "per_param"):
        protect = {"protect": {"layers": ["mid"], "bits": 8}}
        _, _, found = solve(SHAPES, configure({"avg_bits": 5.0}, granularity=granularity, assign=protect))
        assert list(found.bits.layers) == list(SHAPES) and list(found.spent.bits) == ["conv", "fc"]
        assert all(found.bits.layers[n].shape == unit_shape(granularity, s) for n, s in SHAPES.items())
        assert all(value.dtype == np.uint8 for value in found.bits.layers.values())
