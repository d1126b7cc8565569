"""Every reducer against a float64 brute force over single weights, on 200 random cases each."""

import numpy as np
import pytest

from fairquant import plugins


def _mean(column, options, names, totals):
    return sum(column) / len(column)


def _max(column, options, names, totals):
    return max(column)


def _cvar(column, options, names, totals):
    """Take the tail in sorted order, group by group, until (1 − α)·G of it is used up."""
    left = tail = max((1 - options.alpha) * len(column), 1.0)
    total = 0.0
    for value in sorted(column, reverse=True):
        part = min(1.0, left)
        total += part * value
        left -= part
    return total / tail


def _balanced(column, options, names, totals):
    return max(value / (total / sum(totals)) for value, total in zip(column, totals, strict=True))


def _subtractive(column, options, names, totals):
    by_name = dict(zip(names, column, strict=True))
    return by_name[options.unprivileged] - options.beta * by_name[options.privileged]


ORACLES = {"mean": _mean, "max": _max, "cvar": _cvar, "balanced": _balanced, "subtractive": _subtractive}


def _random_case(name, rng):
    n_groups = 2 if name == "subtractive" else int(rng.integers(1, 10))
    names = [f"g{i}" for i in rng.permutation(n_groups)]
    shape = tuple(rng.integers(1, 5, size=rng.integers(1, 4)).tolist())
    maps = (rng.random((n_groups, *shape)) * 10.0 ** rng.integers(-6, 4)).astype(np.float32)
    if rng.random() < 0.3:
        maps = np.round(maps)  # ties and zeros
    maps.reshape(n_groups, -1)[:, 0] += 1  # no group without importance
    given = {"cvar": {"alpha": float(rng.random())}}
    if name == "subtractive":
        given[name] = {"unprivileged": names[0], "privileged": names[1], "beta": float(2 * rng.random())}
    return maps, names, plugins.load("reducer", name).Options(**given.get(name, {}))


def test_every_reducer_has_an_oracle():
    assert set(ORACLES) == set(plugins.names("reducer"))


@pytest.mark.parametrize("name", plugins.names("reducer"))
@pytest.mark.parametrize("whole_model", [False, True])
def test_agrees_with_float64_brute_force(name, whole_model):
    rng = np.random.default_rng(len(name))
    for _ in range(100):
        maps, names, options = _random_case(name, rng)
        exact = maps.astype(np.float64).reshape(len(names), -1)
        totals = rng.random(len(names)) + 0.1 if whole_model else exact.sum(axis=1)
        reduced = plugins.load("reducer", name).reduce(
            maps, options, groups=names, totals=totals if whole_model else None
        )
        expected = [ORACLES[name](column.tolist(), options, names, totals) for column in exact.T]
        np.testing.assert_allclose(reduced.reshape(-1), expected, rtol=3e-7, atol=1e-30)
