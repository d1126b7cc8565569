"""What holds for every reducer, found by file name: nobody adds one that is not tested here."""

import numpy as np
import pytest

from fairquant import plugins
from fairquant.allocate.objective import Objective
from fairquant.config import Section
from fairquant.errors import UserError

GROUPS = ("I", "II", "III", "IV")
NEEDS = {"subtractive": ({"unprivileged": "I", "privileged": "II"}, ("I", "II"))}
"""Reducers that do not work on their defaults with any groups: options and groups that do."""


def _case(name):
    given, groups = NEEDS.get(name, ({}, GROUPS))
    plugin = plugins.load("reducer", name)
    return plugin, plugin.Options(**given), groups


def _maps(n_groups, shape=(5, 3, 2, 2), seed=0):
    return np.random.default_rng(seed).random((n_groups, *shape), dtype=np.float32)


reducers = pytest.mark.parametrize("name", plugins.names("reducer"))


@reducers
def test_options_are_a_frozen_section(name):
    plugin, options, _ = _case(name)
    assert issubclass(plugin.Options, Section)
    assert plugin.Options.model_config["frozen"]
    assert plugin.Options()  # defaults exist: options of reducers not chosen are validated too
    assert plugin.__doc__ and name in plugin.__doc__


@reducers
@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (5, 3, 2, 2), (0, 3)])
def test_result_is_finite_float32_of_the_weights_shape(name, shape):
    plugin, options, groups = _case(name)
    maps = _maps(len(groups), shape)
    reduced = plugin.reduce(maps, options, groups=groups, totals=np.ones(len(groups)))
    assert reduced.shape == shape
    assert reduced.dtype == np.float32
    assert np.isfinite(reduced).all()


@reducers
def test_the_input_is_not_changed_and_the_result_is_not_a_view_of_it(name):
    plugin, options, groups = _case(name)
    maps = _maps(len(groups))
    before = maps.copy()
    plugin.reduce(maps, options, groups=groups)[...] = 0
    np.testing.assert_array_equal(maps, before)


@reducers
def test_group_order_plays_no_part(name):
    plugin, options, groups = _case(name)
    maps, totals = _maps(len(groups)), np.arange(1.0, len(groups) + 1)
    order = np.random.default_rng(1).permutation(len(groups))
    moved = plugin.reduce(maps[order], options, groups=[groups[i] for i in order], totals=totals[order])
    np.testing.assert_allclose(moved, plugin.reduce(maps, options, groups=groups, totals=totals), rtol=2e-7)


@reducers
def test_weight_order_plays_no_part(name):
    plugin, options, groups = _case(name)
    maps = _maps(len(groups), (40_000,))  # more than one block
    order = np.random.default_rng(2).permutation(40_000)
    totals = np.ones(len(groups))
    reduced = plugin.reduce(maps, options, groups=groups, totals=totals)
    np.testing.assert_array_equal(plugin.reduce(maps[:, order], options, groups=groups, totals=totals), reduced[order])


@reducers
def test_same_input_same_bytes(name):
    plugin, options, groups = _case(name)
    first, second = (plugin.reduce(_maps(len(groups)), options, groups=groups) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@reducers
def test_one_group_is_its_own_importance_or_an_error(name):
    plugin, options, _ = _case(name)
    maps = _maps(1)
    if hasattr(plugin, "check_groups"):
        with pytest.raises(UserError, match="got .* with 1 groups"):
            plugin.reduce(maps, options, groups=["I"])
    else:
        np.testing.assert_allclose(plugin.reduce(maps, options, groups=["I"]), maps[0], rtol=1e-6)


@reducers
def test_zeros_stay_zero(name):
    plugin, options, groups = _case(name)
    assert not plugin.reduce(np.zeros((len(groups), 3, 2), dtype=np.float32), options, groups=groups).any()


@reducers
@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_nan_and_infinity_name_the_group(name, value, word):
    plugin, options, groups = _case(name)
    maps = _maps(len(groups))
    maps[1, 2, 1, 0, 1] = value
    with pytest.raises(UserError, match=f"^importance of group 'II': got {word}; allowed: finite numbers$"):
        plugin.reduce(maps, options, groups=groups)


@reducers
def test_maps_and_groups_of_different_number(name):
    plugin, options, groups = _case(name)
    with pytest.raises(UserError, match=r"got an array of shape \(5, 2\) for \d groups; allowed: one map per group"):
        plugin.reduce(np.ones((5, 2), dtype=np.float32), options, groups=groups)


objectives = pytest.mark.parametrize("name", [n for n in plugins.names("reducer") if n != "subtractive"])


def test_subtractive_orders_weights_but_no_totals():
    assert not hasattr(plugins.load("reducer", "subtractive"), "objective")


@objectives
@pytest.mark.parametrize("n_groups", [1, 2, 7])
def test_an_objective_is_one_over_groups(name, n_groups):
    plugin, options, _ = _case(name)
    totals = np.random.default_rng(n_groups).random(n_groups)
    cap, scale = plugin.objective(options, totals)
    assert 1 / n_groups - 1e-12 <= cap <= 1 and scale.shape == (n_groups,)
    objective = Objective.tail(n_groups, cap, scale)
    order = np.random.default_rng(1).permutation(n_groups)
    moved = Objective.tail(n_groups, *plugin.objective(options, totals[order]))
    losses = np.random.default_rng(2).random(n_groups)
    assert moved.value(losses[order]) == pytest.approx(objective.value(losses))


@objectives
def test_the_objective_is_the_reducer_of_the_totals(name):
    """A model of one weight per group's loss: reducing it and valuing its totals is the same."""
    plugin, options, groups = _case(name)
    stake = np.array([4.0, 1.0, 2.0, 8.0])
    objective = Objective.tail(4, *plugin.objective(options, stake))
    losses = np.random.default_rng(3).random((20, 4))
    reduced = plugin.reduce(losses.T.astype(np.float32), options, groups=groups, totals=stake)
    np.testing.assert_allclose(objective.value(losses), reduced, rtol=1e-5)


@objectives
def test_without_any_importance_there_still_is_an_objective(name):
    plugin, options, _ = _case(name)
    cap, scale = plugin.objective(options, np.zeros(3))
    assert Objective.tail(3, cap, scale).value([1.0, 1.0, 1.0]) == pytest.approx(1)
