"""The whole of assign on small models, against allocations worked out by hand."""

import re

import numpy as np
import pytest

from fairquant import plugins
from fairquant.assign.run import assign_bits
from fairquant.config import Config
from fairquant.errors import ArtifactError, ConfigError, UserError
from fairquant.importance.maps import ImportanceMaps

SHAPES = {"conv": (3, 2, 1, 1), "mid": (2, 3, 1, 1), "fc": (2, 2)}


def _info(shapes=SHAPES):
    return {
        "layers": {name: {"shape": list(shape), "kind": "conv2d"} for name, shape in shapes.items()},
        "roles": {"first": "conv", "last": "fc", "classifier": "fc"},
        "parameters": {"rest": 3},
        "macs": dict.fromkeys(shapes, 1),
    }


def _maps(seed=0, groups=("a", "b", "c"), shapes=SHAPES):
    rng = np.random.default_rng(seed)
    layers = {name: rng.random((len(groups), *shape), dtype=np.float32) for name, shape in shapes.items()}
    return ImportanceMaps(tuple(groups), (5,) * len(groups), layers)


def _constant_maps(values, groups):
    """Maps whose weights in channel c of a layer are worth values[layer][g][c] to group g."""
    layers = {
        name: np.array(np.broadcast_to(
            np.array(values[name], np.float32).reshape(len(groups), -1, *[1] * (len(shape) - 1)),
            (len(groups), *shape),
        ))
        for name, shape in SHAPES.items()
    }  # fmt: skip
    return ImportanceMaps(tuple(groups), (1,) * len(groups), layers)


CHANNELS = {"conv": [[9, 1, 5], [1, 2, 3]], "mid": [[0, 4], [8, 0]], "fc": [[6, 7], [1, 1]]}


@pytest.mark.parametrize(
    "reducer, expected",
    [
        # sizes 2 2 2 | 3 3 | 2 2, boundaries at 4 and 8 of 16 parameters; midpoints in ascending order of importance:
        # 5 1.5 4 | 4 2 | 3.5 4: conv.1 at 1, mid.1 3.5, fc.0 6, conv.2 8 (the first of three ties in model order)
        ("mean", {"conv": [8, 2, 4], "mid": [8, 2], "fc": [4, 8]}),
        # 9 2 5 | 8 4 | 6 7: conv.1 at 1, mid.1 3.5, conv.2 6, fc.0 8
        ("max", {"conv": [8, 2, 4], "mid": [8, 2], "fc": [4, 8]}),
    ],
)
def test_per_channel_by_hand(reducer, expected):
    config = Config(reducer=reducer, granularity="per_channel", assign={"bits": [2, 4, 8], "levels": [0.25, 0.25, 0.5]})
    bits = assign_bits(_constant_maps(CHANNELS, ("a", "b")), _info(), config)
    assert bits.granularity == "per_channel"
    assert list(bits.layers) == list(SHAPES)
    assert {name: value.tolist() for name, value in bits.layers.items()} == expected


def test_balanced_uses_the_shares_of_the_whole_model():
    """Σ over the model: a = 2·15 + 3·4 + 2·13 = 68, b = 2·6 + 3·8 + 2·2 = 40 → shares 0.6296 and 0.3704."""
    config = Config(reducer="balanced", assign={"bits": [2, 8], "levels": [0.5, 0.5]})
    bits = assign_bits(_constant_maps(CHANNELS, ("a", "b")), _info(), config)
    # 14.3 5.4 8.1 | 21.6 6.4 | 9.5 11.1: 2 + 3 + 2 = 7 of 16 parameters lie lowest, the next unit's midpoint is 8
    assert {name: value.tolist() for name, value in bits.layers.items()} == {
        "conv": [8, 2, 2], "mid": [8, 2], "fc": [2, 8],
    }  # fmt: skip


def test_subtractive_ranks_what_only_the_privileged_need_lowest():
    options = {"subtractive": {"unprivileged": "b", "privileged": "a"}}
    config = Config(reducer="subtractive", assign={"bits": [2, 8], "levels": [0.5, 0.5], "reducers": options})
    bits = assign_bits(_constant_maps(CHANNELS, ("a", "b")), _info(), config)
    # -8 1 -2 | 8 -4 | -5 -6: conv.0, fc.1, fc.0 (6 parameters) and mid.1 (midpoint 7.5 of 8)
    assert {name: value.tolist() for name, value in bits.layers.items()} == {
        "conv": [2, 8, 8], "mid": [8, 2], "fc": [2, 2],
    }  # fmt: skip


def test_per_tensor_and_per_param_have_their_shapes():
    for granularity, shapes in (("per_tensor", [(), (), ()]), ("per_param", list(SHAPES.values()))):
        bits = assign_bits(_maps(), _info(), Config(granularity=granularity))
        assert [value.shape for value in bits.layers.values()] == shapes
        assert all(value.dtype == np.uint8 for value in bits.layers.values())


