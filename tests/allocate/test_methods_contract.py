"""What holds for every allocator, found by file name."""

import numpy as np
import pytest

from fairquant import plugins
from fairquant.config.schema import AssignSection

allocators = pytest.mark.parametrize("name", plugins.names("allocator"))


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
