"""Costs of widths against the size, the averages and the bit operations that are reported."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fairquant.allocate.bitmap import unit_shape
from fairquant.allocate.info import ModelInfo
from fairquant.assign.budget import Prices, Reserve, first_reserve, prices, reserve_of, whole_bytes
from fairquant.config.schema import BudgetSection
from fairquant.cost.size import huffman_lengths
from tests.assign.small import bitmap_of, model_info, random_shapes, spending

ALL = BudgetSection(avg_bits=3.0, size_mb=0.001, gbops=0.01)
GRANULARITIES = ("per_tensor", "per_channel", "per_param")
SHAPES = {"conv": (2, 3, 1, 1), "fc": (4, 5)}


def random_case(seed, granularity):
    """A model, candidate widths, held layers and an allocation."""
    rng = np.random.default_rng(seed)
    shapes = random_shapes(rng, layers=int(rng.integers(1, 5)))
    widths = tuple(sorted(rng.choice([0, 1, 2, 3, 4, 8, 16, 32], size=rng.integers(1, 6), replace=False).tolist()))
    held = {name: int(rng.choice([0, 1, 8, 32])) for name in shapes if rng.random() < 0.3}
    free = {
        name: rng.choice(widths, size=max(1, math.prod(unit_shape(granularity, shape)))).tolist()
        for name, shape in shapes.items()
        if name not in held
    }
    return model_info(shapes, rest=int(rng.integers(0, 50)), seed=seed), shapes, widths, held, free


def spent(priced: Prices, widths, free):
    """Add up the costs of an allocation: (K,)."""
    positions = [[widths.index(width) for width in units] for units in free.values()]
    return np.array(
        [
            math.fsum(costs[layer, width] for layer, units in enumerate(positions) for width in units)
            for costs in priced.costs
        ]
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("seed", range(40))
def test_prices_are_what_a_map_costs(seed, granularity):
    info, shapes, widths, held, free = random_case(seed, granularity)
    scheme = ("symmetric", "asymmetric")[seed % 2]
    bits = replace(bitmap_of(granularity, shapes, held, free), scheme=scheme)
    model, real = ModelInfo.from_json(info), spending(bits, info)
    for reserve in (first_reserve(widths, held, model, granularity, scheme), reserve_of(bits, widths)):
        priced = prices(ALL, model, granularity=granularity, widths=widths, held=held, reserve=reserve, scheme=scheme)
        assert priced.keys == ("avg_bits", "size_mb", "gbops")
        assert (np.diff(priced.costs, axis=2) >= 0).all()  # what an allocator asks for
        found = (spent(priced, widths, free) + priced.fixed) * priced.unit
        np.testing.assert_allclose(found[[0, 2]], [real["avg_bits"], real["gbops"]], rtol=1e-12)
        assert found[1] >= real["size_mb"] * (1 - 1e-12)  # a budget that holds in prices holds in the file
    # With its own code and scales only whole bytes per layer, codes of widths that are not used, and of widths that
    # cost more than the next are left.
    slack = (found[1] - real["size_mb"]) * 1e6
    units = sum(layer.size for layer in bits.layers.values())
    rounding = len(shapes) * (2 if scheme == "asymmetric" else 1) + 1
    assert slack <= rounding + 2 * len(widths) + (units if 32 in widths or len(widths) > 2 else 0)


@pytest.mark.parametrize("seed", range(20))
def test_its_own_reserve_is_a_few_bytes_off_on_a_real_sized_map(seed):
    """Ten layers of 64 channels, most widths used: the reserve is one byte a layer and rarely more."""
    rng = np.random.default_rng(seed)
    shapes = {f"layer{n}": (64, 288) for n in range(10)}
    widths = (0, 1, 2, 3, 4, 8)
    share = rng.dirichlet(np.ones(6))
    free = {name: rng.choice(widths, size=64, p=share).tolist() for name in shapes}
    info, bits = model_info(shapes), bitmap_of("per_channel", shapes, {}, free)
    model = ModelInfo.from_json(info)
    priced = prices(
        BudgetSection(avg_bits=None, size_mb=1.0), model, granularity="per_channel", widths=widths, held={},
        reserve=reserve_of(bits, widths),
    )  # fmt: skip
    slack = float((spent(priced, widths, free)[0] + priced.fixed[0]) / 8) - spending(bits, info)["size_mb"] * 1e6
    assert 0 <= slack <= 10 + 1 + 2 * 6 + 4


class TestByHand:
    """conv (2, 3): 6 weights, 3 a channel, 60 multiply-accumulates; fc (4, 5): 20 weights held at 8 bits, 20 MACs."""

    INFO = ModelInfo(SHAPES, {}, {}, rest=7, macs={"conv": 60, "fc": 20})
    WIDTHS = (0, 2, 32)

    def priced(self, granularity, reserve=None, **budget):
        section = BudgetSection(**({"avg_bits": None} | budget))
        held = {"fc": 8}
        reserve = reserve or first_reserve(self.WIDTHS, held, self.INFO, granularity)
        return prices(section, self.INFO, granularity=granularity, widths=self.WIDTHS, held=held, reserve=reserve)

    @pytest.mark.parametrize(
        "granularity, costs", [("per_tensor", [0, 12, 192]), ("per_channel", [0, 6, 96]), ("per_param", [0, 2, 32])]
    )
    def test_average(self, granularity, costs):
        found = self.priced(granularity, avg_bits=7.0)
        assert found.costs.tolist() == [[costs]]
        assert (found.fixed.tolist(), found.limits.tolist()) == ([160], [22])  # 182 bits for 26 weights
        assert found.unit.tolist() == [1 / 26]

    @pytest.mark.parametrize(
        "granularity, costs",
        [("per_tensor", [0, 120, 1920]), ("per_channel", [0, 60, 960]), ("per_param", [0, 20, 320])],
    )
    def test_operations(self, granularity, costs):
        found = self.priced(granularity, gbops=1e-5)
        assert found.costs.tolist() == [[costs]]
        assert (found.fixed.tolist(), found.limits.tolist()) == ([160], [312.5 - 160])  # 1e4 / 32 of activations

    def test_packed_per_channel(self):
        """Four widths: codes of two bits. A channel: 3 weights, 2 bits of code, 32 of a scale at 2 bits."""
        found = self.priced("per_channel", size_mb=0.001)
        assert found.costs.tolist() == [[[2, 6 + 2 + 32, 96 + 2]]]
        # rest 7 floats, a table of 4 × 2 bytes, a byte a layer and one for the map; fc: weights, codes, scales
        assert found.fixed.tolist() == [7 * 32 + 4 * 16 + 2 * 8 + 8 + 160 + 4 * 2 + 4 * 32]
        assert found.limits.tolist() == [8000 - 608]

    def test_packed_per_tensor_and_per_param(self):
        one = self.priced("per_tensor", size_mb=0.001)
        assert one.costs.tolist() == [[[2, 12 + 2 + 32, 192 + 2]]]
        assert one.fixed.tolist() == [7 * 32 + 4 * 16 + 2 * 8 + 8 + 160 + 2 + 32]
        each = self.priced("per_param", size_mb=0.001)
        assert each.costs.tolist() == [[[2, 4, 34]]]  # scales are in the reserve: two channels, one width with a grid
        assert each.fixed.tolist() == [7 * 32 + 4 * 16 + 2 * 8 + 8 + 160 + 20 * 2 + 4 * 32 + 2 * 32]

    def test_packed_with_zero_points(self):
        """As above; a channel at 2 bits has a zero point of 2 bits, each of fc's four one of 8, a byte a layer more."""
        reserve = first_reserve(self.WIDTHS, {"fc": 8}, self.INFO, "per_channel", "asymmetric")
        found = prices(
            BudgetSection(avg_bits=None, size_mb=0.001), self.INFO, granularity="per_channel", widths=self.WIDTHS,
            held={"fc": 8}, reserve=reserve, scheme="asymmetric",
        )  # fmt: skip
        assert found.costs.tolist() == [[[2, 6 + 2 + 32 + 2, 96 + 2]]]
        assert found.fixed.tolist() == [608 + 4 * 8 + 2 * 8]

    def test_a_long_code_never_makes_a_width_dearer_than_the_next(self):
        found = self.priced("per_param", Reserve({0: 9, 2: 1, 8: 1, 32: 1}, {"conv": 0}), size_mb=0.001)
        assert found.costs.tolist() == [[[9, 9, 33]]]

    def test_several_budgets_keep_their_order(self):
        found = self.priced("per_channel", gbops=1e-5, avg_bits=7.0)
        assert found.keys == ("avg_bits", "gbops") and found.costs.shape == (2, 1, 3)

    def test_nothing_free(self):
        held = {"conv": 8, "fc": 2}
        found = prices(
            ALL, self.INFO, granularity="per_channel", widths=self.WIDTHS, held=held,
            reserve=first_reserve(self.WIDTHS, held, self.INFO, "per_channel"),
        )  # fmt: skip
        assert found.costs.shape == (3, 0, 3)