def test_per_param_agrees_with_a_plain_sort():
    shapes = {"one": (20, 10), "two": (30, 10)}
    maps = _maps(3, shapes=shapes)
    bits = assign_bits(maps, _info(shapes), Config(granularity="per_param", reducer="mean"))
    flat = np.concatenate([maps.layers[name].astype(np.float64).mean(axis=0).reshape(-1) for name in shapes])
    expected = np.empty(500, dtype=np.uint8)
    expected[np.argsort(flat.astype(np.float32), kind="stable")] = np.repeat([2, 4, 8], [100, 200, 200])
    np.testing.assert_array_equal(np.concatenate([bits.layers[name].reshape(-1) for name in shapes]), expected)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_protected_layers_are_held_and_the_shares_apply_to_the_rest(granularity):
    shapes = {"conv": (10, 10), "mid": (20, 10), "fc": (10, 30)}
    config = Config(granularity=granularity, assign={"protect": {"layers": ["classifier"], "bits": 16}})
    bits = assign_bits(_maps(1, shapes=shapes), _info(shapes), config)
    assert (bits.layers["fc"] == 16).all()
    assert list(bits.layers) == list(shapes)
    without = {name: shape for name, shape in shapes.items() if name != "fc"}
    rest = _maps(1, shapes=shapes)
    alone = ImportanceMaps(rest.groups, rest.counts, {name: rest.layers[name] for name in without})
    config = Config(granularity=granularity, reducer="mean")
    free = assign_bits(alone, _info(without), config)
    held = config.model_copy(update={"assign": Config(assign={"protect": {"layers": ["last"]}}).assign})
    bits = assign_bits(rest, _info(shapes), held)
    assert (bits.layers["fc"] == 32).all()
    for name in without:
        np.testing.assert_array_equal(bits.layers[name], free.layers[name])


def test_everything_protected():
    config = Config(assign={"protect": {"layers": ["*"], "bits": 8}})
    bits = assign_bits(_maps(), _info(), config)
    assert bits.average(SHAPES) == 8


@pytest.mark.parametrize("reducer", sorted(set(plugins.names("reducer")) - {"subtractive"}))
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_param"])
def test_order_of_groups_plays_no_part(reducer, granularity):
    maps = _maps(4)
    order = [2, 0, 1]
    moved = ImportanceMaps(
        tuple(maps.groups[i] for i in order), maps.counts, {name: value[order] for name, value in maps.layers.items()}
    )
    config = Config(reducer=reducer, granularity=granularity)
    one, two = assign_bits(maps, _info(), config), assign_bits(moved, _info(), config)
    for name in SHAPES:
        np.testing.assert_array_equal(one.layers[name], two.layers[name])


def test_uniform_allocator():
    bits = assign_bits(_maps(), _info(), Config(allocator="uniform", assign={"uniform_bits": 6}))
    assert bits.average(SHAPES) == 6


def _line(text):
    return f"^{re.escape(text)}$"


def test_subtractive_on_three_groups_is_refused():
    line = "reducer: got 'subtractive' with 3 groups (a, b, c); allowed: exactly two groups"
    with pytest.raises(ConfigError, match=_line(line)):
        assign_bits(_maps(), _info(), Config(reducer="subtractive"))


@pytest.mark.parametrize("protect", [(), ("mid",)])
def test_nan_names_layer_and_group_also_in_a_protected_layer(protect):
    maps = _maps()
    maps.layers["mid"][1, 0, 0] = np.nan
    with pytest.raises(UserError, match="layer 'mid', group 'b': got NaN"):
        assign_bits(maps, _info(), Config(assign={"protect": {"layers": protect}}))


def test_a_reducers_own_complaint_names_the_layer():
    maps = _maps()
    maps.layers["mid"][...] = -1
    with pytest.raises(UserError, match="^layer conv: balanced: got total importance -"):
        assign_bits(maps, _info(), Config(reducer="balanced"))


@pytest.mark.parametrize(
    "shapes, line",
    [
        (
            {"conv": (3, 2, 1, 1), "mid": (2, 3, 1, 1)},
            "importance: got a map for layer fc; allowed: one map for each layer of the model",
        ),
        (
            {**SHAPES, "new": (1, 1)},
            "importance: got no map for layer new; allowed: one map for each layer of the model",
        ),
        (
            {**SHAPES, "fc": (2, 5)},
            "importance of layer fc: got shape (3, 2, 2); allowed: (3, 2, 5) (groups, then the weight's shape)",
        ),
    ],
)
def test_maps_of_another_model_are_refused(shapes, line):
    with pytest.raises(ArtifactError, match=_line(line)):
        assign_bits(_maps(), _info(shapes), Config())


@pytest.mark.parametrize("key", ["layers", "roles", "parameters", "macs"])
def test_an_incomplete_model_description_is_named(key):
    info = _info()
    del info[key]
    line = f"models/pretrained.json: got no {key!r}; allowed: a file written by the pretrain stage"
    with pytest.raises(ArtifactError, match=_line(line)):
        assign_bits(_maps(), info, Config())
