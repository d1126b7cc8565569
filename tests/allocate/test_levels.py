"""levels against hand-computed allocations and a float64/Fraction brute force over single units."""

from fractions import Fraction

import numpy as np
import pytest

from fairquant.allocate.methods.levels import allocate
from fairquant.allocate.units import Units, unit_importance
from fairquant.config.schema import AssignSection


def _section(bits=(2, 4, 8), levels=(0.2, 0.4, 0.4), unit="params"):
    return AssignSection(bits=bits, levels=levels, level_unit=unit)


def _brute_force(importance, sizes, section):
    """Walk the units in ascending order; a unit's level is the first whose boundary reaches the unit's midpoint."""
    widths, shares = section.ladder
    exact = [Fraction(str(share)) for share in shares]
    weights = [1] * len(sizes) if section.level_unit == "units" else [int(size) for size in sizes]
    bounds = [sum(exact[: k + 1]) / sum(exact) * sum(weights) for k in range(len(exact))]
    result, before = [0] * len(weights), 0
    for unit in sorted(range(len(weights)), key=lambda i: (float(importance[i]), i)):
        middle = before + Fraction(weights[unit], 2)
        result[unit] = next(width for width, bound in zip(widths, bounds, strict=True) if middle <= bound)
        before += weights[unit]
    return result


@pytest.mark.parametrize(
    "importance, sizes, section, expected",
    [
        ([5, 1, 3, 2, 4], [1] * 5, _section(), [8, 2, 4, 4, 8]),
        ([5, 1, 3, 2, 4], [7] * 5, _section(), [8, 2, 4, 4, 8]),
        # 2 bits: 20 of 100 parameters (units 1, 3); 4 bits: 40 (unit 2); 8 bits: 40 (units 4, 0)
        ([5, 1, 3, 2, 4], [30, 10, 40, 10, 10], _section(), [8, 2, 4, 2, 8]),
        # the same by units: one unit of five at 2 bits, two at 4, two at 8
        ([5, 1, 3, 2, 4], [30, 10, 40, 10, 10], _section(unit="units"), [8, 2, 4, 4, 8]),
        # negative importance ranks lowest
        ([0.5, -3.0, 0.0, -0.1], [1] * 4, _section(bits=(4, 8), levels=(0.5, 0.5)), [8, 4, 8, 4]),
        # ties are split in model order and the shares hold
        ([0.0] * 10, [1] * 10, _section(), [2] * 2 + [4] * 4 + [8] * 4),
        ([1, 0, 0, 0, 1], [3, 1, 1, 2, 3], _section(), [4, 2, 2, 4, 8]),
        # levels and bits stay paired when bits come unsorted
        ([1, 2, 3, 4, 5], [1] * 5, _section(bits=(8, 2, 4), levels=(0.6, 0.2, 0.2)), [2, 4, 8, 8, 8]),
        # a single width, a level without a share, one unit
        ([1, 2], [1, 9], _section(bits=(6,), levels=(1.0,)), [6, 6]),
        ([1, 2, 3, 4], [1] * 4, _section(levels=(0.5, 0.0, 0.5)), [2, 2, 8, 8]),
        ([1, 2, 3, 4], [1] * 4, _section(levels=(0.0, 0.0, 1.0)), [8, 8, 8, 8]),
        ([1, 2, 3, 4], [1] * 4, _section(levels=(1.0, 0.0, 0.0)), [2, 2, 2, 2]),
        ([1], [10], _section(), [4]),
        ([], [], _section(), []),
    ],
)
def test_by_hand(importance, sizes, section, expected):
    bits = allocate(np.array(importance, dtype=np.float32), np.array(sizes, dtype=np.int64), section)
    assert bits.dtype == np.uint8
    assert bits.tolist() == expected


def _random_case(rng):
    n = int(rng.integers(1, 60))
    importance = rng.normal(size=n).astype(rng.choice([np.float32, np.float64]))
    if rng.random() < 0.5:
        importance = np.round(importance * rng.integers(1, 4))  # many ties, negatives and both zeros
    sizes = np.full(n, rng.integers(1, 20)) if rng.random() < 0.5 else rng.integers(1, 50, size=n)
    k = int(rng.integers(1, 5))
    cuts = np.sort(rng.integers(0, 101, size=k - 1))
    levels = [float(share) / 100 for share in np.diff(cuts, prepend=0, append=100)]
    bits = [int(width) for width in rng.permutation([0, 1, 2, 3, 4, 6, 8, 16, 32])[:k]]
    return importance, sizes.astype(np.int64), bits, levels


