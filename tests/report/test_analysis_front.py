"""The Pareto front against its definition, point by point."""

from __future__ import annotations

import random

import pytest

from fairquant.report.analysis_front import pareto_front


def brute_force(points, directions):
    def as_good(a, b, way):
        return a <= b if way == "min" else a >= b

    kept = []
    for own in points:
        surpassed = False
        for other in points:
            everywhere = all(as_good(a, b, way) for a, b, way in zip(other, own, directions, strict=True))
            surpassed |= everywhere and any(a != b for a, b in zip(other, own, strict=True))
        kept.append(not surpassed)
    return kept


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_definition(dimensions, seed):
    draw = random.Random(100 * dimensions + seed)
    directions = [draw.choice(("min", "max")) for _ in range(dimensions)]
    points = [tuple(float(draw.randint(0, 6)) for _ in range(dimensions)) for _ in range(40)]  # with many equals
    assert pareto_front(points, directions) == brute_force(points, directions)


def test_by_hand():
    # size, accuracy, gap: d is larger than a at the same accuracy and gap; e equals b
    points = [(1.0, 80.0, 9.0), (2.0, 90.0, 9.0), (2.0, 85.0, 3.0), (3.0, 80.0, 9.0), (2.0, 90.0, 9.0)]
    assert pareto_front(points, ("min", "max", "min")) == [True, True, True, False, True]
    assert pareto_front([point[:2] for point in points], ("min", "max")) == [True, True, False, False, True]
    assert pareto_front([], ("min",)) == []


@pytest.mark.parametrize(
    ("points", "directions", "message"),
    [
        ([(1.0,)], ("up",), r"directions: got \['up'\]; allowed: one or more of min \| max"),
        ([(1.0,)], (), r"directions: got \[\]; allowed"),
        ([(1.0, 2.0)], ("min",), r"points: got \[2\] values; allowed: 1 each"),
        ([(float("nan"),)], ("min",), "points: got NaN or infinite values; allowed: finite ones"),
    ],
)
def test_what_it_refuses(points, directions, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(points, directions)
