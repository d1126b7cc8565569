import numpy as np
import pytest

from fairquant.allocate.units import Units, unit_importance

REDUCED = {
    "conv": np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2),
    "fc": -np.arange(6, dtype=np.float32).reshape(3, 2),
}
SHAPES = {name: value.shape for name, value in REDUCED.items()}


@pytest.mark.parametrize(
    "granularity, importance, sizes",
    [
        ("per_tensor", [5.5, -2.5], [12, 6]),
        ("per_channel", [2.5, 8.5, -0.5, -2.5, -4.5], [6, 6, 2, 2, 2]),
        ("per_param", [*range(12), 0, -1, -2, -3, -4, -5], [1] * 18),
    ],
)
def test_units_by_hand(granularity, importance, sizes):
    units = Units.gather(granularity, SHAPES, {n: unit_importance(v, granularity) for n, v in REDUCED.items()})
    assert units.importance.tolist() == importance
    assert units.sizes.tolist() == sizes


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_scatter_puts_each_units_width_where_it_came_from(granularity):
    importance = {n: unit_importance(v, granularity) for n, v in REDUCED.items()}
    units = Units.gather(granularity, SHAPES, importance)
    bits = units.scatter(np.arange(len(units.importance), dtype=np.uint8))
    assert bits.granularity == granularity
    flat = np.concatenate([bits.layers[name].reshape(-1) for name in SHAPES])
    assert flat.tolist() == list(range(len(flat)))
    for name in SHAPES:
        np.testing.assert_array_equal(importance[name].reshape(bits.layers[name].shape).shape, bits.layers[name].shape)


def test_means_are_taken_in_float64():
    """2²⁴ + 1 is not a float32: a float32 running sum would lose every one of the small values."""
    value = np.ones((1, 1001), dtype=np.float32)
    value[0, 0] = 2.0**24
    assert unit_importance(value, "per_channel").tolist() == [(2.0**24 + 1000) / 1001]


def test_single_weights_are_not_copied():
    value = np.ones((4, 5), dtype=np.float32)
    assert np.shares_memory(unit_importance(value, "per_param"), value)
    shape = {"a": (4, 5)}
    assert Units.gather("per_param", shape, {"a": value.reshape(-1)}).sizes.strides == (0,)


def test_no_layers_no_units():
    units = Units.gather("per_channel", {}, {})
    assert units.importance.shape == units.sizes.shape == (0,)
    assert units.scatter(np.empty(0, dtype=np.uint8)).layers == {}