@pytest.mark.parametrize("unit", ["params", "units"])
def test_agrees_with_brute_force_on_random_cases(unit):
    rng = np.random.default_rng(7)
    for _ in range(200):
        importance, sizes, bits, levels = _random_case(rng)
        section = _section(bits, levels, unit)
        assert allocate(importance, sizes, section).tolist() == _brute_force(importance, sizes, section)


@pytest.mark.parametrize("unit", ["params", "units"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_agrees_with_brute_force_at_every_granularity(granularity, unit):
    rng = np.random.default_rng(8)
    for _ in range(70):
        shapes = {f"l{i}": tuple(rng.integers(1, 5, size=rng.choice([2, 4])).tolist()) for i in range(5)}
        maps = {name: np.round(rng.normal(size=shape), 1).astype(np.float32) for name, shape in shapes.items()}
        importance = {name: unit_importance(value, granularity) for name, value in maps.items()}
        units = Units.gather(granularity, shapes, importance)
        section = _section(unit=unit)
        bits = allocate(units.importance, units.sizes, section)
        assert bits.tolist() == _brute_force(units.importance, units.sizes, section)


@pytest.mark.parametrize("ties", [False, True])
def test_average_got_is_within_one_unit_of_the_average_asked(ties):
    rng = np.random.default_rng(9)
    for _ in range(100):
        sizes = rng.integers(1, 100, size=int(rng.integers(1, 200)))
        importance = np.zeros(len(sizes)) if ties else rng.normal(size=len(sizes))
        got = np.average(allocate(importance, sizes, _section()), weights=sizes)
        assert abs(got - 5.2) <= (8 - 2) / 2 * sizes.max() / sizes.sum() + 1e-9


def test_shares_are_exact_for_single_weights_also_in_ties():
    for importance in (np.zeros(1000), np.arange(1000) // 400, np.random.default_rng(0).random(1000)):
        bits = allocate(importance.astype(np.float32), np.ones(1000, dtype=np.int64), _section())
        assert np.bincount(bits)[[2, 4, 8]].tolist() == [200, 400, 400]


def test_shares_written_in_decimals_are_exact():
    """0.1 · 10 levels: sums of floats drift, 7 · 0.1 > 0.7; each level still gets its tenth."""
    section = _section(bits=tuple(range(1, 11)), levels=(0.1,) * 10)
    bits = allocate(np.arange(1000.0), np.ones(1000, dtype=np.int64), section)
    assert np.bincount(bits)[1:].tolist() == [100] * 10
    thirds = _section(levels=(1 / 3,) * 3)
    assert np.bincount(allocate(np.arange(9.0), np.ones(9, dtype=np.int64), thirds))[[2, 4, 8]].tolist() == [3, 3, 3]


@pytest.mark.parametrize("sizes", [np.ones(500, dtype=np.int64), np.arange(1, 501)])
def test_order_is_respected_and_only_ranks_matter(sizes):
    importance = np.random.default_rng(1).normal(size=500)
    bits = allocate(importance, sizes, _section())
    assert (np.diff(bits[np.argsort(importance)].astype(int)) >= 0).all()
    np.testing.assert_array_equal(bits, allocate(np.exp(3 * importance) - 50, sizes, _section()))


def test_more_important_never_means_fewer_bits():
    rng = np.random.default_rng(2)
    importance, sizes = rng.normal(size=80), rng.integers(1, 9, size=80)
    before = allocate(importance, sizes, _section())
    for unit in range(80):
        raised = importance.copy()
        raised[unit] += 0.5
        assert allocate(raised, sizes, _section())[unit] >= before[unit]


def test_input_is_not_changed():
    importance, sizes = np.array([3.0, 1.0, 2.0]), np.array([1, 2, 3])
    allocate(importance, sizes, _section())
    assert importance.tolist() == [3.0, 1.0, 2.0]
    assert sizes.tolist() == [1, 2, 3]
