"""Rounds of iterative freezing: least important first, frozen for good, the asked mix at the end."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant.allocate.methods.levels import allocate
from fairquant.allocate.rounds import OPEN, freeze_next, mix_of
from fairquant.config.schema import AssignSection


def run(importances, sizes, mix, rounds):
    frozen = np.full(len(sizes), OPEN, dtype=np.uint8)
    history = []
    for number in range(rounds):
        frozen = freeze_next(importances[number], sizes, frozen, mix, share=(number + 1) / rounds)
        history.append(frozen)
    return history


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_ends_at_exactly_the_asked_mix(rounds):
    rng = np.random.default_rng(0)
    sizes = np.full(100, 9)
    mix = {2: 20 * 9, 4: 40 * 9, 8: 40 * 9}
    last = run(rng.random((rounds, 100)), sizes, mix, rounds)[-1]
    assert mix_of(last, sizes) == mix


@pytest.mark.parametrize("seed", range(5))
def test_unequal_sizes_end_within_a_unit_of_the_mix(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 50, 200)
    wanted = mix_of(rng.choice(np.array([2, 4, 8], np.uint8), 200), sizes)
    got = mix_of(run(rng.random((4, 200)), sizes, wanted, 4)[-1], sizes)
    assert got.keys() == wanted.keys() and sum(got.values()) == sum(wanted.values())
    assert all(abs(got[width] - wanted[width]) <= 2 * sizes.max() for width in wanted)


def test_frozen_units_stay_frozen_whatever_their_importance_becomes():
    rng = np.random.default_rng(1)
    history = run(rng.random((5, 60)), np.ones(60, int), {2: 20, 8: 40}, 5)
    for before, after in zip(history, history[1:], strict=False):
        assert (after[before != OPEN] == before[before != OPEN]).all()
    assert [int((step != OPEN).sum()) for step in history] == [12, 24, 36, 48, 60]


def test_one_round_is_the_levels_allocator():
    rng = np.random.default_rng(2)
    importance, sizes = rng.random(300), np.ones(300, dtype=np.int64)
    expected = allocate(importance, sizes, AssignSection())
    got = run([importance], sizes, mix_of(expected, sizes), 1)[-1]
    np.testing.assert_array_equal(got, expected)


def test_least_important_first():
    step = freeze_next(np.arange(10.0)[::-1], np.ones(10, int), np.full(10, OPEN, np.uint8), {2: 5, 4: 5}, share=0.3)
    assert np.flatnonzero(step != OPEN).tolist() == [7, 8, 9]
