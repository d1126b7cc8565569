import numpy as np
import pytest

from fairquant.errors import UserError
from fairquant.reduce import balanced


def test_shares_are_the_models_where_totals_are_given():
    maps = np.array([[1, 2], [3, 6]], dtype=np.float32)
    reduced = balanced.reduce(maps, balanced.Options(), groups=["a", "b"], totals=np.array([1.0, 1.0]))
    assert reduced.tolist() == [6.0, 12.0]  # shares 1/2 and 1/2


def test_scaling_a_group_does_not_change_the_ranking():
    maps = np.random.default_rng(0).random((3, 50), dtype=np.float32)
    scaled = maps * np.array([[1], [64], [0.125]], dtype=np.float32)
    ranks = [np.argsort(balanced.reduce(m, balanced.Options(), groups="abc")) for m in (maps, scaled)]
    np.testing.assert_array_equal(*ranks)


def test_a_group_without_importance_has_no_claim():
    maps = np.array([[1, 3], [0, 0]], dtype=np.float32)
    assert balanced.reduce(maps, balanced.Options(), groups=["a", "b"]).tolist() == [1.0, 3.0]


def test_negative_total_is_an_error():
    with pytest.raises(UserError, match="^balanced: got total importance -2 of group 'b'; allowed: not negative$"):
        balanced.reduce(np.array([[1.0], [-2.0]], dtype=np.float32), balanced.Options(), groups=["a", "b"])


def test_objective_weighs_by_one_over_the_share():
    cap, scale = balanced.objective(balanced.Options(), np.array([6.0, 0.0, 2.0]))
    assert (cap, scale.tolist()) == (1.0, [8 / 6, 0.0, 4.0])
    assert balanced.objective(balanced.Options(), np.zeros(2))[1].tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match="^balanced: got total importance -1 of group '1'; allowed: not negative$"):
        balanced.objective(balanced.Options(), np.array([1.0, -1.0]))
