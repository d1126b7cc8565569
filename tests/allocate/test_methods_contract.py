"""What holds for every allocator, found by file name: those that rank, and those that spend a budget."""

import numpy as np
import pytest

from fairquant import plugins
from fairquant.allocate.spending import Spent
from fairquant.config.schema import AssignSection

SPENDING = [name for name in plugins.names("allocator") if getattr(plugins.load("allocator", name), "SPENDS", False)]
allocators = pytest.mark.parametrize("name", [name for name in plugins.names("allocator") if name not in SPENDING])
spenders = pytest.mark.parametrize("name", SPENDING)


def test_there_are_both_kinds():
    assert SPENDING == ["optimal"]


class Problem:
    """A ``Spending`` that notes what it was asked."""

    def __init__(self):
        self.gaps = []
        self.answer = Spent({}, np.zeros(2), 1.0, 1.0, 0.0, np.ones(2), {})

    def minimise(self, *, gap):
        self.gaps.append(gap)
        return self.answer


@spenders
def test_a_spending_allocator_returns_what_the_problem_found(name):
    problem = Problem()
    allocate = plugins.load("allocator", name).allocate
    assert allocate(problem, AssignSection(optimal={"gap": 0.02})) is problem.answer
    assert problem.gaps == [0.02]


@allocators
@pytest.mark.parametrize("units", [0, 1, 2, 100])
@pytest.mark.parametrize("equal", [True, False])
def test_every_unit_gets_a_configured_width(name, units, equal):
    rng = np.random.default_rng(units)
    sizes = np.ones(units, dtype=np.int64) if equal else rng.integers(1, 9, size=units)
    section = AssignSection()
    results = [plugins.load("allocator", name).allocate(rng.random(units), sizes, section) for _ in range(2)]
    assert results[0].shape == (units,)
    assert results[0].dtype == np.uint8
    assert set(results[0].tolist()) <= {*section.bits, section.uniform_bits}


@allocators
def test_same_input_same_bits(name):
    importance, sizes = np.random.default_rng(0).random(50), np.arange(1, 51)
    allocate = plugins.load("allocator", name).allocate
    first, second = (allocate(importance, sizes, AssignSection()) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_uniform_gives_its_width_whatever_the_importance():
    bits = plugins.load("allocator", "uniform").allocate(np.arange(3.0), np.ones(3), AssignSection(uniform_bits=5))
    assert bits.tolist() == [5, 5, 5]
