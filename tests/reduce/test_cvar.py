import numpy as np
import pytest
from pydantic import ValidationError

from fairquant.reduce import cvar, max, mean

GROUPS = tuple("abcde")


def _maps(n_groups=5):
    return np.random.default_rng(3).random((n_groups, 6, 4), dtype=np.float32)


@pytest.mark.parametrize(
    "alpha, n_groups, weights",
    [
        (0.0, 4, [0.25] * 4),
        (0.5, 4, [0.5, 0.5]),
        (0.5, 5, [0.4, 0.4, 0.2]),
        (0.75, 4, [1.0]),
        (0.9, 4, [1.0]),
        (1.0, 4, [1.0]),
        (0.1, 9, [1 / 8.1] * 8 + [0.1 / 8.1]),
    ],
)
def test_tail_weights_by_hand(alpha, n_groups, weights):
    assert cvar.tail_weights(alpha, n_groups) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize("alpha", np.linspace(0, 1, 21).tolist())
@pytest.mark.parametrize("n_groups", range(1, 10))
def test_tail_weights_sum_to_one(alpha, n_groups):
    weights = cvar.tail_weights(alpha, n_groups)
    assert sum(weights) == pytest.approx(1)
    assert len(weights) <= n_groups


def test_alpha_0_is_the_mean_and_alpha_1_the_max():
    maps = _maps()
    at = {alpha: cvar.reduce(maps, cvar.Options(alpha=alpha), groups=GROUPS) for alpha in (0, 0.8, 1)}
    np.testing.assert_allclose(at[0], mean.reduce(maps, mean.Options(), groups=GROUPS), rtol=2e-7)
    for alpha in (0.8, 1):  # from 1 − 1/G on the tail is the worst group alone
        np.testing.assert_array_equal(at[alpha], max.reduce(maps, max.Options(), groups=GROUPS))


def test_differs_from_mean_and_max_in_between():
    maps = _maps(9)
    groups = [str(i) for i in range(9)]
    for alpha in (0.1, 0.5, 0.85):
        reduced = cvar.reduce(maps, cvar.Options(alpha=alpha), groups=groups)
        assert (reduced > mean.reduce(maps, mean.Options(), groups=groups)).all()
        assert (reduced < max.reduce(maps, max.Options(), groups=groups)).all()


def test_grows_with_alpha():
    values = [cvar.reduce(_maps(), cvar.Options(alpha=a), groups=GROUPS) for a in np.linspace(0, 1, 11).tolist()]
    assert all((low <= high * (1 + 1e-6)).all() for low, high in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, "much"])
def test_alpha_outside_0_1_is_refused(alpha):
    with pytest.raises(ValidationError):
        cvar.Options(alpha=alpha)


@pytest.mark.parametrize(
    "alpha, n_groups, cap",
    [(0.0, 4, 0.25), (0.5, 4, 0.5), (0.5, 3, 2 / 3), (0.75, 4, 1.0), (0.99, 4, 1.0), (1.0, 4, 1.0)],
)
def test_objective_by_hand(alpha, n_groups, cap):
    found = cvar.objective(cvar.Options(alpha=alpha), np.arange(1.0, n_groups + 1))
    assert found[0] == pytest.approx(cap) and found[1].tolist() == [1.0] * n_groups