class TestReserve:
    def test_first_holds_for_every_allocation(self):
        info = ModelInfo(SHAPES, {}, {}, rest=0, macs=dict.fromkeys(SHAPES, 1))
        assert first_reserve((0, 2, 4), {"fc": 8}, info, "per_channel") == Reserve({0: 2, 2: 2, 4: 2, 8: 2}, None)
        assert first_reserve((4,), {}, info, "per_tensor") == Reserve({4: 0}, None)
        assert first_reserve((0, 2, 4, 8, 32), {}, info, "per_param").grids == {"conv": 192, "fc": 384}
        assert first_reserve((0, 2, 32), {"fc": 8}, info, "per_param").grids == {"conv": 64}
        two = first_reserve((0, 1, 2, 32), {"fc": 8}, info, "per_param", "asymmetric")
        assert two.grids == {"conv": 2 * (32 + 32 + 2)}  # 1 bit has no zero point

    def test_of_a_map_by_hand(self):
        bits = bitmap_of("per_param", SHAPES, {}, {"conv": [0, 2, 2, 4, 4, 4], "fc": [8] * 15 + [0] * 5})
        found = reserve_of(bits, (0, 2, 4, 32))
        assert found.grids == {"conv": 64, "fc": 96}  # conv: channel 0 has 0, 2, 2, channel 1 4, 4, 4
        zeros = reserve_of(replace(bits, scheme="asymmetric"), (0, 2, 4, 32)).grids
        assert zeros == {"conv": 64 + 2 + 4, "fc": 96 + 3 * 8}
        assert found.code == huffman_lengths({0: 1 + 6, 2: 1 + 2, 4: 1 + 3, 32: 1, 8: 15})

    @pytest.mark.parametrize("seed", range(10))
    def test_its_code_is_a_prefix_code_no_longer_than_needed(self, seed):
        _, shapes, widths, held, free = random_case(seed, "per_channel")
        code = reserve_of(bitmap_of("per_channel", shapes, held, free), widths).code
        assert set(code) >= {*widths, *held.values()}
        kraft = sum(2.0**-length for length in code.values())
        assert kraft == 1.0  # complete; of one symbol the length is 0


class TestReadable:
    def read(self, value, unit=1.0, fixed=0.0):
        priced = Prices(("avg_bits",), np.zeros((1, 0, 1)), np.zeros(1), np.array([fixed]), np.array([unit]))
        return priced.readable(0, value)

    @pytest.mark.parametrize(
        "value, text", [(4.0, 4.0), (1 / 3, 0.333334), (2 / 3, 0.666667), (0.1, 0.1), (1234.56781, 1234.57), (0, 0)]
    )
    def test_rounded_up_to_six_digits(self, value, text):
        assert self.read(value) == text

    def test_in_the_budgets_unit_with_what_is_fixed(self):
        assert self.read(10.0, unit=1 / 26, fixed=160.0) == 6.53847  # 170/26 = 6.538461…

    def test_never_below_and_close(self):
        for value in np.exp(np.random.default_rng(0).uniform(-20, 20, size=300)).tolist():
            assert value * (1 - 1e-14) <= self.read(value) <= value * (1 + 1.01e-5)


def test_whole_bytes_are_those_written():
    for number in [1, 10, 999, 1_001_000, 46_761_235, 123_456_789]:
        assert whole_bytes(number / 1e6) == number
        assert whole_bytes(number / 1e6 + 4e-7) == number
